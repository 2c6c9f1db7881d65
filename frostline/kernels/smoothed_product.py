"""A product in 8 bits where a few columns of what comes in are far larger than the others, and would take all its steps:

    x Wᵀ = (x / f) (W f)ᵀ        f = √(max |x| / max |W|), for each column

so that both have outliers of like size (SmoothQuant, Xiao et al., ICML 2023). Factors are powers of two: dividing by them is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from frostline.kernels.frozen_product import FrozenProduct
from frostline.kernels.row_kernels import SMALLEST


class SmoothedProduct(FrozenProduct):
    """Multiplies as ``plain`` does, of a smoothed weight and smoothed rows; ``exponents``: of the factors, one for each column."""

    def __init__(self, plain: FrozenProduct, exponents: Sequence[int]) -> None:
        super().__init__(plain.weight)
        self.plain, self.exponents = plain, list(exponents)
        self.bytes_per_number, self.lowered_to = plain.bytes_per_number, plain.lowered_to
        self._factors = torch.exp2(torch.tensor(self.exponents, dtype=torch.float32, device=plain.weight.device))

    def takes(self, dtype: torch.dtype) -> bool:
        return self.plain.takes(dtype)

    def make(self, weight: Tensor) -> Any:
        return self.plain.make(weight)

    def multiply(self, rows: Any, form: Any, bias: Tensor | None) -> Tensor:
        return self.plain.multiply(rows, form, bias)

    def forward(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        return super().forward(rows * (1 / self._factors).to(rows), bias)

    def matrix(self, transposed: bool) -> Tensor:
        """A gradient, whose columns are the outputs, is multiplied by the weight as it is."""
        return super().matrix(True) if transposed else super().matrix(False) * self._factors.to(self.weight)


def smoothing(weight: Tensor, largest: Tensor) -> list[int]:
    """The exponents of the factors, by the largest magnitudes of each column of what comes in (inputs,); 0 in the middle, for only
    their ratios matter."""
    magnitudes = weight.detach().float().abs().amax(0).clamp_min(SMALLEST)
    exponents = (torch.log2(largest.float().clamp_min(SMALLEST) / magnitudes) / 2).clamp(-60, 60)
    return (exponents - exponents.median()).round().int().tolist()
