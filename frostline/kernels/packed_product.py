"""A frozen weight packed once into the layout that oneDNN multiplies fastest by; exact, and no compiler is needed.

``F.linear`` packs its weight anew at every call (MKL), and under autocast casts it first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from frostline.kernels.frozen_product import FrozenProduct


def can_pack(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether this build of PyTorch packs such a weight, on this processor, to multiply in ``dtype`` (float32 or bfloat16)."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedProduct(FrozenProduct):
    """Multiplies in ``dtype``; packed for about so many ``rows`` at a time, right for any number."""

    def __init__(self, weight: Tensor, *, dtype: torch.dtype, rows: int) -> None:
        super().__init__(weight)
        self.dtype, self.rows = dtype, rows
        self.bytes_per_number = dtype.itemsize

    def takes(self, dtype: torch.dtype) -> bool:
        return dtype == self.dtype

    def make(self, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(weight.to(self.dtype), self.rows)

    def multiply(self, rows: Tensor, form: Tensor, bias: Tensor | None) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(rows, form, bias, "none", [], "")
