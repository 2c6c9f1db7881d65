"""A frozen weight in int8 on a GPU, forward and for the gradient that passes through; not exact.

    y ≈ (q(x) q(W)ᵀ) · s_x s_w        q(x) = round(x / s_x), s_x = max |x| / 127, of each row

For GPUs without fp8: Turing (7.5) is the first whose tensor cores multiply int8, and adds in int32. Sums are integers, hence the same
whatever their order. What differs from :mod:`frostline.kernels.int8_product` is what multiplies: here both sides have a sign.

``torch._int_mm`` is not public, and PyTorch has no public product of int8 that gives int32. On CUDA (cuBLASLt; Blas.cpp) it takes more than
16 rows, and inputs and outputs that are multiples of 8; the second matrix lies column by column. Fewer rows get zeros below them, which are
cut off again. Rounding and scaling are passes over memory of their own: which layers they leave faster is measured.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from frostline.kernels.frozen_product import QuantisedRows
from frostline.kernels.int8_product import quantise_weight
from frostline.kernels.row_scaled_product import RowScaledProduct

_LEAST_ROWS = 32


class Int8GpuProduct(RowScaledProduct):
    """The product in int8, both sides with a sign."""

    lowered_to = "int8"
    capability = (7, 5)
    multiple = 8

    @staticmethod
    def quantise(rows: Tensor) -> tuple[Tensor, Tensor]:
        steps, scales = quantise_weight(rows)
        return steps, scales[:, None]

    @staticmethod
    def product(rows: QuantisedRows, weight: QuantisedRows) -> Tensor:
        steps, count = rows.steps, len(rows.steps)
        if count < _LEAST_ROWS:
            steps = functional.pad(steps, (0, 0, 0, _LEAST_ROWS - count))
        sums = torch._int_mm(steps, weight.steps.t())[:count]
        return (sums * rows.scales).mul_(weight.scales.view(1, -1))
