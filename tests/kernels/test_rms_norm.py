from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostline.kernels import rms_norm as subject
from frostline.kernels.rms_norm import Norm, find, normed, rms_norm
from tests.kernels.transformers_models import build


def plain(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def operands(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 12, generator=generator, dtype=torch.float64) * 3
    return x.to(dtype).requires_grad_(), torch.rand(12, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=str)
def test_outputs_and_gradients_are_those_of_the_layers(dtype: torch.dtype, tolerance: float) -> None:
    x, weight = operands(dtype)
    ours, expected = rms_norm(x, weight, 1e-5, dtype), plain(x, weight, 1e-5)
    torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)
    pairs = zip(torch.autograd.grad(ours.sin().sum(), (x, weight)), torch.autograd.grad(expected.sin().sum(), (x, weight)))
    for mine, theirs in pairs:
        assert mine.dtype == dtype
        torch.testing.assert_close(mine, theirs, rtol=10 * tolerance, atol=10 * tolerance)


def test_in_bfloat16_only_what_comes_in_and_goes_out_is_rounded() -> None:
    x, weight = operands(torch.float32)
    expected = plain(x.detach().bfloat16().double(), weight.detach().double(), 1e-5)
    half = x.detach().bfloat16().requires_grad_()
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 2**-8)):
        output = rms_norm(half, weight, 1e-5, dtype)
        assert output.dtype == dtype
        torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=1e-6)
    gradient, of_weight = torch.autograd.grad(output.float().sum(), (half, weight))
    assert gradient.dtype == torch.bfloat16 and of_weight.dtype == torch.float32


def test_a_frozen_norm_keeps_its_input_and_one_number_a_row() -> None:
    x, weight = operands(torch.float32)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        rms_norm(x, weight.detach(), 1e-5, torch.float32)
    assert sorted(tensor.numel() for tensor in kept if tensor.data_ptr() != x.data_ptr()) == [2 * 5, 12]


class Shifted(nn.Module):
    """Gemma's, but for a bias."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.weight, self.eps, self.bias = nn.Parameter(torch.rand(8) - 0.5), 1e-6, bias

    def forward(self, x: Tensor) -> Tensor:
        return plain(x, 1 + self.weight, self.eps) + self.bias


def test_norms_are_found_by_what_they_compute() -> None:
    network = nn.ModuleDict({
        "gemma": Shifted(0.0), "biased": Shifted(0.1), "layer": nn.LayerNorm(8), "torch": nn.RMSNorm(8, eps=1e-5),
        "batch": nn.BatchNorm1d(8), "linear": nn.Linear(8, 8), "blocks": nn.ModuleList([nn.RMSNorm(4, eps=1e-3)]),
    })  # fmt: skip
    assert find(network, ["blocks"]) == {
        "gemma": Norm(eps=1e-6, offset=1.0, narrow=False),
        "torch": Norm(eps=1e-5, offset=0.0, narrow=False),
        "blocks.0": Norm(eps=1e-3, offset=0.0, narrow=True),
    }


def test_a_batch_norm_does_not_learn_from_being_tried() -> None:
    network = nn.Sequential(nn.BatchNorm1d(8)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert find(network, []) == {} and network[0].training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("kind", ["llama", "gemma2", "qwen3"])
def test_models_of_transformers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, blocks = build(kind)
    ids = torch.arange(14).view(2, 7)
    norms = find(module, blocks)
    assert len(norms) == {"llama": 2 * 3 + 1, "gemma2": 4 * 3 + 1, "qwen3": 4 * 3 + 1}[kind]
    assert sum(norm.narrow for norm in norms.values()) == len(norms) - 1
    assert {norm.offset for norm in norms.values()} == {float(kind == "gemma2")}
    calls: list[torch.dtype] = []

    def counted(*operands: Any) -> Tensor:
        calls.append(operands[-1])
        return rms_norm(*operands)

    monkeypatch.setattr(subject, "rms_norm", counted)
    results = []
    for chosen in ({}, norms):
        with normed(module, chosen):
            logits = module(ids).logits
        module.zero_grad()
        logits.sin().sum().backward()
        results.append([logits.detach(), *(p.grad for p in module.parameters() if p.grad is not None)])
    assert len(calls) == len(norms) and set(calls) == {torch.float32}
    for mine, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * max(1.0, float(theirs.abs().max())))
    calls.clear()
    with normed(module, norms), torch.autocast("cpu", torch.bfloat16):
        module(ids)
    assert torch.bfloat16 in calls and calls[-1] == torch.float32, "what goes to the head is not narrowed"


def test_weights_of_zeros_hide_nothing() -> None:
    parts = nn.Sequential(nn.LayerNorm(8, bias=False), nn.RMSNorm(8, eps=1e-6))
    for part in parts:
        nn.init.zeros_(part.weight)
    assert list(find(parts, [])) == ["1"]
    assert not parts[1].weight.any()
