"""RMSNorm as one function of autograd.

    y = x r w        r = 1 / √(mean x² + ε)        dx = r (dy w - x r² mean(dy w x))        dw = Σ dy x r

Written as layers (Zhang and Sennrich, "Root mean square layer normalization", 2019), autograd keeps x, its square's operand, the
normed x and the factor, and passes eight times over numbers of x's size; here x and one number a row are kept. Sums are float32.
On a CPU either direction is one pass (:mod:`frostline.kernels.block_kernels`).

Modules are found by what they compute, not by their names: :func:`find` runs those that could be one on random numbers.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from frostline.kernels import block_kernels, native
from frostline.kernels.precision import wide
from frostline.models.model import evaluating, with_own

_CLOSE = 1e-5


@dataclass(frozen=True, kw_only=True)
class Norm:
    """What a module computes."""

    eps: float
    offset: float
    """Added to the weight: 1 in Gemma, else 0."""
    narrow: bool
    """Whether linear layers follow, which autocast would hand a narrower type: then it is written at once."""


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """``x`` (…, features), ``weight`` (features,) → the same shape, in ``dtype``."""
    return _RMSNorm.apply(x, weight, eps, dtype)


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        if block_kernels.takes(x, weight) and dtype in native.TYPES:
            y, factor = block_kernels.rms_norm(x, weight, eps, dtype)
            ctx.save_for_backward(x, weight, factor)
            return y
        kind = wide(x.dtype)
        factor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=kind).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, factor)
        normed = x * factor
        return normed.mul_(weight) if normed.dtype == dtype else torch.mul(normed, weight, out=torch.empty_like(normed, dtype=dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, factor = ctx.saved_tensors
        of_x, of_weight, *_ = ctx.needs_input_grad
        kind, dx, dw = x.dtype, None, None
        if of_x and block_kernels.takes(x, weight, grad):
            of_x, dx = False, block_kernels.rms_norm_gradient(grad, x, weight, factor)
        x = x.to(factor.dtype) if of_x or of_weight else x
        if of_weight:
            dw = torch.linalg.vecdot((grad * factor).flatten(0, -2), x.flatten(0, -2), dim=0).to(weight.dtype)
        if of_x:
            dx = (grad * weight).to(factor.dtype)
            share = torch.linalg.vecdot(dx, x).unsqueeze(-1).mul_(factor.square()).div_(-x.shape[-1])
            dx = dx.addcmul_(x, share).mul_(factor).to(kind)
        return dx, dw, None, None


def find(module: nn.Module, blocks: list[str]) -> dict[str, Norm]:
    """The parts of a network that compute an RMSNorm, by their names; ``blocks``: the repeated ones, within which linear layers follow."""
    found = {}
    for name, part in module.named_modules():
        weight = part._parameters.get("weight")
        eps = getattr(part, "variance_epsilon", getattr(part, "eps", None))
        if not isinstance(weight, Tensor) or weight.dim() != 1 or not isinstance(eps, float) or list(part.children()):
            continue
        offset = next((offset for offset in (0.0, 1.0) if _computes(part, weight, eps, offset)), None)
        if offset is not None and len(list(part.parameters())) == 1:
            found[name] = Norm(eps=eps, offset=offset, narrow=any(name.startswith(f"{block}.") for block in blocks))
    return found


@contextlib.contextmanager
def normed(module: nn.Module, norms: Mapping[str, Norm]) -> Iterator[None]:
    """Within, these parts are computed by :func:`rms_norm`."""
    with contextlib.ExitStack() as stack:
        for name, norm in norms.items():
            part = module.get_submodule(name)
            stack.enter_context(with_own(part, "forward", functools.partial(_forward, part, norm)))
        yield


def _forward(part: nn.Module, norm: Norm, *args: Tensor, **kwargs: Tensor) -> Tensor:
    (x,) = (*args, *kwargs.values())
    weight: Any = part.weight
    kind = x.device.type
    if norm.narrow and x.dtype == torch.float32 and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    else:
        dtype = x.dtype if norm.offset else torch.promote_types(x.dtype, weight.dtype)
    return rms_norm(x, weight + norm.offset if norm.offset else weight, norm.eps, dtype)


@torch.no_grad()
def _computes(part: nn.Module, weight: Tensor, eps: float, offset: float) -> bool:
    x = torch.linspace(-2, 3, 4 * len(weight), device=weight.device, dtype=wide(weight.dtype)).sin().view(4, -1) * 3
    other = torch.linspace(0.5, 1.5, len(weight), device=weight.device, dtype=weight.dtype)  # zeros, say, would show nothing
    expected = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * (other + offset)
    try:
        with evaluating(part):  # a batch norm would learn from these numbers
            output = functional_call(part, {"weight": other}, (x,))
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False  # it wants other inputs
    return isinstance(output, Tensor) and output.shape == x.shape and bool(torch.allclose(output, expected, rtol=_CLOSE, atol=_CLOSE))
