"""Products in int8: against integers computed plainly, and how far they are from the product in floating point."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from frostline.kernels import int8_product
from frostline.kernels.int8_product import Int8Product, can_lower, largest_activation

needs_int8 = pytest.mark.skipif(not can_lower(torch.zeros(1)), reason="no fast products of int8 here")


def tensors(rows: int, inputs: int = 96, outputs: int = 80) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(-6, 3, rows, dtype=torch.float32)[:, None] if rows > 1 else 1.0
    return torch.randn(rows, inputs, generator=generator) * scales, torch.randn(outputs, inputs, generator=generator)


def in_steps(x: Tensor) -> Tensor:
    """Rows rounded to 127 steps of their largest value (63 before VNNI), in float64."""
    step = x.double().abs().amax(1, keepdim=True).clamp_min(1e-30) / (largest_activation() // 2)
    return (x.double() / step + 0.5).floor() * step


@needs_int8
@pytest.mark.parametrize("rows", [1, 5, 600, 1024, 1025])
def test_equals_integers_computed_plainly(rows: int) -> None:
    x, weight = tensors(rows)
    step = weight.abs().amax(1, keepdim=True) / 127
    expected = in_steps(x) @ ((weight / step).round() * step).double().t()
    ours = Int8Product(weight).forward(x, None).double()
    # a value that lies on the border of two steps may go to either
    assert float(((ours - expected).norm(dim=1) / expected.norm(dim=1)).max()) < 1e-2
    assert float(((ours - expected).norm(dim=1) / expected.norm(dim=1)).median()) < 1e-6


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_each_row_is_near_the_product_however_large_its_neighbours_are(dtype: torch.dtype) -> None:
    x, weight = tensors(50)
    bias, grad = torch.randn(80), tensors(50, 80)[0]
    product = Int8Product(weight)
    assert not product.exact
    for ours, theirs in (
        (product.forward(x.to(dtype), bias.to(dtype)), functional.linear(x, weight, bias)),
        (product.gradient(grad.to(dtype)), grad @ weight),
    ):
        assert ours.dtype == dtype
        errors = (ours.float() - theirs).norm(dim=1) / theirs.norm(dim=1)
        assert float(errors.max()) < (0.02 if largest_activation() == 255 else 0.035), errors


@needs_int8
def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    x, weight = tensors(700)
    product = Int8Product(weight)
    whole = product.forward(x, None)
    for row in (0, 3, 511, 512, 699):
        assert torch.equal(product.forward(x[row : row + 1], None)[0], whole[row])


@needs_int8
def test_zeros_stay_zeros_and_what_is_not_finite_is_not_hidden() -> None:
    x, weight = tensors(4)
    x[1], x[2, 0], x[3, 0] = 0.0, float("nan"), float("inf")
    weight[5] = 0.0
    y = Int8Product(weight).forward(x, None)
    assert (y[1] == 0).all() and (y[0, 5] == 0) and y[0].isfinite().all()
    assert not y[2].isfinite().any() and not y[3].isfinite().any()
    assert Int8Product(weight).forward(x[:0], None).shape == (0, 80)


@needs_int8
def test_sums_of_the_largest_values_do_not_saturate() -> None:
    x, weight = torch.ones(3, 64), torch.ones(8, 64)
    torch.testing.assert_close(Int8Product(weight).forward(x, None), torch.full((3, 8), 64.0))
    torch.testing.assert_close(Int8Product(-weight).forward(x, None), torch.full((3, 8), -64.0))


@pytest.mark.parametrize(("machine", "avx2"), [("x86_64", False), ("aarch64", True), ("arm64", True)])
def test_not_elsewhere(machine: str, avx2: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_product.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: avx2)
    assert not can_lower(torch.zeros(1))
    assert not can_lower(torch.zeros(1, device="meta"))
