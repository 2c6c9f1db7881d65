"""What is particular to fp8; what it shares with int8 on a GPU is tested by test_row_scaled_product.py."""

from __future__ import annotations

import pytest
import torch

from frostline.kernels.fp8_product import Fp8Product
from frostline.kernels.int8_gpu_product import Int8GpuProduct
from frostline.kernels.row_scaled_product import works


def test_numbers_are_rounded_to_three_bits_behind_the_first() -> None:
    """By up to 1/16 of themselves, from the largest of a row down to a 29 000th of it, and the largest not at all."""
    largest = 448.0
    x = torch.logspace(0, -4.4, 2000, dtype=torch.float64).float()[None] * torch.tensor([[largest], [1e-20], [3e20]])
    steps, scales = Fp8Product.quantise(x)
    assert steps.dtype == torch.float8_e4m3fn and scales.dtype == torch.float32 and scales.is_contiguous()
    errors = (steps.float() * scales - x).abs() / x
    assert float(errors.max()) <= 1 / 16 and float(errors[:, 0].max()) < 1e-6


@pytest.mark.skipif(not works(Fp8Product, torch.device("cpu")), reason="this build of PyTorch does not multiply fp8 on the processor")
def test_outliers_do_no_harm() -> None:
    """A column that is 300 times as large as the others coarsens them in int8, and not in fp8; that is what it is for."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(60, 96, generator=generator), torch.randn(80, 96, generator=generator)
    x[:, 7] *= 300
    weight[:, 7] = 0
    exact = x @ weight.T
    errors = [float((kind(weight).forward(x, None) - exact).norm() / exact.norm()) for kind in (Fp8Product, Int8GpuProduct)]
    assert errors[0] < 0.05 < 0.3 < errors[1]
