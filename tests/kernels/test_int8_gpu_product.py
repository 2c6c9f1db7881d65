"""What is particular to int8 on a GPU; what it shares with fp8 is tested by test_row_scaled_product.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from frostline.kernels.int8_gpu_product import Int8GpuProduct
from frostline.kernels.int8_product import quantise_weight


def test_it_is_rounded_as_on_the_processor() -> None:
    weight = torch.randn(8, 16)
    steps, scales = Int8GpuProduct.quantise(weight)
    ours, by_output = quantise_weight(weight)
    assert torch.equal(steps, ours) and torch.equal(scales[:, 0], by_output) and steps.abs().amax(1).eq(127).all()


@pytest.mark.parametrize("rows", [0, 1, 16, 17, 31, 32, 40])
def test_cuda_is_given_more_than_16_rows(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Any, ...]] = []
    multiply = torch._int_mm

    def multiplied(a: Tensor, b: Tensor) -> Tensor:
        given.append((a.shape[0], b.stride()))
        return multiply(a, b)

    monkeypatch.setattr(torch, "_int_mm", multiplied)
    found = Int8GpuProduct(torch.ones(8, 24)).forward(torch.ones(rows, 24), None)
    assert given == [(max(rows, 32), (1, 24))], "zeros below the rows; the weight column by column"
    assert torch.equal(found, torch.full((rows, 8), 24.0))
