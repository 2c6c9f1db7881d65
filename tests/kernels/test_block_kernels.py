"""The passes in C++ against those in PyTorch, which take their place where C++ cannot be built, and both against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from frostline.kernels import block_kernels
from frostline.kernels.rms_norm import rms_norm
from frostline.kernels.rotary import rotary
from frostline.kernels.swiglu import swiglu

pytestmark = pytest.mark.skipif(block_kernels.library.missing is not None, reason=f"not built here: {block_kernels.library.missing}")

NARROW, WIDE = torch.bfloat16, torch.float32
SIZES = [(1, 3), (3, 5), (7, 33), (64, 576)]  # less than a vector, not a multiple of one, and enough for all threads


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


def both(compute: Callable[..., Tensor], operands: list[Tensor], grad: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """Output and gradients, in C++, in PyTorch and in PyTorch from float64."""

    def run(tensors: list[Tensor]) -> list[Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        output = compute(*leaves)
        return [output.detach(), *torch.autograd.grad(output, leaves, grad.to(output.dtype))]

    assert block_kernels.takes(*operands)
    ours = run(operands)
    with monkeypatch.context() as patch:
        patch.setattr(block_kernels.library, "found", "there is no C++ compiler")
        assert not block_kernels.takes(*operands)
        return [ours, run(operands), run([tensor.double() for tensor in operands])]


def check(results: list[list[Tensor]]) -> None:
    for ours, theirs, exact in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape and exact.dtype == torch.float64
        size = exact.abs().max().clamp_min(1e-6)
        tolerance = 3e-6 if ours.dtype == WIDE else 2**-7
        assert float((ours - exact).abs().max() / size) < tolerance
        assert float((ours - exact).norm()) <= 1.1 * float((theirs - exact).norm()) + 1e-7 * float(exact.norm())


@pytest.mark.parametrize(("rows", "columns"), SIZES)
@pytest.mark.parametrize(("of_x", "of_y"), [(WIDE, WIDE), (WIDE, NARROW), (NARROW, NARROW), (NARROW, WIDE)], ids=str)
def test_rms_norm(rows: int, columns: int, of_x: torch.dtype, of_y: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, grad = numbers(2, rows, columns).to(of_x), numbers(columns, seed=1), numbers(2, rows, columns, seed=2).to(of_y)

    def compute(x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight, 1e-5, torch.float64 if x.dtype == torch.float64 else of_y)

    check(both(compute, [x, weight], grad, monkeypatch))


@pytest.mark.parametrize(("rows", "columns"), SIZES)
@pytest.mark.parametrize("dtype", [WIDE, NARROW], ids=str)
def test_swiglu(rows: int, columns: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, up, grad = (numbers(rows, columns, seed=seed).to(dtype) for seed in range(3))
    gate[0, 0], up[0, 0] = -200, 2  # e^200 would overflow
    results = both(swiglu, [gate, up], grad, monkeypatch)
    check(results)
    assert all(found.isfinite().all() for found in results[0])
    assert swiglu(torch.tensor([torch.nan]), torch.tensor([1.0])).isnan().all()


@pytest.mark.parametrize("unsqueezed", [1, 2])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("of_x", "of_angles", "of_y"), [(WIDE, WIDE, WIDE), (NARROW, WIDE, WIDE), (NARROW, NARROW, NARROW)], ids=str)
def test_rotary(
    unsqueezed: int, rows: int, of_x: torch.dtype, of_angles: torch.dtype, of_y: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Laid out as linear layers give it."""
    x = numbers(2, 40, 5, 14).to(of_x)
    x = x.transpose(1, 2) if unsqueezed == 1 else x
    angles = numbers(rows, 40, 7).repeat(1, 1, 2).unsqueeze(unsqueezed)
    cos, sin = angles.cos().to(of_angles), angles.sin().to(of_angles)
    assert block_kernels.rotates(x, cos, sin)

    def compute(x: Tensor) -> Tensor:
        wide = x.dtype == torch.float64
        output = rotary(x, cos.double() if wide else cos, sin.double() if wide else sin)
        assert output.stride() == x.stride() and (wide or output.dtype == of_y)
        return output

    check(both(compute, [x], numbers(*x.shape, seed=1), monkeypatch))


def test_under_autocast_rotated_numbers_have_the_type_that_attention_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    x, angles = numbers(1, 3, 20, 8).bfloat16(), numbers(1, 1, 20, 4).repeat(1, 1, 1, 2)
    for found in (block_kernels.library.found, "there is no C++ compiler"):
        monkeypatch.setattr(block_kernels.library, "found", found)
        with torch.autocast("cpu", dtype=NARROW):
            output = rotary(x, angles.cos(), angles.sin())
        assert torch.equal(output, rotary(x, angles.cos(), angles.sin()).bfloat16())


@pytest.mark.parametrize("of_x", [WIDE, NARROW], ids=str)
@pytest.mark.parametrize("of_angles", [WIDE, NARROW], ids=str)
@pytest.mark.parametrize("narrowed", [False, True], ids=["", "autocast"])
def test_gradients_of_rotations_come_back_in_the_type_of_what_was_rotated(
    of_x: torch.dtype, of_angles: torch.dtype, narrowed: bool
) -> None:
    angles = numbers(1, 1, 20, 4).repeat(1, 1, 1, 2)
    cos, sin, x = angles.cos().to(of_angles), angles.sin().to(of_angles), numbers(1, 3, 20, 8).to(of_x).requires_grad_()
    with torch.autocast("cpu", dtype=NARROW, enabled=narrowed):
        output = rotary(x, cos, sin)
    assert output.dtype == (NARROW if narrowed else torch.promote_types(of_x, of_angles))
    (gradient,) = torch.autograd.grad(output, x, torch.ones_like(output))
    expected = rotary(torch.ones_like(x, dtype=torch.float64), cos.double(), -sin.double())
    assert gradient.dtype == of_x
    torch.testing.assert_close(gradient.double(), expected, rtol=2**-7, atol=2**-6)


def test_rotations_that_it_does_not_compute() -> None:
    x, angles = numbers(2, 5, 40, 14), numbers(2, 1, 40, 14)
    assert block_kernels.rotates(x, angles, angles)
    assert not block_kernels.rotates(x, angles.expand(2, 5, 40, 14), angles.expand(2, 5, 40, 14))
    assert not block_kernels.rotates(x, angles, angles.transpose(2, 3).contiguous().transpose(2, 3))
    assert not block_kernels.rotates(x[..., :13], angles[..., :13], angles[..., :13])
    assert not block_kernels.rotates(x, angles.bfloat16(), angles.bfloat16())
    assert not block_kernels.rotates(x.double(), angles, angles)
    assert not block_kernels.rotates(x[0], angles[0], angles[0])
