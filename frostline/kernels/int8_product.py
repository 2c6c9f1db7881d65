"""A frozen weight in int8, forward and for the gradient that passes through; not exact.

    y ≈ (q(x) q(W)ᵀ) · s_x s_w        q(W) = round(W / s_w), s_w = max |W| / 127        q(x) = round(x / s_x), s_x = max |x| / half

with one scale s_w per output (of the transposed weight: per input), found once, and one s_x per row, found at each call, so that
a token with an outlier coarsens itself only and a row's result does not depend on the rows beside it. That a row has its own scale
is what gradients need most: theirs differ by orders of magnitude.

oneDNN multiplies 8-bit numbers without sign by numbers with sign, so activations are stored around a middle, which it takes off
again. Sums are integers, hence the same whatever their order. Before VNNI, x86 adds two such products in 16 bits, which is too
narrow for 8-bit activations: there they have 7 bits (half is 63, not 127), and twice the error.
"""

from __future__ import annotations

import platform
from typing import NamedTuple

import torch
from torch import Tensor

from frostline.kernels.frozen_product import FrozenProduct, QuantisedRows
from frostline.kernels.row_kernels import SMALLEST, quantise_rows, scale_rows


def can_lower(weight: Tensor) -> bool:
    """Whether this build of PyTorch multiplies int8 by oneDNN on this processor; whether that is faster is measured."""
    if weight.device.type != "cpu" or not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return False
    return platform.machine().lower() in ("x86_64", "amd64") and torch.cpu._is_avx2_supported()


def largest_activation() -> int:
    """Of the unsigned activations of a product."""
    return 255 if torch.cpu._is_vnni_supported() else 127


class Int8Form(NamedTuple):
    """A weight as oneDNN multiplies it."""

    packed: Tensor
    scales: Tensor
    """float32 (outputs,)"""
    zeros: Tensor
    """int64 (outputs,)"""


def quantise_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (outputs, …) in int8, and its scales, one per output."""
    weight = weight.float()
    scales = weight.abs().flatten(1).amax(1).clamp_min_(SMALLEST) / 127
    return (weight / scales.view(-1, *[1] * (weight.dim() - 1))).round_().to(torch.int8), scales


class Int8Product(FrozenProduct):
    """The product in int8; what comes in and goes out is float32 or bfloat16."""

    bytes_per_number = 1
    lowered_to = "int8"

    def ready(self, rows: Tensor) -> QuantisedRows:
        """Rounded once, for any number of products."""
        return QuantisedRows(*quantise_rows(rows, largest_activation() // 2), rows.dtype)

    def make(self, weight: Tensor) -> Int8Form:
        quantised, scales = quantise_weight(weight)
        packed = torch.ops.onednn.qlinear_prepack(quantised, None)
        return Int8Form(packed=packed, scales=scales, zeros=torch.zeros(len(weight), dtype=torch.int64))

    def multiply(self, rows: Tensor | QuantisedRows, form: Int8Form, bias: Tensor | None) -> Tensor:
        steps, scales, dtype = rows if isinstance(rows, QuantisedRows) else self.ready(rows)
        middle = largest_activation() // 2 + 1
        y = torch.ops.onednn.qlinear_pointwise(
            steps, 1.0, middle, form.packed, form.scales, form.zeros, None, 1.0, 0, dtype, "none", [], ""
        )
        return scale_rows(y, scales, bias)
