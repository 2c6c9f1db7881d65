"""Outliers of a few columns, which would take all the steps of a product in int8, and their smoothing."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from frostline.kernels.frozen_product import FrozenProduct
from frostline.kernels.int8_gpu_product import Int8GpuProduct
from frostline.kernels.int8_product import Int8Product, can_lower
from frostline.kernels.smoothed_product import SmoothedProduct, smoothing


@pytest.mark.parametrize("kind", [Int8Product, Int8GpuProduct])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_outliers_of_a_few_columns_are_smoothed(dtype: torch.dtype, kind: type[FrozenProduct]) -> None:
    if kind is Int8Product and not can_lower(torch.zeros(1)):
        pytest.skip("no fast products of int8 here")
    generator = torch.Generator().manual_seed(1)
    x, weight = torch.randn(60, 96, generator=generator), torch.randn(80, 96, generator=generator)
    x[:, [7, 50]] *= 300
    weight[:, 9] = 0
    x[:, 11] = 0
    plain, smoothed = kind(weight), SmoothedProduct(kind(weight), smoothing(weight, x.abs().amax(0)))
    exact, bias = functional.linear(x, weight, torch.ones(80)), torch.ones(80, dtype=dtype)
    errors = [float((one.forward(x.to(dtype), bias).float() - exact).norm(dim=1).div(exact.norm(dim=1)).max()) for one in (plain, smoothed)]
    small = [float((one.forward(x.to(dtype), None).float() - x @ weight.T).norm()) for one in (plain, smoothed)]
    assert errors[1] < 0.02 and small[1] < 0.7 * small[0]
    grad = torch.randn(60, 80, dtype=dtype)
    assert torch.equal(smoothed.gradient(grad), plain.gradient(grad)), "a gradient has other columns"
    again = SmoothedProduct(kind(weight), smoothed.exponents)
    assert torch.equal(again.forward(x.to(dtype), bias), smoothed.forward(x.to(dtype), bias))
    assert (again.lowered_to, again.bytes_per_number, again.exact) == ("int8", 1, False) and not again.takes(torch.float64)
    rows = x.to(dtype)
    assert again.ready(rows) is rows, "what is divided by its own factors is not rounded for others"


def test_factors_are_the_roots_of_what_columns_differ_by() -> None:
    weight = torch.tensor([[1.0, 4.0, 1.0], [-1.0, 1.0, 0.5]])
    assert smoothing(weight, torch.tensor([1.0, 4.0, 64.0])) == [0, 0, 3]
    assert smoothing(torch.zeros(2, 3), torch.zeros(3)) == [0, 0, 0]
