"""A frozen convolution and what follows it in int8, forward only; not exact.

    y ≈ activation(conv(q(x) - z, q(W)) · s_x s_w + bias)       q(x) = round(x / s_x) + z, cut off at 0 and at the largest step

with one scale s_w per output channel, and one s_x and z for all inputs, found before the run from the range of values that a few
of the user's own images gave here: an image's result does not depend on the images beside it. A batch norm is in W and in the bias.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from frostline.kernels.convolution_unit import ConvolutionUnit
from frostline.kernels.frozen_convolution import FrozenConvolution
from frostline.kernels.int8_product import Int8Form, largest_activation, quantise_weight
from frostline.kernels.row_kernels import SMALLEST

_NUMBERS = 2**17
"""At a time, so that what lies between the passes stays in the processor's cache."""


class Int8Unit(NamedTuple):
    """A unit's numbers as oneDNN multiplies them."""

    weight: Int8Form
    bias: Tensor | None


class Int8Convolution(FrozenConvolution):
    """Computes a unit; ``low`` and ``high``: the range of what comes in."""

    bytes_per_number = 1
    lowered_to = "int8"

    def __init__(self, unit: ConvolutionUnit, *, low: float, high: float) -> None:
        super().__init__(unit)
        low, high, self._largest = min(low, 0.0), max(high, 0.0), largest_activation()  # zero is a step, as padding needs it
        self._scale = max((high - low) / self._largest, SMALLEST)
        self._zero = round(-low / self._scale)

    def make(self, _: Tensor) -> Int8Unit:
        """Of the unit, norm and all."""
        weight, bias = self.unit.folded()
        quantised, scales = quantise_weight(weight)
        packed = torch.ops.onednn.qconv_prepack(quantised, scales, self._scale, self._zero, *self.unit.geometry, None)
        form = Int8Form(packed=packed, scales=scales, zeros=torch.zeros(len(weight), dtype=torch.int64))
        return Int8Unit(weight=form, bias=bias)

    def multiply(self, rows: Tensor, form: Int8Unit, bias: Tensor | None) -> Tensor:
        """(images, inputs, height, width) → (images, outputs, …), channels innermost."""
        return self._convolve(self.steps(rows), form, 1.0, 0, rows.dtype)

    def of_steps(self, steps: Tensor, to: Int8Convolution | torch.dtype) -> Tensor:
        """Of what :meth:`steps` gives: floating-point numbers, or the steps that another convolution takes."""
        form = self._form(transposed=False)
        if isinstance(to, torch.dtype):
            return self._convolve(steps, form, 1.0, 0, to)
        return self._convolve(steps, form, to._scale, to._zero, torch.uint8)

    def _convolve(self, steps: Tensor, form: Int8Unit, scale: float, zero: int, to: torch.dtype) -> Tensor:
        name, numbers = self.unit.function
        return torch.ops.onednn.qconv_pointwise(
            steps, self._scale, self._zero, *form.weight, form.bias, *self.unit.geometry, scale, zero, to, name, numbers, ""
        )

    def steps(self, images: Tensor) -> Tensor:
        """The unsigned steps of floating-point images, channels innermost."""
        inner = images.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        values, steps = inner.reshape(-1), torch.empty(inner.numel(), dtype=torch.uint8)
        buffer = torch.empty(min(_NUMBERS, inner.numel()))
        for start in range(0, len(values), _NUMBERS):
            part = values[start : start + _NUMBERS]
            step = buffer[: len(part)].copy_(part).mul_(1 / self._scale).add_(self._zero + 0.5)
            steps[start : start + _NUMBERS].copy_(step.clamp_(0, self._largest))  # cut off after half is added: rounded
        return steps.view(inner.shape).permute(0, 3, 1, 2)
