"""A frozen weight in int8, forward and for the gradient that passes through; not exact.

    y ≈ (q(x) q(W)ᵀ) · s_x s_w        q(v) = round(v / s), s = max |v| / 127

with one scale s_w per output (of the transposed weight: per input), found once, and one s_x per row, found at each call, so that
a token with an outlier coarsens itself only and a row's result does not depend on the rows beside it. That a row has its own scale
is what gradients need most: theirs differ by orders of magnitude.

oneDNN multiplies 8-bit numbers without sign by numbers with sign, so activations are stored around 128, which it takes off again.
Sums are integers, hence the same whatever their order.
"""

from __future__ import annotations

import platform
from typing import NamedTuple

import torch
from torch import Tensor

from frostline.kernels.frozen_product import FrozenProduct

_SMALLEST = 1e-30
_MIDDLE = 128
_ROWS = 512
"""At a time, so that what lies between the passes stays in the processor's cache."""


def can_lower(weight: Tensor) -> bool:
    """Whether this machine multiplies int8 fast and rightly: on x86, only VNNI sums the products of 8 bits without saturation."""
    if weight.device.type != "cpu" or not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return False
    return platform.machine().lower() in ("x86_64", "amd64") and torch.cpu._is_vnni_supported()


class _Form(NamedTuple):
    packed: Tensor
    scales: Tensor
    """float32 (outputs,)"""
    zeros: Tensor
    """int64 (outputs,)"""


class Int8Product(FrozenProduct):
    """The product in int8; what comes in and goes out is float32 or bfloat16."""

    bytes_per_number = 1
    exact = False

    def make(self, weight: Tensor) -> _Form:
        weight = weight.float()
        scales = weight.abs().amax(1).clamp_min_(_SMALLEST) / 127
        quantised = (weight / scales[:, None]).round_().to(torch.int8)
        packed = torch.ops.onednn.qlinear_prepack(quantised, None)
        return _Form(packed=packed, scales=scales, zeros=torch.zeros(len(weight), dtype=torch.int64))

    def multiply(self, rows: Tensor, form: _Form, bias: Tensor | None) -> Tensor:
        y = rows.new_empty(len(rows), len(form.scales))
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            scale = part.abs().amax(1, keepdim=True).float().clamp_min_(_SMALLEST).div_(127)
            quantised = (part / scale).add_(_MIDDLE + 0.5).to(torch.uint8)  # cut off after half is added: rounded
            product = torch.ops.onednn.qlinear_pointwise(
                quantised, 1.0, _MIDDLE, form.packed, form.scales, form.zeros, None, 1.0, 0, rows.dtype, "none", [], ""
            )
            torch.mul(product, scale, out=y[start : start + _ROWS])
        return y if bias is None else y.add_(bias)
