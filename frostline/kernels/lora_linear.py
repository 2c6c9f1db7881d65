"""A linear layer with its LoRA update as one function of autograd.

    y = x Wᵀ + bias + s · drop(x) Aᵀ Bᵀ

    dx = dy W + s · drop(dy B A)        dA = s · (dy B)ᵀ drop(x)        dB = s · dyᵀ (drop(x) Aᵀ)

Written as layers, autograd keeps x, the dropped x, the rank-r product and the update, and adds tensors of the outputs' and the
inputs' size once more in each direction. Here x (which the layer's neighbours hold anyway), the rank-r product and the mask are
all that is kept, and both additions happen inside a matrix product that writes where the base's result stands.

The mask is Boolean, True where x is kept; the factor 1 / (1 - p) belongs into ``scaling``: both are exact, and a mask of bytes
takes a quarter of the room. A weight stored transposed (the Conv1D of GPT-2) is handed over as ``weight.t()``, a view.

A frozen ``F.linear`` needs no function of its own: PyTorch keeps its weight and not its input (a test watches that this stays so).
LoRA: Hu et al., ICLR 2022.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from frostline.adapt.lora_layers import LoRALinear
from frostline.adapt.wrapper import is_transposed
from frostline.kernels.frozen_product import FrozenProduct
from frostline.kernels.precision import cast, no_autocast
from frostline.models.model import with_own


def lora_linear(
    x: Tensor, weight: Tensor | FrozenProduct, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float, dropout_mask: Tensor | None = None
) -> Tensor:
    """``x`` (…, inputs), ``weight`` (outputs, inputs), ``a`` (rank, inputs), ``b`` (outputs, rank), mask bool like ``x`` → (…, outputs).

    ``weight`` may be what multiplies with it, where it is frozen.
    """
    assert dropout_mask is None or (dropout_mask.dtype == torch.bool and dropout_mask.shape == x.shape), (
        f"a mask of {dropout_mask.dtype} {tuple(dropout_mask.shape)} for x of {tuple(x.shape)}: expected bool of the same shape"
    )
    product = None if isinstance(weight, Tensor) else weight
    tensors = cast(x, weight if isinstance(weight, Tensor) else None, bias)
    return _LoraLinear.apply(*tensors, a, b, _Update(scaling=scaling, mask=dropout_mask, product=product))


@dataclass(frozen=True, kw_only=True)
class _Update:
    scaling: float
    mask: Tensor | None
    product: FrozenProduct | None


class _LoraLinear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, a: Tensor, b: Tensor, update: _Update) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        ctx.types = a.dtype, b.dtype
        with no_autocast(x):
            a, b = a.to(x.dtype), b.to(x.dtype)  # here, where no node of autograd undoes it for each of them
            if update.product is not None:
                y = update.product.forward(rows, bias)
            else:
                assert weight is not None, "a weight or its product"
                y = functional.linear(rows, weight, bias)
            low = _dropped(rows, update.mask) @ a.t()  # (rows, rank)
            y.addmm_(low, b.t(), alpha=update.scaling)
        _, of_weight, _, of_a, of_b, _ = ctx.needs_input_grad
        ctx.update = update
        ctx.shape = x.shape
        ctx.save_for_backward(rows if of_a or of_weight else None, low if of_b else None, weight, a, b)
        return y.view(*x.shape[:-1], len(b))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        rows, low, weight, a, b = ctx.saved_tensors
        update: _Update = ctx.update
        of_x, of_weight, of_bias, of_a, of_b, _ = ctx.needs_input_grad
        grad = grad.reshape(-1, grad.shape[-1])
        with no_autocast(grad):
            inner = (grad @ b).mul_(update.scaling) if of_x or of_a else None  # (rows, rank)
            dx = None
            if of_x and inner is not None:
                through = grad @ weight if update.product is None else update.product.gradient(grad)
                dx = _with_update(through, inner, a, update.mask).view(ctx.shape)
            da = (inner.t() @ _dropped(rows, update.mask)).to(ctx.types[0]) if of_a and inner is not None else None
            db = (low.t() @ grad).mul_(update.scaling).t().to(ctx.types[1]) if of_b else None  # twice as fast as gradᵀ low
            dw = grad.t() @ rows if of_weight else None
            dbias = grad.sum(0) if of_bias else None
        return dx, dw, dbias, da, db, None


def _with_update(dx: Tensor, inner: Tensor, a: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return dx.addmm_(inner, a)
    return dx.add_((inner @ a).mul_(mask.view_as(dx)))


def _dropped(rows: Tensor, mask: Tensor | None) -> Tensor:
    return rows if mask is None else rows * mask.view_as(rows)


@contextlib.contextmanager
def fused(module: nn.Module) -> Iterator[None]:
    """Within, plain LoRA updates of linear layers are computed with their layers. Outside, a module is what its reader will have."""
    with contextlib.ExitStack() as stack:
        for part in module.modules():
            if isinstance(part, LoRALinear) and multiplies_only(part.base):
                stack.enter_context(with_own(part, "kernel", _stored_transposed if part.transposed else lora_linear))
        yield


def multiplies_only(base: nn.Module) -> bool:
    """Whether calling this layer is its product and nothing else: no forward of its own, of its class or its instance, and no hook."""
    hooked = base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks
    usual = type(base).forward is nn.Linear.forward or is_transposed(base)
    return usual and "forward" not in vars(base) and not hooked


def _stored_transposed(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    """For a layer whose weight is stored (inputs, outputs): GPT-2's Conv1D."""
    return lora_linear(x, weight.t(), *rest)
