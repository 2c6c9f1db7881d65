"""Which product in 8 bits a frozen weight gets, by the device it is on: fp8 on a GPU that has it for its sizes, else int8 on a GPU of
NVIDIA's, int8 by oneDNN on the processor, and none elsewhere."""

from __future__ import annotations

from torch import Tensor

from frostline.kernels.fp8_product import Fp8Product
from frostline.kernels.frozen_product import FrozenProduct
from frostline.kernels.int8_gpu_product import Int8GpuProduct
from frostline.kernels.int8_product import Int8Product, can_lower
from frostline.kernels.row_scaled_product import RowScaledProduct

_OF_GPUS: tuple[type[RowScaledProduct], ...] = (Fp8Product, Int8GpuProduct)


def lowered_product(weight: Tensor) -> FrozenProduct | None:
    """What multiplies with a linear layer's weight (outputs, inputs) in 8 bits; None where nothing does, there or for these sizes."""
    if weight.device.type == "cpu":
        return Int8Product(weight) if can_lower(weight) else None
    kind = next((kind for kind in _OF_GPUS if kind.can_multiply(weight)), None)
    return None if kind is None else kind(weight)
