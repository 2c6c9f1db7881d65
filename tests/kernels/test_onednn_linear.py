"""A learning linear layer as a convolution over its rows: the same numbers, and only where it is float32 on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from frostline.kernels import onednn_linear
from frostline.kernels.onednn_linear import linear_by_convolution, multiplying_by_convolution


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (2, 3, 4), (300,)], ids=str)
def test_outputs_and_gradients_are_those_of_a_linear_layer(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    operands = [torch.randn(*shape, 48), torch.randn(33, 48), *([torch.randn(33)] if bias else [])]
    grad = torch.randn(*shape, 33)

    def computed(way: object, dtype: torch.dtype) -> list[Tensor]:
        leaves = [tensor.to(dtype).requires_grad_() for tensor in operands]
        output = way(*leaves, *([] if bias else [None]))  # type: ignore[operator]
        return [output.detach(), *torch.autograd.grad(output, leaves, grad.to(dtype))]

    exact = computed(functional.linear, torch.float64)
    for ours, theirs, true in zip(
        computed(linear_by_convolution, torch.float32), computed(functional.linear, torch.float32), exact, strict=True
    ):
        assert ours.shape == theirs.shape and ours.is_contiguous()
        off, theirs_off = (float((one.double() - true).norm() / true.norm()) for one in (ours, theirs))
        assert off < 2 * theirs_off + 1e-7


def test_rows_that_do_not_lie_end_to_end() -> None:
    x, weight = torch.randn(6, 4, 16).transpose(0, 1), torch.randn(8, 16)
    torch.testing.assert_close(linear_by_convolution(x, weight, None), functional.linear(x, weight))


def test_layers_are_exchanged_for_the_length_of_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Tensor] = []

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        calls.append(x)
        return linear_by_convolution(x, weight, bias)

    monkeypatch.setattr(onednn_linear, "linear_by_convolution", counted)
    module, x = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(2, 4)
    plain = module(x)
    with multiplying_by_convolution(module, ["0"]):
        torch.testing.assert_close(module(x), plain)
    assert len(calls) == 1 and calls[0] is x
    assert not any("forward" in vars(part) for part in module.modules()) and torch.equal(module(x), plain)


@pytest.mark.parametrize("case", ["no rows", "float64", "autocast", "bf16 weights"])
def test_what_else_comes_is_multiplied_as_usual(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn_linear, "linear_by_convolution", None)
    dtype = {"float64": torch.float64, "bf16 weights": torch.bfloat16}.get(case, torch.float32)
    layer, x = nn.Linear(4, 3).to(dtype), torch.randn(0 if case == "no rows" else 2, 4, dtype=dtype)
    with multiplying_by_convolution(nn.ModuleDict({"a": layer}), ["a"]), torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        assert layer(x).shape == (len(x), 3)
