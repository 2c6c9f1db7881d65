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

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from frostline.kernels.precision import cast, no_autocast


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float, dropout_mask: Tensor | None = None
) -> Tensor:
    """``x`` (…, inputs), ``weight`` (outputs, inputs), ``a`` (rank, inputs), ``b`` (outputs, rank), mask bool like ``x`` → (…, outputs)."""
    assert dropout_mask is None or (dropout_mask.dtype == torch.bool and dropout_mask.shape == x.shape), (
        f"a mask of {dropout_mask.dtype} {tuple(dropout_mask.shape)} for x of {tuple(x.shape)}: expected bool of the same shape"
    )
    return _LoraLinear.apply(*cast(x, weight, bias, a, b), _Update(scaling=scaling, mask=dropout_mask))


@dataclass(frozen=True, kw_only=True)
class _Update:
    scaling: float
    mask: Tensor | None


class _LoraLinear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, update: _Update) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        with no_autocast(x):
            y = base_product(rows, weight, bias)
            low = _dropped(rows, update.mask) @ a.t()  # (rows, rank)
            y.addmm_(low, b.t(), alpha=update.scaling)
        _, of_weight, _, of_a, of_b, _ = ctx.needs_input_grad
        ctx.scaling = update.scaling
        ctx.shape = x.shape
        ctx.save_for_backward(rows if of_a or of_weight else None, low if of_b else None, weight, a, b, update.mask)
        return y.view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        rows, low, weight, a, b, mask = ctx.saved_tensors
        of_x, of_weight, of_bias, of_a, of_b, _ = ctx.needs_input_grad
        grad = grad.reshape(-1, grad.shape[-1])
        with no_autocast(grad):
            inner = (grad @ b).mul_(ctx.scaling) if of_x or of_a else None  # (rows, rank)
            dx = _of_input(grad, weight, inner, a, mask).view(ctx.shape) if of_x and inner is not None else None
            da = inner.t() @ _dropped(rows, mask) if of_a and inner is not None else None
            db = (grad.t() @ low).mul_(ctx.scaling) if of_b else None
            dw = grad.t() @ rows if of_weight else None
            dbias = grad.sum(0) if of_bias else None
        return dx, dw, dbias, da, db, None


def base_product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer without its update, in a new tensor that the update is added to."""
    return functional.linear(rows, weight, bias)


def base_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """What comes back through the layer without its update, in a new tensor that the update's part is added to."""
    return grad @ weight


def _of_input(grad: Tensor, weight: Tensor, inner: Tensor, a: Tensor, mask: Tensor | None) -> Tensor:
    dx = base_gradient(grad, weight)
    if mask is None:
        return dx.addmm_(inner, a)
    return dx.add_((inner @ a).mul_(mask.view_as(dx)))


def _dropped(rows: Tensor, mask: Tensor | None) -> Tensor:
    return rows if mask is None else rows * mask.view_as(rows)
