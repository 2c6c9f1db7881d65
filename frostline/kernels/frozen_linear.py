"""A frozen linear layer whose weight multiplies in a form of its own: packed for this machine, or in int8.

    y = x Wᵀ + bias        dx = dy W        no gradient of W: it is frozen

Both products are asked of a :class:`FrozenProduct`; the input is not kept. Layers are reached for the length of a forward pass
only (:func:`multiplying`), so that a module is never left changed: what is saved, copied or hashed is the plain layer.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from frostline.adapt.lora_layers import LoRALinear
from frostline.kernels.frozen_product import FrozenProduct
from frostline.kernels.lora_linear import lora_linear
from frostline.kernels.precision import cast, no_autocast
from frostline.models.model import with_own


def frozen_linear(x: Tensor, bias: Tensor | None, product: FrozenProduct) -> Tensor:
    """``F.linear(x, weight, bias)``: ``x`` (…, inputs) → (…, outputs). ``bias`` may learn."""
    return _FrozenLinear.apply(*cast(x, bias), product)


class _FrozenLinear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, product: FrozenProduct) -> Tensor:
        ctx.product, ctx.shape = product, x.shape
        with no_autocast(x):
            return product.forward(x.reshape(-1, x.shape[-1]), bias).view(*x.shape[:-1], product.outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        of_x, of_bias, _ = ctx.needs_input_grad
        grad = grad.reshape(-1, grad.shape[-1])
        with no_autocast(grad):
            dx = ctx.product.gradient(grad).view(ctx.shape) if of_x else None
            return dx, grad.sum(0) if of_bias else None, None


@contextlib.contextmanager
def multiplying(module: nn.Module, products: Mapping[str, FrozenProduct]) -> Iterator[None]:
    """Within, the linear layers of these names (as in ``named_modules``) multiply by their products, under a LoRA update too."""
    with contextlib.ExitStack() as stack:
        for name, product in products.items():
            layer: Any = module.get_submodule(name)
            if not isinstance(layer, nn.Linear) or layer.weight.requires_grad:
                continue  # a convolution, or thawed since
            stack.enter_context(with_own(layer, "forward", functools.partial(_forward, layer, product, layer.forward)))
            around = module.get_submodule(name.rpartition(".")[0])
            if isinstance(around, LoRALinear) and around.kernel is not None:
                stack.enter_context(with_own(around, "kernel", functools.partial(_with_lora, product, around.kernel)))
        yield


def _forward(layer: nn.Linear, product: FrozenProduct, plain: Callable[..., Tensor], input: Tensor) -> Tensor:
    return frozen_linear(input, layer.bias, product) if _takes(product, input) else plain(input)


def _with_lora(product: FrozenProduct, plain: Callable[..., Tensor], x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return lora_linear(x, product, *rest) if _takes(product, x) else plain(x, weight, *rest)


def _takes(product: FrozenProduct, x: Tensor) -> bool:
    """Not where a network switches autocast off for a part of itself, say."""
    operand: Any = cast(x)[0]
    return product.takes(operand.dtype)
