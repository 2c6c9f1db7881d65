"""What products in 8 bits on a GPU share: one scale for each row, and one for each output; not exact.

    y ≈ (q(x) q(W)ᵀ) · s_x s_w        q(x) = round(x / s_x), s_x = max |x| / the largest number of 8 bits, of each row

What comes in is rounded row by row at each call, so that a token with an outlier coarsens itself only. A weight is rounded once, row by
row as well: its rows are the outputs, and the rows of the transposed weight the inputs.

Whether a GPU multiplies so is not read off its name: its generation says what it cannot do, and a small product, tried once, what this
build of PyTorch does there.
"""

from __future__ import annotations

import functools
from abc import abstractmethod

import torch
from torch import Tensor

from frostline.device import capability
from frostline.kernels.frozen_product import FrozenProduct, QuantisedRows

_SIDE, _TOLERANCE = 32, 0.02


class RowScaledProduct(FrozenProduct):
    """The product in 8 bits; what comes in and goes out is float32 or bfloat16."""

    bytes_per_number = 1
    capability: tuple[int, int]
    """The first generation of GPUs that has it, as in :func:`frostline.device.capability`."""
    multiple: int
    """That both sizes of a weight must be of, for both are summed over: outputs by the gradient."""

    @classmethod
    def can_multiply(cls, weight: Tensor) -> bool:
        """Whether the GPU that this weight is on has it for these sizes; whether that is faster is measured."""
        fits = all(size and size % cls.multiple == 0 for size in weight.shape)
        return fits and capability(weight.device) >= cls.capability and works(cls, weight.device)

    @staticmethod
    @abstractmethod
    def quantise(rows: Tensor) -> tuple[Tensor, Tensor]:
        """Steps and scales of rows, as in :class:`QuantisedRows`."""

    @staticmethod
    @abstractmethod
    def product(rows: QuantisedRows, weight: QuantisedRows) -> Tensor:
        """(rows, inputs) and (outputs, inputs) → (rows, outputs), a new tensor of floating-point numbers."""

    def ready(self, rows: Tensor) -> QuantisedRows:
        """Rounded once, for any number of products."""
        return QuantisedRows(*self.quantise(rows), rows.dtype)

    def make(self, weight: Tensor) -> QuantisedRows:
        return self.ready(weight)

    def multiply(self, rows: Tensor | QuantisedRows, form: QuantisedRows, bias: Tensor | None) -> Tensor:
        rows = rows if isinstance(rows, QuantisedRows) else self.ready(rows)
        y = self.product(rows, form).to(rows.dtype)
        return y if bias is None else y.add_(bias)


@functools.cache
def works(kind: type[RowScaledProduct], device: torch.device) -> bool:
    """Whether a small product on this device gives what it should; a build of PyTorch may lack it, for this GPU or at all."""
    numbers = torch.arange(1.0, _SIDE + 1, device=device)
    rows = numbers[:, None].expand(_SIDE, _SIDE)
    try:
        found = kind(rows).forward(rows, None)
        return torch.allclose(found, _SIDE * torch.outer(numbers, numbers), rtol=_TOLERANCE)
    except (AttributeError, RuntimeError, ValueError):
        return False
