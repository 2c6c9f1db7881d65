"""A packed weight multiplies as the plain one does."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from frostline.kernels.packed_product import PackedProduct, can_pack


@pytest.mark.parametrize("rows", [0, 1, 7, 64, 1000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)], ids=["fp32", "bf16"])
def test_equals_the_plain_product_and_its_gradient(dtype: torch.dtype, tolerance: float, rows: int) -> None:
    if not can_pack(torch.zeros(1), dtype):
        pytest.skip("this processor packs no such weights")
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(40, 24, generator=generator), torch.randn(40, generator=generator).to(dtype)
    x, grad = torch.randn(rows, 24, generator=generator).to(dtype), torch.randn(rows, 40, generator=generator).to(dtype)
    product = PackedProduct(weight, dtype=dtype, rows=64)
    assert product.exact and product.bytes_per_number == dtype.itemsize
    for ours, theirs in (
        (product.forward(x, bias), functional.linear(x, weight.to(dtype), bias)),
        (product.forward(x, None), functional.linear(x, weight.to(dtype))),
        (product.gradient(grad), grad @ weight.to(dtype)),
    ):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * (float(theirs.abs().max()) if rows else 1.0))


def test_the_result_is_a_tensor_of_its_own() -> None:
    product = PackedProduct(torch.randn(8, 8), dtype=torch.float32, rows=4)
    x = torch.randn(4, 8)
    first = product.forward(x, None)
    kept = first.clone()
    product.forward(x + 1, None).add_(1)
    assert torch.equal(first, kept)


def test_what_cannot_be_packed() -> None:
    weight = torch.randn(4, 4)
    assert can_pack(weight, torch.float32)
    assert can_pack(weight, torch.bfloat16) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert not can_pack(weight, torch.float64) and not can_pack(torch.empty(4, 4, device="meta"), torch.float32)
