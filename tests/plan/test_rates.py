"""Rates of products by type and back end: plausible, kept, and shown."""

from __future__ import annotations

import math

import pytest

from frostline.files import cache_folder
from frostline.plan import rates as subject
from frostline.plan.rates import as_table, product_rates


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(subject, "SIDES", (64,))
    monkeypatch.setattr(subject, "CONVOLUTIONS", ((8, 14),))


def test_measured_when_asked_and_kept():
    assert product_rates() is None and "--calibrate" in as_table(None)
    measured = product_rates(again=True)
    assert list(measured) == ["matrix 64", "convolution 8, 14 × 14"]
    assert {"fp32", "bf16", "fp16"} <= set(measured["matrix 64"]) and {"fp32", "fp32 channels last"} <= set(
        measured["convolution 8, 14 × 14"]
    )
    assert all(math.isfinite(rate) and 1e-4 < rate < 1e5 for found in measured.values() for rate in found.values())
    assert product_rates() == measured


@pytest.mark.parametrize("content", ["", "[1"])
def test_a_damaged_file_is_as_none(content):
    product_rates(again=True)
    (path,) = cache_folder().glob("products-*.json")
    path.write_text(content)
    assert product_rates() is None


def test_the_fastest_is_marked():
    lines = as_table({"matrix 2": {"fp32": 100.0, "int8": 300.4}, "convolution": {"fp32": 7.0, "packed": 6.0}}).splitlines()
    assert lines[1].split() == ["product", "fp32", "int8", "packed"]
    assert lines[3].split() == ["matrix", "2", "100", "300", "←"] and lines[4].split() == ["convolution", "7", "←", "6"]
