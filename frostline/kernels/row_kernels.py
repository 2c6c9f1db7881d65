"""The passes over rows around a product in int8, in C++ (row_kernels.cpp) where it can be built, else in PyTorch: the same numbers.

PyTorch takes four passes to round rows to their steps, which costs more than the product itself.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from frostline.kernels.native import TYPES, VECTORISED, Library, at, sizes

library = Library(Path(__file__).with_suffix(".cpp"), *VECTORISED)
SMALLEST = 1e-30
"""Of scales: rows and weights of zeros stay zeros."""
_ROWS = 512
"""At a time in PyTorch, so that what lies between the passes stays in the processor's cache."""


def quantise_rows(x: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """Of (rows, columns), float32 or bfloat16: unsigned steps around ``half + 1``, and scales, float32 (rows, 1), with
    x ≈ (steps - half - 1) · scale and ``half`` the largest step of each row."""
    x = x.contiguous()
    steps, scales = torch.empty(x.shape, dtype=torch.uint8), torch.empty(len(x), 1)
    if x.dtype in TYPES and not library.missing:
        run = library.function("quantise", x.dtype)
        run(at(x), *sizes(x), ctypes.c_float(SMALLEST), ctypes.c_int(half), at(steps), at(scales))
        return steps, scales
    for start in range(0, len(x), _ROWS):
        part = slice(start, start + _ROWS)
        scales[part] = x[part].abs().amax(1, keepdim=True).float().clamp_min_(SMALLEST) / half
        steps[part].copy_((x[part] * (1 / scales[part])).add_(half + 1.5))  # cut off after half is added: rounded
    return steps, scales


def scale_rows(y: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """``y`` (rows, columns), contiguous, times its row's scale, plus ``bias`` (columns), in place."""
    if y.dtype in TYPES and not library.missing:
        bias = None if bias is None else bias.to(y.dtype).contiguous()
        library.function("scale", y.dtype)(at(y), *sizes(y), at(scales), at(bias))
        return y
    for start in range(0, len(y), _ROWS):
        y[start : start + _ROWS].mul_(scales[start : start + _ROWS])
    return y if bias is None else y.add_(bias)
