"""Products in 8 bits for GPUs, on the processor: against numbers rounded plainly, and how far from the product in floating point."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from frostline.kernels import row_scaled_product as subject
from frostline.kernels.fp8_product import Fp8Product
from frostline.kernels.int8_gpu_product import Int8GpuProduct
from frostline.kernels.row_scaled_product import RowScaledProduct, works

KINDS = [Fp8Product, Int8GpuProduct]
ERROR = {Fp8Product: 0.05, Int8GpuProduct: 0.02}
"""Largest of a row, relative."""


@pytest.fixture(params=KINDS, ids=["fp8", "int8"])
def kind(request: pytest.FixtureRequest) -> type[RowScaledProduct]:
    found: type[RowScaledProduct] = request.param
    if not works(found, torch.device("cpu")):
        pytest.skip("this build of PyTorch does not multiply so on the processor")
    return found


def tensors(rows: int, inputs: int = 96, outputs: int = 80) -> tuple[Tensor, Tensor]:
    """Rows that differ by orders of magnitude, and a weight."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(-6, 3, rows, dtype=torch.float32)[:, None] if rows > 1 else 1.0
    return torch.randn(rows, inputs, generator=generator) * scales, torch.randn(outputs, inputs, generator=generator)


@pytest.mark.parametrize("rows", [1, 5, 17, 31, 32, 600])
def test_equals_the_rounded_numbers_multiplied_plainly(kind: type[RowScaledProduct], rows: int) -> None:
    x, weight = tensors(rows)
    weight *= torch.logspace(-2, 2, 80)[:, None]
    (steps, scales), (of_weight, by_output) = kind.quantise(x), kind.quantise(weight)
    assert steps.element_size() == 1 and scales.shape == (rows, 1) and by_output.shape == (80, 1)
    expected = (steps.double() * scales.double()) @ (of_weight.double() * by_output.double()).T
    found = kind(weight).forward(x, None)
    assert found.dtype == torch.float32 and found.shape == (rows, 80)
    near = 2**-8 if kind is Fp8Product else 1e-6  # bfloat16 comes out of fp8
    assert bool(((found - expected).abs() <= near * expected.abs() + 1e-6 * expected.abs().amax(1, keepdim=True)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_each_row_is_near_the_product_however_large_its_neighbours_are(kind: type[RowScaledProduct], dtype: torch.dtype) -> None:
    x, weight = tensors(50)
    bias, grad = torch.randn(80), tensors(50, 80)[0]
    product = kind(weight)
    assert not product.exact and product.bytes_per_number == 1 and product.takes(dtype) and not product.takes(torch.float64)
    for found, exact in (
        (product.forward(x.to(dtype), None), x @ weight.T),
        (product.forward(x.to(dtype), bias.to(dtype)), functional.linear(x, weight, bias)),
        (product.gradient(grad.to(dtype)), grad @ weight),
    ):
        assert found.dtype == dtype
        errors = (found.float() - exact).norm(dim=1) / exact.norm(dim=1)
        assert float(errors.max()) < ERROR[kind], errors


def test_a_row_does_not_depend_on_the_rows_beside_it(kind: type[RowScaledProduct]) -> None:
    x, weight = tensors(700)
    product = kind(weight)
    whole = product.forward(x, None)
    for row in (0, 3, 16, 31, 32, 511, 699):
        assert torch.equal(product.forward(x[row : row + 1], None)[0], whole[row])


def test_rows_that_are_rounded_once(kind: type[RowScaledProduct]) -> None:
    x, weight = tensors(40)
    product, other = kind(weight), kind(2 * weight)
    ready, bias = product.ready(x.bfloat16()), torch.randn(80).bfloat16()
    assert ready.dtype == torch.bfloat16
    for one in (product, other):
        assert torch.equal(one.forward(ready, bias), one.forward(x.bfloat16(), bias))


def test_zeros_stay_zeros_and_what_is_not_finite_is_not_hidden(kind: type[RowScaledProduct]) -> None:
    x, weight = tensors(4)
    x[1], x[2, 0], x[3, 0] = 0.0, float("nan"), float("inf")
    weight[5] = 0.0
    y = kind(weight).forward(x, None)
    assert (y[1] == 0).all() and y[0, 5] == 0 and y[0].isfinite().all()
    assert not y[2].isfinite().any() and not y[3].isfinite().any()
    assert kind(weight).forward(x[:0], None).shape == (0, 80)


def test_sums_of_the_largest_values_do_not_saturate(kind: type[RowScaledProduct]) -> None:
    x, weight = torch.ones(3, 4096), torch.ones(16, 4096)
    for sign in (1, -1):
        torch.testing.assert_close(kind(sign * weight).forward(x, None), torch.full((3, 16), sign * 4096.0))


def test_a_weight_that_was_written_to_is_rounded_again(kind: type[RowScaledProduct]) -> None:
    x, weight = tensors(3)
    product = kind(weight)
    before = product.forward(x, None)
    weight.mul_(2)
    assert torch.equal(product.forward(x, None), 2 * before)


def having(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int]) -> None:
    monkeypatch.setattr(subject, "capability", lambda device: version)


@pytest.mark.parametrize(
    ("version", "fp8", "int8"), [((0, 0), False, False), ((7, 0), False, False), ((7, 5), False, True), ((8, 9), True, True)]
)
def test_which_gpus_have_it(version: tuple[int, int], fp8: bool, int8: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    having(monkeypatch, version)
    monkeypatch.setattr(subject, "works", lambda kind, device: True)
    weight = torch.zeros(32, 48)
    assert (Fp8Product.can_multiply(weight), Int8GpuProduct.can_multiply(weight)) == (fp8, int8)


@pytest.mark.parametrize(
    ("shape", "fp8", "int8"),
    [
        ((32, 48), True, True),
        ((32, 40), False, True),
        ((40, 32), False, True),
        ((32, 12), False, False),
        ((10, 32), False, False),
        ((0, 16), False, False),
    ],
)
def test_sizes_that_do_not_fit_are_declined(shape: tuple[int, int], fp8: bool, int8: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    having(monkeypatch, (9, 0))
    monkeypatch.setattr(subject, "works", lambda kind, device: True)
    assert (Fp8Product.can_multiply(torch.zeros(shape)), Int8GpuProduct.can_multiply(torch.zeros(shape))) == (fp8, int8)


class Refusing(Int8GpuProduct):
    """As where PyTorch was built without it."""

    @staticmethod
    def product(rows: object, weight: object) -> Tensor:
        raise NotImplementedError("Rowwise scaling is not currently supported on your device")


class Wrong(Int8GpuProduct):
    """As where a kernel for another GPU writes nothing."""

    @staticmethod
    def product(rows: subject.QuantisedRows, weight: subject.QuantisedRows) -> Tensor:
        return torch.zeros(len(rows.steps), len(weight.steps))


def test_what_a_build_of_pytorch_does_not_do_is_found_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    having(monkeypatch, (9, 0))
    assert not Refusing.can_multiply(torch.zeros(16, 16)) and not Wrong.can_multiply(torch.zeros(16, 16))
    assert Int8GpuProduct.can_multiply(torch.zeros(16, 16))
