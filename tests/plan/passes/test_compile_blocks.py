"""Compiled blocks give the plain step, are taken where a trial says so, and again by a run that goes on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

import frostline as fl
from frostline.data.dataset import Dataset
from frostline.kernels import compiled_blocks
from frostline.plan.decision import Decision
from frostline.plan.passes import compile_blocks
from frostline.plan.passes.compile_blocks import Trial, can_compile
from frostline.plan.plan import Plan, plan_recipe
from tests.plan.small import llama_with_lora
from tests.train.small import cnn, first_rows, plan


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.dropout = nn.Linear(16, 16), nn.LayerNorm(16), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(nn.functional.gelu(self.norm(self.linear(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.blocks, self.out = nn.Linear(3 * 64, 16), nn.ModuleList([Block(), Block()]), nn.Linear(16, 10)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.first(pixel_values.flatten(1))
        for block in self.blocks:
            x = block(x)
        return self.out(x)


@pytest.fixture(autouse=True)
def _kernels_kept(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "inductor"))


@pytest.fixture
def data(digits: Dataset) -> Dataset:
    return first_rows(digits, 60)


def net(data: Dataset) -> Any:
    torch.manual_seed(3)
    return fl.load(Net(), data=data, size=8)


def decision(made: Plan) -> Decision | None:
    return next((one for one in made.decisions if one.what == "compile_blocks"), None)


def test_a_run_with_compiled_blocks_is_the_plain_run(data: Dataset, tmp_path: Path) -> None:
    usual = plan(net(data), data, tmp_path / "plain", adapt="full")
    made = plan(net(data), data, tmp_path / "compiled", adapt="full", compile_blocks="on")
    assert decision(usual) is None
    found = decision(made)
    assert found and found.on and found.exact and found.settings == {"blocks": ["blocks.0", "blocks.1"]}, found
    assert "s to compile" in found.costs and "plainly" in found.why
    before = compiled_blocks.graphs_made()
    compiled, plain = fl.train(made, quiet=True), fl.train(usual, quiet=True)
    assert compiled_blocks.graphs_made() == before, "nothing is compiled anew in the run, whose last batch is smaller"
    for ours, theirs in zip(compiled.history, plain.history, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5), "the same numbers are dropped"
    for name, value in usual.model.module.state_dict().items():
        torch.testing.assert_close(made.model.module.state_dict()[name], value, rtol=1e-3, atol=1e-5, msg=name)
    resumed = plan_recipe(made.recipe, net(data), data, forced=made.decisions)
    assert list(resumed.execution.compiled) == ["blocks.0", "blocks.1"]


class OverRows(Block):
    """A loop over rows is unrolled, for their number."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.stack([2 * row for row in x]))


def test_not_what_is_compiled_for_each_number_of_rows(data: Dataset, tmp_path: Path) -> None:
    model = net(data)
    model.module.blocks[1] = OverRows()
    made = plan(model, data, tmp_path, adapt="full", compile_blocks="on")
    found = decision(made)
    assert found and not found.on and "compiled each time" in found.why, found
    assert not made.execution.compiled


def propose(made: Plan, monkeypatch: pytest.MonkeyPatch, tried: Trial | Exception | None, steps: float = 1e9) -> Decision | None:
    def try_out(*_: Any) -> Trial | None:
        if isinstance(tried, Exception):
            raise tried
        return tried

    monkeypatch.setattr(compile_blocks, "try_out", try_out)
    numbers = {"batch": 24, "encode_row": 0.0, "prefix_row": 0.0, "step": 0.1, "forward": 0.05}
    measured = compile_blocks.Probe(**numbers, saved_bytes=1, transient_bytes=1, input_bytes=1)
    found, after = compile_blocks.propose(made.recipe, made.execution, made.loss, measured, steps)
    on = found is not None and found.on
    assert bool(made.execution.compiled) == on
    assert after.step == pytest.approx(0.1 * tried.compiled / tried.plain if on and isinstance(tried, Trial) else 0.1)
    return found


def test_where_the_trial_says_so(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(net(data), data, tmp_path, adapt="full")
    fast, slow = Trial(plain=1.0, compiled=0.8, difference=1e-6, first=9.0), Trial(plain=1.0, compiled=0.97, difference=1e-6, first=9.0)
    wrong = Trial(plain=1.0, compiled=0.5, difference=0.1, first=9.0)
    unknown = Trial(plain=1.0, compiled=0.5, difference=math.nan, first=9.0)
    found = propose(made, monkeypatch, fast)
    assert found and found.on and found.saves_seconds == pytest.approx(0.2 * 1e8) and found.costs == "9 s to compile"
    for tried, why in (
        (slow, "a step takes 0.970 s so, 1.000 s plainly"),
        (wrong, "gradients differ by 1.0e-01, by more than 1e-04"),
        (unknown, "gradients differ by nan"),
        (None, "compiled each time"),
        (TorchDynamoException("no\n C++ compiler"), "PyTorch's compiler cannot: no C++ compiler"),
        (OSError("can be written to by others"), "by others"),
    ):
        made.execution.compiled = {}
        found = propose(made, monkeypatch, tried)
        assert (found and not found.on and found.why.startswith(why.replace("\\", ""))) or why.replace("\\", "") in found.why, found
    assert propose(made, monkeypatch, fast, steps=1000) is None, "a trial would take a good part of so short a run"


def test_memory_that_runs_out_is_no_reason_not_to_compile(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        propose(plan(net(data), data, tmp_path, adapt="full"), monkeypatch, torch.OutOfMemoryError("no more"))


def test_which_blocks(data: Dataset, tmp_path: Path) -> None:
    made = plan(cnn(data), data, tmp_path / "cnn", adapt="full")
    assert can_compile(made.execution) == list(made.model.blocks)
    made.execution.recomputed = [made.model.blocks[0]]
    assert can_compile(made.execution) == list(made.model.blocks[1:]), "it is computed twice, by something else"
    head = plan(cnn(data), data, tmp_path / "head", adapt="head", cache="on")
    assert can_compile(head.execution) == [], "all of them are behind a store"
    made.execution.recomputed, made.model.blocks[:] = [], []
    assert can_compile(made.execution) == [""], "a network without blocks is one"
    head.model.blocks[:] = []
    assert can_compile(head.execution) == [], "a network that a line goes through is not computed as a whole"


def test_not_where_other_passes_stand_in(tmp_path: Path) -> None:
    made = llama_with_lora(tmp_path, pack="off")
    assert made.execution.fused and can_compile(made.execution) == []
    packed = llama_with_lora(tmp_path / "packed", pack="on", fuse_adapter="off", fuse_blocks="off", prepack="off")
    assert packed.execution.pack and can_compile(packed.execution) == []
    off = llama_with_lora(tmp_path / "off", compile_blocks="on")
    found = decision(off)
    assert found and not found.on and "other passes stand in" in found.why


def test_switched_off(data: Dataset, tmp_path: Path) -> None:
    assert decision(plan(net(data), data, tmp_path, adapt="full", compile_blocks="off")) is None
