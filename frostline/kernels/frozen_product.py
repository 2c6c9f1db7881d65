"""A frozen weight in a form made once for multiplying: ``x Wᵀ`` forward, ``dy W`` for the gradient that passes through.

``F.linear`` must take the weight as it lies, at every call; what is frozen can be packed or quantised once. The form of the
transposed weight is made when a gradient first asks for it, so a layer before the frost line never has one. A form is made anew
where the weight has been written to since.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor


class QuantisedRows(NamedTuple):
    """Rows (of what comes in, or of a weight) in 8 bits."""

    steps: Tensor
    """(rows, columns)"""
    scales: Tensor
    """What a step is worth, float32 (rows, 1)."""
    dtype: torch.dtype
    """Of the rows as they were, and of what comes out."""


class FrozenProduct(ABC):
    """``weight`` (outputs, inputs) is read when a form of it is made, and not changed."""

    bytes_per_number: float
    """That one form takes; there is one for each direction."""
    lowered_to: str = ""
    """The numbers of 8 bits that it multiplies, "int8" or "fp8"; none where it multiplies as the layer does."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self._forms: dict[bool, tuple[object, Any]] = {}

    @property
    def exact(self) -> bool:
        """Whether only the order of sums differs from the plain product."""
        return not self.lowered_to

    @property
    def outputs(self) -> int:
        return self.weight.shape[0]

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether it multiplies numbers of this type."""
        return dtype in (torch.float32, torch.bfloat16)

    def ready(self, rows: Tensor) -> Any:
        """What :meth:`forward` takes in place of rows that several products of this class multiply."""
        return rows

    def forward(self, rows: Any, bias: Tensor | None) -> Tensor:
        """(rows, inputs) → (rows, outputs), a new tensor; rows, or what :meth:`ready` makes of them."""
        return self.multiply(rows, self._form(transposed=False), bias)

    def gradient(self, grad: Tensor) -> Tensor:
        """(rows, outputs) → (rows, inputs), a new tensor."""
        return self.multiply(grad, self._form(transposed=True), None)

    @abstractmethod
    def make(self, weight: Tensor) -> Any:
        """The form of a contiguous matrix (outputs, inputs)."""

    @abstractmethod
    def multiply(self, rows: Any, form: Any, bias: Tensor | None) -> Tensor: ...

    def drop_forms(self) -> None:
        """Give back their memory; they are made again where one is asked for."""
        self._forms.clear()

    def matrix(self, transposed: bool) -> Tensor:
        """What the form of one direction is made of."""
        weight = self.weight.detach()
        return weight.t() if transposed else weight

    def version(self) -> object:
        """Changes where what a form is made of is written to."""
        return self.weight._version

    def _form(self, transposed: bool) -> Any:
        version = self.version()
        made_of, form = self._forms.get(transposed, (None, None))
        if made_of != version:
            with torch.inference_mode(False), torch.no_grad():
                form = self.make(self.matrix(transposed).contiguous())
            self._forms[transposed] = (version, form)
        return form
