from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from frostline.kernels.swiglu import find, gated, swiglu
from tests.kernels.transformers_models import build


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12), (torch.bfloat16, 2e-2)], ids=str)
def test_outputs_and_gradients_are_those_of_the_layers(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    gate, up = (torch.randn(3, 5, 8, dtype=torch.float64).mul(3).to(dtype).requires_grad_() for _ in range(2))
    ours, expected = swiglu(gate, up), silu(gate) * up
    torch.testing.assert_close(ours, expected, rtol=tolerance / 2, atol=tolerance / 10)
    grad = torch.randn(3, 5, 8, dtype=torch.float64).to(dtype)
    pairs = zip(torch.autograd.grad(ours, (gate, up), grad), torch.autograd.grad(expected, (gate, up), grad))
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


def test_only_the_factors_are_kept() -> None:
    gate, up = torch.randn(2, 8, requires_grad=True), torch.randn(2, 8, requires_grad=True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.data_ptr()) or tensor, lambda tensor: tensor):
        swiglu(gate, up)
    assert sorted(kept) == sorted([gate.data_ptr(), up.data_ptr()])


@pytest.mark.parametrize(("kind", "blocks"), [("llama", 3), ("qwen3", 3), ("gemma2", 0)])
def test_models_of_transformers(kind: str, blocks: int) -> None:
    """Gemma's gate is a GELU."""
    module, _ = build(kind)
    names = find(module)
    assert len(names) == blocks and all(name.endswith(".mlp") for name in names)
    results: list[list[Tensor]] = []
    for chosen in ([], names):
        with gated(module, chosen):
            logits = module(torch.arange(14).view(2, 7)).logits
        module.zero_grad()
        logits.sin().sum().backward()
        results.append([logits.detach(), *(p.grad for p in module.parameters() if p.grad is not None)])
    for mine, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * max(1.0, float(theirs.abs().max())))
    assert not any("forward" in vars(part) for part in module.modules())


def test_blocks_that_compute_something_else_are_left_alone() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))

    assert find(nn.Sequential(Other())) == []


class _Gated(nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor] = silu, dropout: float = 0.0) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)
        self.activation, self.dropout = activation, nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x)))


def test_each_is_tried_whatever_its_output_weights_and_its_dropout() -> None:
    torch.manual_seed(0)
    parts = nn.Sequential(_Gated(), _Gated(gelu), _Gated(dropout=0.1), _Gated(), _Gated(gelu))
    for part in parts[3:]:
        nn.init.zeros_(part.down_proj.weight), nn.init.zeros_(part.down_proj.bias)
    state = torch.get_rng_state()
    assert find(parts.eval()) == ["0", "3"]
    assert torch.equal(torch.get_rng_state(), state) and not any(part.training for part in parts.modules())
    nn.init.zeros_(parts[0].gate_proj.weight), nn.init.zeros_(parts[0].gate_proj.bias)
    assert find(parts) == ["3"], "zeros say nothing of the function"
