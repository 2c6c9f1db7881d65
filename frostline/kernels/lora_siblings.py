"""Linear layers with LoRA updates that read one input, as one function of autograd: the query, key and value of an attention, say.

    yᵢ = x Wᵢᵀ + biasᵢ + sᵢ · x Aᵢᵀ Bᵢᵀ        dx = Σᵢ dyᵢ Wᵢ + sᵢ · dyᵢ Bᵢ Aᵢ        dAᵢ = sᵢ · (dyᵢ Bᵢ)ᵀ x        dBᵢ = sᵢ · dyᵢᵀ (x Aᵢᵀ)

With the Aᵢ below one another, x Aᵀ, dA and A's share of dx are one product each, and x is visited once instead of once per layer: a
product of rank 16 takes as long as its large operand takes to be read. What autograd would add up in tensors of x's size is added
where it is computed.

The layers stay modules that are called one after the other. The first that is called computes all of them, the others find their
outputs waiting, as long as they are called with that very tensor, unchanged, in the same mode; a layer for which that is not so is
computed alone.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from frostline.adapt.lora_layers import LoRALinear
from frostline.kernels.frozen_product import FrozenProduct
from frostline.kernels.precision import cast, no_autocast
from frostline.models.model import with_own

Base = Tensor | FrozenProduct
"""A frozen weight (outputs, inputs), or what multiplies with it."""


def lora_siblings(
    x: Tensor, bases: Sequence[Base], biases: Sequence[Tensor | None], a: Sequence[Tensor], b: Sequence[Tensor], scalings: Sequence[float]
) -> tuple[Tensor, ...]:
    """``x`` (…, inputs); of each layer its base and bias (outputs,), which get no gradient, ``a`` (rank, inputs) and ``b`` (outputs,
    rank) → (…, outputs) of each."""
    (x,) = cast(x)  # type: ignore[assignment]
    bases = [cast(base)[0] if isinstance(base, Tensor) else base for base in bases]  # type: ignore[misc]
    return _LoraSiblings.apply(x, (bases, cast(*biases), scalings), *a, *b)


class _LoraSiblings(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: tuple[Sequence[Base], Sequence[Tensor | None], Sequence[float]], *factors: Tensor) -> Any:
        (bases, biases, scalings), rows = layers, x.reshape(-1, x.shape[-1])
        a, b = factors[: len(bases)], factors[len(bases) :]
        with no_autocast(x):
            whole = torch.cat(a).to(x.dtype)
            b = tuple(one.to(x.dtype) for one in b)
            lows = (rows @ whole.t()).split([len(one) for one in a], dim=1)
            outputs, shared = [], dict[type, Any]()
            for base, bias, low, one, scaling in zip(bases, biases, lows, b, scalings, strict=True):
                outputs.append(_product(base, rows, bias, shared).addmm_(low, one.t(), alpha=scaling).view(*x.shape[:-1], -1))
        ctx.layers, ctx.shape, ctx.types = (bases, scalings), x.shape, [one.dtype for one in factors]
        ctx.save_for_backward(rows, whole, *lows, *b)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        rows, whole, *rest = ctx.saved_tensors
        bases, scalings = ctx.layers
        lows, b = rest[: len(bases)], rest[len(bases) :]
        flat = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        with no_autocast(grads[0]):
            inner = torch.cat([(grad @ one).mul_(s) for grad, one, s in zip(flat, b, scalings, strict=True)], dim=1)  # (rows, all ranks)
            dx = _through(flat, bases).addmm_(inner, whole).view(ctx.shape) if ctx.needs_input_grad[0] else None
            da = (inner.t() @ rows).split([low.shape[1] for low in lows])
            db = [(low.t() @ grad).mul_(s).t() for low, grad, s in zip(lows, flat, scalings, strict=True)]
            factors = [grad.to(dtype) for grad, dtype in zip([*da, *db], ctx.types, strict=True)]
        return dx, None, *factors


def _product(base: Base, rows: Tensor, bias: Tensor | None, shared: dict[type, Any]) -> Tensor:
    """A layer's own; rows that are rounded for one product in 8 bits are ``shared`` with the next of its class."""
    if isinstance(base, Tensor):
        return nn.functional.linear(rows, base, bias)
    if type(base) not in shared:
        shared[type(base)] = base.ready(rows)
    return base.forward(shared[type(base)], bias)


def _through(grads: Sequence[Tensor], bases: Sequence[Base]) -> Tensor:
    """What passes through all of the bases."""
    dx = None
    for grad, base in zip(grads, bases, strict=True):
        if dx is None:
            dx = grad @ base if isinstance(base, Tensor) else base.gradient(grad)
        elif isinstance(base, Tensor):
            dx.addmm_(grad, base)
        else:
            dx.add_(base.gradient(grad))
    assert dx is not None, "a layer at least"
    return dx


def find_siblings(module: nn.Module, run: Callable[[], object]) -> list[list[str]]:
    """The names of the layers with LoRA that are called with one tensor while ``run`` runs, in the order of their calls."""
    seen: list[tuple[Tensor, int, list[str]]] = []  # the tensors are held: the next one would be another at the same address

    def see(name: str, part: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        x = next(iter([*args, *kwargs.values()]))
        if seen and seen[-1][0] is x and seen[-1][1] == x._version:
            seen[-1][2].append(name)
        else:
            seen.append((x, x._version, [name]))

    with contextlib.ExitStack() as stack:
        for name, part in module.named_modules():
            if isinstance(part, LoRALinear) and not part.transposed:
                stack.callback(part.register_forward_pre_hook(functools.partial(see, name), with_kwargs=True).remove)
        run()
    groups = [names for _, _, names in seen if len(set(names)) == len(names) > 1]
    return [names for names in groups if sum(bool(set(names) & set(other)) for other in groups) == 1]


@contextlib.contextmanager
def sharing(module: nn.Module, groups: Sequence[Sequence[str]], products: Mapping[str, FrozenProduct]) -> Iterator[None]:
    """Within, layers of these names that have a kernel are computed in these groups; ``products``: of their bases, where not their
    weights multiply."""
    with contextlib.ExitStack() as stack:
        for names in groups:
            layers: list[Any] = [module.get_submodule(name) for name in names]
            if all(layer.kernel is not None for layer in layers):
                shared = _Shared(layers, [products.get(f"{name}.base") for name in names])
                for place, layer in enumerate(layers):
                    stack.enter_context(with_own(layer, "kernel", functools.partial(shared.compute, place, layer.kernel)))
        yield


class _Shared:
    """A group of layers, and outputs that wait for the calls of those to whom they belong."""

    def __init__(self, layers: Sequence[LoRALinear], products: Sequence[FrozenProduct | None]) -> None:
        self.layers, self.products = layers, products
        self._of: tuple[Tensor, object] | None = None
        self._waiting: dict[int, Tensor] = {}

    def compute(self, place: int, alone: Callable[..., Tensor], x: Tensor, *operands: Any) -> Tensor:
        """As the kernel of the layer at this place."""
        if x.is_inference():  # has no version
            return alone(x, *operands)
        mode = x._version, torch.is_grad_enabled(), cast(x)[0].dtype  # type: ignore[union-attr]
        if self._of is None or self._of[0] is not x or self._of[1] != mode:
            self._waiting.clear()
        found = self._waiting.pop(place, None)
        if found is None and place == 0 and all(map(_is_frozen_but_for_one_update, self.layers)):
            self._waiting = dict(enumerate(self._all(x)))
            found = self._waiting.pop(place)
        self._of = (x, mode) if self._waiting else None
        return alone(x, *operands) if found is None else found

    def _all(self, x: Tensor) -> tuple[Tensor, ...]:
        pieces: list[Any] = [layer.only_update() for layer in self.layers]
        (given,) = cast(x)
        bases: list[Any] = [
            product if product is not None and product.takes(given.dtype) else layer.base.weight  # type: ignore[union-attr]
            for layer, product in zip(self.layers, self.products, strict=True)
        ]
        biases, scalings = [layer.base.bias for layer in self.layers], [piece.scaling for piece in pieces]
        a, b = [piece.lora_A for piece in pieces], [piece.lora_B for piece in pieces]
        return lora_siblings(x, bases, biases, a, b, scalings)  # type: ignore[arg-type]


def _is_frozen_but_for_one_update(layer: LoRALinear) -> bool:
    return layer.only_update() is not None and not any(parameter.requires_grad for parameter in layer.base.parameters(recurse=False))
