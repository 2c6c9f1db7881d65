"""Rotary positions as one function of autograd: x cos + rotate_half(x) sin, where rotate_half swaps the halves and negates the second.

Su et al., "RoFormer", 2021. The halves of x are multiplied where they lie, in one pass over numbers of x's size on a CPU
(:mod:`frostline.kernels.block_kernels`) and else in two, instead of five, and the gradient is the same function with -sin. Under
autocast the result has the type that attention would cast it to. ``transformers`` calls one function of each architecture's module
for it, which is exchanged within :func:`rotated`, if it computes this (:func:`find` tries).
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from frostline.kernels import block_kernels, native

_NAME = "apply_rotary_pos_emb"


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x`` (…, size); ``cos`` and ``sin`` broadcast to it, the second half of their last axis as the first."""
    return _Rotary.apply(x, cos, sin)


class _Rotary(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype, kind = x.dtype, x.device.type
        dtype = torch.promote_types(x.dtype, cos.dtype)
        if torch.is_autocast_enabled(kind) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(kind)
        return _rotated(x, cos, sin, 1, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, sin, -1, ctx.dtype), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, sign: int, dtype: torch.dtype) -> Tensor:
    if block_kernels.rotates(x, cos, sin) and dtype in native.TYPES:
        return block_kernels.rotate(x, cos, sin, sign, dtype)
    half = x.shape[-1] // 2
    result = x * cos
    result[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-sign)
    result[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
    return result.to(dtype)


def find(module: nn.Module) -> list[ModuleType]:
    """The Python modules of a network's parts whose rotary positions these are."""
    names = sorted({type(part).__module__ for part in module.modules()})
    candidates = [found for name in names if (found := sys.modules.get(name)) is not None and hasattr(found, _NAME)]
    return [found for found in candidates if _computes(getattr(found, _NAME))]


@contextlib.contextmanager
def rotated(modules: Iterable[ModuleType]) -> Iterator[None]:
    """Within, the rotary positions of these are computed by :func:`rotary`."""
    with contextlib.ExitStack() as stack:
        for module in modules:
            plain = getattr(module, _NAME)
            stack.callback(setattr, module, _NAME, plain)
            setattr(module, _NAME, functools.partial(_both, plain))
        yield


def _both(plain: Callable[..., Any], q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> Any:
    """As ``transformers`` calls it; ``plain`` computes what is not this: angles that learn, or for a part of the features only."""
    if cos.requires_grad or sin.requires_grad or cos.shape[-1] != q.shape[-1]:
        return plain(q, k, cos, sin, *args, **kwargs)
    return _rotate(q, k, cos, sin, *args, **kwargs)


def _rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return rotary(q, cos, sin), rotary(k, cos, sin)


@torch.no_grad()
def _computes(apply: Any) -> bool:
    q, k = torch.linspace(-2, 3, 80).sin().view(1, 2, 5, 8), torch.linspace(-3, 1, 40).sin().view(1, 1, 5, 8)
    angles = torch.linspace(0, 3, 20).view(1, 5, 4).repeat(1, 1, 2)
    try:
        outputs, expected = apply(q, k, angles.cos(), angles.sin()), _rotate(q, k, angles.cos(), angles.sin())
        return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(outputs, expected, strict=True))
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False  # it wants other inputs
