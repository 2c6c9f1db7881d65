"""A frozen weight in fp8 (e4m3: 4 bits of exponent, 3 of mantissa) on a GPU that multiplies it, forward and for the gradient; not exact.

    y ≈ (q(x) q(W)ᵀ) · s_x s_w        q(x) = x / s_x in e4m3, s_x = max |x| / 448, of each row

A number is rounded by up to 1/16 of itself wherever it lies between 448 and 2⁻⁶, and not by a share of its row's largest as in int8: on
random numbers a product is 3.7 % off, three times as much as in int8, and outliers do no harm.

Gradients are in e4m3 too. Micikevicius et al. (FP8 formats for deep learning, 2022) take e5m2 for them, which reaches further and is twice
as coarse, for they have one scale for a whole tensor. Rows of a gradient differ by orders of magnitude, the numbers within one far less:
with a scale for each row 448 / 2⁻⁹, a range of 2·10⁵, is enough. So decided for DeepSeek-V3 as well (technical report, 2024, 3.3.2:
e4m3 for all tensors, scales for tiles of 1 × 128).

``torch.nn.functional.scaled_mm`` (public since PyTorch 2.10) with a scale for each row, as CUDA has it (PyTorch's ScaledBlas.cpp and
RowwiseScaledMM.cu): both sizes of the weight are multiples of 16; the second matrix lies column by column; scales are float32, (rows, 1)
and (1, outputs); sums are float32, and bfloat16 is asked for, which every version gives. With one scale for a tensor any GPU from 8.9 on
has it. With one for each row it came later and generation by generation: 9.0 first, then 8.9 and 10.x, then 11.x and 12.x (refused by
PyTorch 2.10, issue 192707); never on Windows, nor for CUDA 11. Where a trial fails int8 is taken. On the CPU the same function is right,
and slow.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from frostline.kernels.frozen_product import QuantisedRows
from frostline.kernels.row_kernels import SMALLEST
from frostline.kernels.row_scaled_product import RowScaledProduct

_TYPE = torch.float8_e4m3fn
_LARGEST = torch.finfo(_TYPE).max  # 448


class Fp8Product(RowScaledProduct):
    """The product in e4m3."""

    lowered_to = "fp8"
    capability = (8, 9)
    multiple = 16

    @staticmethod
    def quantise(rows: Tensor) -> tuple[Tensor, Tensor]:
        largest = torch.linalg.vector_norm(rows, math.inf, dim=1, keepdim=True, dtype=torch.float32)
        scales = largest.clamp_min_(SMALLEST) / _LARGEST
        return (rows / scales).to(_TYPE), scales

    @staticmethod
    def product(rows: QuantisedRows, weight: QuantisedRows) -> Tensor:
        by_row, scales = functional.ScalingType.RowWise, weight.scales.view(1, -1)
        return functional.scaled_mm(rows.steps, weight.steps.t(), rows.scales, by_row, scales, by_row, output_dtype=torch.bfloat16)
