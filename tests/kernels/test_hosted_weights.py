"""Weights that are brought for a pass: the plain step bit for bit, and nothing that was brought is held after it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostline.adapt.freeze import freeze
from frostline.kernels import hosted_weights
from frostline.kernels.hosted_weights import hosted, hosting, left_at_home
from frostline.kernels.recompute import recomputing

CPU = torch.device("cpu")
BLOCKS = ["0", "1", "2"]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(40), nn.Linear(40, 80), nn.Linear(80, 40)
        self.outer.bias = self.norm.bias  # tied within the block

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(torch.tanh(self.inner(self.norm(x))))


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> nn.Sequential:
    monkeypatch.setattr(hosted_weights, "_LEAST", 128)
    torch.manual_seed(0)
    made = nn.Sequential(Block(), Block(), Block())
    freeze(made, lambda name: name in ("1.inner.bias", "2.outer.weight"))
    return made


def step(module: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    module.zero_grad()
    out = module(x)
    out.square().sum().backward()
    return out.detach(), [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]


def test_what_may_stay(module: nn.Sequential) -> None:
    learning = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    places = [place for part in module for place in hosted(part)]
    assert not learning & {id(tensor) for *_, tensor in places} and all(tensor.nbytes >= 128 for *_, tensor in places)
    assert {name for _, name, _ in places} == {"weight", "bias"} and len(places) == 3 * 6 - 2


def test_the_same_step(module: nn.Sequential, monkeypatch: pytest.MonkeyPatch) -> None:
    """Brought to the same device by a copy, which is what another device would have."""
    x, copies = torch.randn(5, 40), list[Any]()
    plain, gradients = step(module, x)
    to: Callable[..., Tensor] = Tensor.to
    monkeypatch.setattr(
        Tensor, "to", lambda self, *args, **kwargs: (made := to(self, *args, copy=True), copies.append(weakref.ref(made)))[0]
    )
    before = {name: id(parameter) for name, parameter in module.named_parameters()}
    with hosting(module, BLOCKS, CPU), recomputing(module, BLOCKS):
        out, ours = step(module, x)
    assert torch.equal(out, plain) and len(ours) == len(gradients) == 2
    for one, other in zip(ours, gradients, strict=True):
        assert torch.equal(one, other)
    assert {name: id(parameter) for name, parameter in module.named_parameters()} == before
    del out
    gc.collect()
    brought = 3 * 5 - 2  # what is tied is brought once
    assert len(copies) == 2 * brought - 5, "once forward, once backward, but for the first block, through which no gradient passes"
    assert not any(copy() is not None for copy in copies), "and nothing of it is held"


def test_left_at_home_while_the_rest_is_moved(module: nn.Sequential) -> None:
    kept = {name: value.clone() for name, value in module.state_dict().items()}
    with left_at_home(module, ["0", "1"], pin=False):
        assert module[0].inner.weight is None and module[2].inner.weight is not None
        module.to(torch.float64)
    types = {name: value.dtype for name, value in module.state_dict().items()}
    assert (
        types["0.inner.weight"] == types["1.outer.bias"] == torch.float32
        and types["1.inner.bias"] == types["2.inner.weight"] == torch.float64
    )
    for name, value in module.state_dict().items():
        assert torch.equal(value.float(), kept[name]), name


def test_an_error_leaves_the_block_as_it_was(module: nn.Sequential) -> None:
    weight = module[0].inner.weight
    with hosting(module, BLOCKS, CPU), pytest.raises(RuntimeError):
        module(torch.randn(5, 3))
    assert module[0].inner.weight is weight
