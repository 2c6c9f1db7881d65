"""Which product a weight gets where it is."""

from __future__ import annotations

import pytest
import torch

from frostline.kernels import lowered_product as subject
from frostline.kernels import row_scaled_product
from frostline.kernels.fp8_product import Fp8Product
from frostline.kernels.int8_gpu_product import Int8GpuProduct
from frostline.kernels.int8_product import Int8Product
from frostline.kernels.lowered_product import lowered_product
from frostline.kernels.row_scaled_product import RowScaledProduct


def test_the_processor_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_scaled_product, "capability", lambda device: (9, 0))
    for there, kind in ((True, Int8Product), (False, type(None))):
        monkeypatch.setattr(subject, "can_lower", lambda weight, there=there: there)
        assert type(lowered_product(torch.zeros(32, 32))) is kind


@pytest.mark.parametrize(
    ("version", "shape", "kind"),
    [
        ((9, 0), (32, 48), Fp8Product),
        ((8, 9), (32, 48), Fp8Product),
        ((8, 6), (32, 48), Int8GpuProduct),
        ((7, 5), (32, 48), Int8GpuProduct),
        ((7, 0), (32, 48), None),
        ((0, 0), (32, 48), None),
        ((9, 0), (32, 40), Int8GpuProduct),
        ((9, 0), (32, 12), None),
    ],
)
def test_a_gpu_multiplies_in_the_first_that_it_has(
    version: tuple[int, int], shape: tuple[int, int], kind: type[RowScaledProduct] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_scaled_product, "capability", lambda device: version)
    monkeypatch.setattr(row_scaled_product, "works", lambda kind, device: True)
    weight = torch.zeros(shape, device="meta")
    found = lowered_product(weight)
    assert type(found) is (kind or type(None)) and (found is None or found.weight is weight)


def test_int8_where_fp8_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_scaled_product, "capability", lambda device: (12, 0))
    monkeypatch.setattr(row_scaled_product, "works", lambda kind, device: kind is not Fp8Product)
    assert type(lowered_product(torch.zeros(32, 32, device="meta"))) is Int8GpuProduct
