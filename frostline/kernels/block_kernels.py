"""What the blocks of a transformer compute between their matrix products, in C++ (block_kernels.cpp) where it can be built: one pass
over memory each. :mod:`~frostline.kernels.rms_norm`, :mod:`~frostline.kernels.swiglu` and :mod:`~frostline.kernels.rotary` ask
whether it :func:`takes` their operands and compute them by PyTorch's passes where it does not.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from frostline.kernels.native import CONTRACTED, TYPES, Library, at, sizes

library = Library(Path(__file__).with_suffix(".cpp"), *CONTRACTED)


def takes(*tensors: Tensor) -> bool:
    """Whether tensors like these are computed here."""
    return all(tensor.device.type == "cpu" and tensor.dtype in TYPES for tensor in tensors) and not library.missing


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``x`` (…, features), ``weight`` (features,) → what :func:`frostline.kernels.rms_norm.rms_norm` gives, and a factor for each row,
    float32 (…, 1)."""
    rows, weight = x.reshape(-1, x.shape[-1]).contiguous(), weight.float().contiguous()
    y, factors = torch.empty(rows.shape, dtype=dtype), torch.empty(len(rows))
    run = library.function("rms_norm", rows.dtype, dtype)
    run(at(rows), *sizes(rows), at(weight), ctypes.c_float(eps), at(y), at(factors))
    return y.view(x.shape), factors.view(*x.shape[:-1], 1)


def rms_norm_gradient(grad: Tensor, x: Tensor, weight: Tensor, factors: Tensor) -> Tensor:
    """With respect to ``x``."""
    rows, grads, weight = (part.contiguous() for part in (x.reshape(-1, x.shape[-1]), grad, weight.float()))
    dx = torch.empty(rows.shape, dtype=x.dtype)
    run = library.function("rms_norm_gradient", rows.dtype, grads.dtype)
    run(at(grads), at(rows), *sizes(rows), at(weight), at(factors), at(dx))
    return dx.view(x.shape)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, of one shape and type."""
    gate, up = gate.contiguous(), up.contiguous()
    y = torch.empty(gate.shape, dtype=gate.dtype)
    library.function("swiglu", gate.dtype)(at(gate), at(up), ctypes.c_int64(gate.numel()), at(y))
    return y


def swiglu_gradient(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """With respect to ``gate`` and ``up``."""
    grad, gate, up = grad.contiguous(), gate.contiguous(), up.contiguous()
    of_gate, of_up = torch.empty(gate.shape, dtype=gate.dtype), torch.empty(gate.shape, dtype=gate.dtype)
    library.function("swiglu_gradient", gate.dtype)(at(grad), at(gate), at(up), ctypes.c_int64(gate.numel()), at(of_gate), at(of_up))
    return of_gate, of_up


def rotates(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether :func:`rotate` computes these: axes (rows, heads, tokens, size) or (rows, tokens, heads, size), an angle for all heads."""
    if not takes(x, cos, sin) or not x.dim() == cos.dim() == 4 or sin.shape != cos.shape or sin.stride() != cos.stride():
        return False
    if x.dtype == torch.float32 and cos.dtype != torch.float32:
        return False
    head = _head_axis(cos)
    angles = cos.shape[0] in (1, x.shape[0]) and cos.shape[head] == 1 and cos.shape[3 - head] == x.shape[3 - head]
    return angles and x.shape[3] == cos.shape[3] and x.shape[3] % 2 == 0 and x.stride(3) == cos.stride(3) == 1


def rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: int, dtype: torch.dtype) -> Tensor:
    """x cos + sign · rotate_half(x) sin, in ``dtype``, which is as wide as the angles' or narrower."""
    y, head = torch.empty_like(x, dtype=dtype), _head_axis(cos)
    token = 3 - head
    of_rows = cos.stride(0) if cos.shape[0] > 1 else 0
    steps = [part.stride(axis) for part in (x, y) for axis in (0, token, head)]
    work = _Rotation(x.shape[0], x.shape[token], x.shape[head], x.shape[3], *steps, of_rows, cos.stride(token), float(sign))
    library.function("rotate", x.dtype, cos.dtype, dtype)(ctypes.byref(work), at(x), at(cos), at(sin), at(y))
    return y


class _Rotation(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "tokens", "heads", "size")),
        *((f"{part}_{axis}", ctypes.c_int64) for part in ("x", "y") for axis in ("row", "token", "head")),
        *((f"angle_{axis}", ctypes.c_int64) for axis in ("row", "token")),
        ("sign", ctypes.c_float),
    ]


def _head_axis(cos: Tensor) -> int:
    return 1 if cos.shape[1] == 1 else 2
