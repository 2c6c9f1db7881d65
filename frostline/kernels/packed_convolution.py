"""A frozen convolution with its batch norm and activation, packed once for oneDNN; exact, and no compiler is needed.

The norm is folded into the weight, and the activation is applied as the sums leave the processor's registers: of three passes over
the images one is left.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from frostline.kernels.convolution_unit import ConvolutionUnit
from frostline.kernels.frozen_convolution import FrozenConvolution


class PackedUnit(NamedTuple):
    """A unit's numbers as oneDNN multiplies them."""

    weight: Tensor
    bias: Tensor | None


class PackedConvolution(FrozenConvolution):
    """Computes in ``dtype``; packed for ``images`` of (count, channels, height, width). It is right for others too, but they can take
    fifty times as long: those of another size, and one alone where it was packed for several. How many these are does not matter."""

    def __init__(self, unit: ConvolutionUnit, *, dtype: torch.dtype, images: tuple[int, ...]) -> None:
        super().__init__(unit)
        self.dtype, self.images = dtype, images
        self.bytes_per_number = dtype.itemsize

    def takes(self, dtype: torch.dtype) -> bool:
        return dtype == self.dtype

    def make(self, _: Tensor) -> PackedUnit:
        """Of the unit, norm and all."""
        weight, bias = self.unit.folded()
        stride, padding, dilation, groups = self.unit.geometry
        shape = list(self.images)
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight.to(self.dtype), padding, stride, dilation, groups, shape)
        return PackedUnit(weight=packed, bias=None if bias is None else bias.to(self.dtype))

    def multiply(self, rows: Tensor, form: PackedUnit, bias: Tensor | None) -> Tensor:
        """(images, inputs, height, width) → (images, outputs, …)."""
        stride, padding, dilation, groups = self.unit.geometry
        return torch.ops.mkldnn._convolution_pointwise(
            rows, form.weight, form.bias, padding, stride, dilation, groups, *self.unit.function, ""
        )
