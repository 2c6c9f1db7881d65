"""The passes in C++ and in PyTorch: the same numbers, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from frostline.kernels.row_kernels import SMALLEST, library, quantise_rows, scale_rows

TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
needs_library = pytest.mark.skipif(library.missing is not None, reason=f"not built here: {library.missing}")


def numbers(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(rows + columns)
    return (torch.randn(rows, columns, generator=generator) * torch.logspace(-6, 6, max(rows, 1))[:rows, None]).to(dtype)


@pytest.fixture
def in_pytorch(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(library, "found", "there is no C++ compiler")
    return monkeypatch


@TYPES
@pytest.mark.parametrize("half", [127, 63])
def test_steps_are_the_nearest_and_scales_those_of_the_rows(dtype: torch.dtype, half: int) -> None:
    x = numbers(40, 77, dtype)
    x[3] = 0
    steps, scales = quantise_rows(x, half)
    assert steps.dtype == torch.uint8 and scales.dtype == torch.float32 and scales.shape == (40, 1)
    torch.testing.assert_close(scales[:, 0] * half, x.float().abs().amax(1).clamp_min(SMALLEST), rtol=1e-6, atol=0)
    again = (steps.double() - half - 1) * scales.double()
    assert ((again - x.double()).abs() <= scales.double() * 0.501).all() and (again[3] == 0).all()
    assert int(steps.min()) >= 1 and int(steps.max()) <= 2 * half + 1


@needs_library
@TYPES
@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (3, 64), (700, 33), (1025, 576)])
def test_both_ways_are_equal(shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, bias = numbers(*shape, dtype), numbers(*shape, dtype), numbers(1, shape[1], torch.float32)[0]
    found = []
    for way in (library.found, "in PyTorch"):
        monkeypatch.setattr(library, "found", way)
        steps, scales = quantise_rows(x, 127)
        found.append((steps, scales, scale_rows(y.clone(), scales, None), scale_rows(y.clone(), scales, bias.to(dtype))))
    for ours, plain in zip(*found, strict=True):
        assert torch.equal(ours, plain)


@needs_library
def test_whatever_the_layout_and_the_threads() -> None:
    x = numbers(64, 50, torch.bfloat16)
    whole, threads = quantise_rows(x, 127), torch.get_num_threads()
    turned = x.t().contiguous().t()
    assert not turned.is_contiguous() and all(map(torch.equal, quantise_rows(turned, 127), whole))
    torch.set_num_threads(1)
    try:
        assert all(map(torch.equal, quantise_rows(x, 127), whole))
    finally:
        torch.set_num_threads(threads)


def test_of_other_types_too(in_pytorch: pytest.MonkeyPatch) -> None:
    x = numbers(5, 9, torch.float32)
    steps, scales = quantise_rows(x.double(), 127)
    assert torch.equal(steps, quantise_rows(x, 127)[0])
    torch.testing.assert_close(scale_rows(x.double(), scales, None), (x * scales).double(), rtol=1e-6, atol=0)
    assert library.missing == "there is no C++ compiler"


@TYPES
def test_what_is_not_finite_is_not_hidden(dtype: torch.dtype) -> None:
    x = numbers(3, 8, dtype)
    x[0, 1], x[1, 2] = float("nan"), float("inf")
    steps, scales = quantise_rows(x, 127)
    y = scale_rows((steps.float() - 128).to(dtype), scales, None)
    assert not y[0].isfinite().any() and not y[1].isfinite().all() and y[2].isfinite().all()
