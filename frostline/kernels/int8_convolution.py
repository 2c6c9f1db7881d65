"""A frozen convolution in int8, forward only; not exact.

    y ≈ conv(q(x) - z, q(W)) · s_x s_w + bias        q(x) = round(x / s_x) + z, cut off at 0 and at the largest activation

with one scale s_w per output channel, and one s_x and z for all inputs, found before the run from the range of values that a few
of the user's own images gave here: an image's result does not depend on the images beside it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from frostline.kernels.frozen_product import FrozenProduct
from frostline.kernels.int8_product import Int8Form, largest_activation, quantise_weight
from frostline.kernels.row_kernels import SMALLEST

_NUMBERS = 2**17
"""At a time, so that what lies between the passes stays in the processor's cache."""


class Int8Convolution(FrozenProduct):
    """``layer``'s convolution; ``low`` and ``high``: the range of what comes in."""

    bytes_per_number = 1
    exact = False

    def __init__(self, layer: nn.Conv2d, *, low: float, high: float) -> None:
        super().__init__(layer.weight)
        self._geometry: tuple[Any, ...] = (list(layer.stride), list(layer.padding), list(layer.dilation), layer.groups)
        low, high, self._largest = min(low, 0.0), max(high, 0.0), largest_activation()  # zero is a step, as padding needs it
        self._scale = max((high - low) / self._largest, SMALLEST)
        self._zero = round(-low / self._scale)

    def gradient(self, grad: Tensor) -> Tensor:
        """Raises NotImplementedError: what learns before a convolution keeps it in floating point."""
        raise NotImplementedError("a convolution in int8 passes no gradient")

    def make(self, weight: Tensor) -> Int8Form:
        """Of (outputs, inputs / groups, height, width)."""
        quantised, scales = quantise_weight(weight)
        packed = torch.ops.onednn.qconv_prepack(quantised, scales, self._scale, self._zero, *self._geometry, None)
        return Int8Form(packed=packed, scales=scales, zeros=torch.zeros(len(weight), dtype=torch.int64))

    def multiply(self, rows: Tensor, form: Int8Form, bias: Tensor | None) -> Tensor:
        """(images, inputs, height, width) → (images, outputs, …), channels innermost."""
        return self._convolve(self.steps(rows), form, bias, 1.0, 0, rows.dtype, "none")

    def of_steps(self, steps: Tensor, bias: Tensor | None, to: Int8Convolution | torch.dtype, *, relu: bool) -> Tensor:
        """Of what :meth:`steps` gives, after ReLU if so: floating-point numbers, or the steps that another convolution takes."""
        form, function = self._form(transposed=False), "relu" if relu else "none"
        if isinstance(to, torch.dtype):
            return self._convolve(steps, form, bias, 1.0, 0, to, function)
        return self._convolve(steps, form, bias, to._scale, to._zero, torch.uint8, function)

    def _convolve(self, steps: Tensor, form: Int8Form, bias: Tensor | None, scale: float, zero: int, to: torch.dtype, after: str) -> Tensor:
        return torch.ops.onednn.qconv_pointwise(
            steps, self._scale, self._zero, form.packed, form.scales, form.zeros, None if bias is None else bias.float(),
            *self._geometry, scale, zero, to, after, [], "",
        )  # fmt: skip

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
