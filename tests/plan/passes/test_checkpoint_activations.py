"""Blocks are computed again where memory would not do without, the cheapest of them, and the run is the plain one bit for bit."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import frostline as fl
from frostline.data.dataset import Dataset
from frostline.plan import execution
from frostline.plan import plan as plan_module
from frostline.plan.decision import Decision
from frostline.plan.frost_line import FrostLine
from frostline.plan.passes.checkpoint_activations import can_recompute, cheapest
from frostline.plan.plan import Plan
from frostline.plan.probe import probe
from frostline.plan.recorded_calls import Call
from tests.plan.small import bert_with_lora, llama, llama_with_lora, talks
from tests.train.small import cnn, first_rows, plan, saved, stopped_and_resumed


def decision(made: Plan, what: str = "checkpoint_activations") -> Decision | None:
    return next((one for one in made.decisions if one.what == what), None)


def of_room(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """So many bytes for activations: nothing else counts."""
    monkeypatch.setattr(plan_module, "predict_peak_bytes", lambda work, probe, *args, **options: probe.saved_bytes)
    monkeypatch.setattr(plan_module, "resident_bytes", lambda *_: 0)
    monkeypatch.setattr(plan_module, "free_bytes", lambda *_: 0)
    monkeypatch.setattr(plan_module, "memory_limit", lambda *_: room)
    monkeypatch.setattr(plan_module, "_refuse_what_cannot_fit", lambda *args: None)


@pytest.mark.parametrize("pack", ["on", "off"])
def test_the_run_is_the_plain_one(pack: str, texts: Dataset, tmp_path: Path) -> None:
    """With dropout, LoRA as one function, without padding, and in pieces."""
    made = {
        wish: bert_with_lora(texts, tmp_path, out=str(tmp_path / wish), checkpoint_activations=wish, pack=pack, micro_batch=4)
        for wish in ("on", "off")
    }
    assert len(made["on"].execution.recomputed) == len(made["on"].model.blocks) and not made["off"].execution.recomputed
    assert made["on"].decision("pack") == (pack == "on")
    plain, ours = fl.train(made["off"], quiet=True), fl.train(made["on"], quiet=True)
    assert [line["loss"] for line in ours.records()] == [line["loss"] for line in plain.records()]
    for name, value in saved(plain).items():
        assert torch.equal(saved(ours)[name], value), name


def test_a_run_that_goes_on_computes_the_same_blocks_again(texts: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, stopped = (
        bert_with_lora(texts, tmp_path, out=str(tmp_path / name), checkpoint_activations="on") for name in ("whole", "stopped")
    )
    fl.train(whole, quiet=True)
    seen: list[list[str]] = []
    recomputing = execution.recomputing
    monkeypatch.setattr(execution, "recomputing", lambda module, blocks: seen.append(blocks) or recomputing(module, blocks))
    resumed = stopped_and_resumed(stopped, 2, monkeypatch)
    assert set(map(tuple, seen)) == {tuple(whole.execution.recomputed)} != {()}
    for name, value in saved(tmp_path / "whole").items():
        assert torch.equal(saved(resumed)[name], value), name


def test_predicted(tmp_path: Path) -> None:
    plain, ours = llama_with_lora(tmp_path / "plain"), llama_with_lora(tmp_path / "ours", checkpoint_activations="on")
    assert decision(plain) is None
    assert ours.parameters["activations_bytes"] < 0.75 * plain.parameters["activations_bytes"]
    made = decision(ours)
    assert made and made.on and made.exact and made.settings["blocks"] == ours.model.blocks and "the recipe asks for it" in made.why


def test_only_where_a_single_row_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = llama_with_lora(tmp_path / "room").parameters["activations_bytes"]
    of_room(monkeypatch, whole // 2)
    made = llama_with_lora(tmp_path / "pieces")
    assert decision(made) is None and made.execution.micro_batch == 3, "pieces cost no second pass"
    of_room(monkeypatch, int(0.95 * whole / 6))
    made = llama_with_lora(tmp_path / "again")
    chosen = made.execution.recomputed
    assert made.execution.micro_batch == 1 and chosen and "are missing" in decision(made).why  # type: ignore[union-attr]
    assert made.parameters["activations_bytes"] <= 0.95 * whole / 6 or chosen == made.model.blocks
    of_room(monkeypatch, int(0.95 * whole / 6))
    assert decision(llama_with_lora(tmp_path / "off", checkpoint_activations="off")) is None


def test_left_out(digits: Dataset, tmp_path: Path) -> None:
    data = first_rows(digits, 24)
    made = plan(cnn(data, depth=2), data, tmp_path / "cnn", checkpoint_activations="on")
    assert "no block could be computed again" in decision(made).why and not decision(made).on, "its batch norms learn"  # type: ignore[union-attr]
    vit = fl.load("transformer", data=data, width=16, depth=4)
    made = plan(vit, data, tmp_path / "vit", adapt="last 2", checkpoint_activations="on")
    assert made.execution.recomputed == vit.blocks[2:], "before, nothing is kept anyway"
    crossing = FrostLine(prefix=[Call(name="blocks.0", index=0), Call(name="blocks.1.norm", index=0)], border=[])
    assert can_recompute(vit, None) == vit.blocks and can_recompute(vit, crossing) == vit.blocks[2:]


@given(st.lists(st.tuples(st.floats(0.01, 10), st.integers(1, 10**9)), min_size=1, max_size=7), st.floats(0.05, 1.2))
def test_the_cheapest_set(items: list[tuple[float, int]], share: float) -> None:
    seconds: dict[str, Any] = {str(i): cost for i, (cost, _) in enumerate(items)}
    freed = {str(i): size for i, (_, size) in enumerate(items)}
    needed = int(share * sum(freed.values()))
    chosen = cheapest(seconds, freed, needed)
    assert sum(freed[name] for name in chosen) >= min(needed, sum(freed.values()))
    # sizes are rounded down to 1/500 of what is needed: no set that frees so much more is cheaper
    safe = needed * (1 + len(items) / 500) + len(items)
    every = [names for count in range(len(items) + 1) for names in itertools.combinations(freed, count)]
    costs = [sum(seconds[name] for name in names) for names in every if sum(freed[name] for name in names) >= safe]
    assert not costs or sum(seconds[name] for name in chosen) <= min(costs) * (1 + 1e-9)


class _Counting(nn.Module):
    """``writes``: what its block changes beside what it gives."""

    def __init__(self, writes: str) -> None:
        super().__init__()
        self.layer, self.writes = nn.Linear(16, 16), writes
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.writes == "buffer":
            self.seen += 1
        return self.layer(nn.functional.silu(x, inplace=self.writes == "input"))


@pytest.mark.parametrize("writes", ["nothing", "buffer", "input"])
def test_blocks_that_write_are_computed_once(writes: str, digits: Dataset, tmp_path: Path) -> None:
    data = first_rows(digits, 24)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), *(_Counting(writes) for _ in range(3)), nn.Linear(16, 10))
    model = fl.load(net, data=data, size=8)
    model.blocks = ["module.2", "module.3", "module.4"]
    made = plan(model, data, tmp_path, adapt="full", checkpoint_activations="on", epochs=1, batch=12)
    assert bool(made.execution.recomputed) == (writes == "nothing")
    fl.train(made, quiet=True)


@pytest.mark.parametrize("wish", ["on", "off"])
def test_gradients_count_beside_what_is_kept(wish: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were hidden behind activations that are freed while they are made; where fewer are, they may be what the peak is made of."""
    seen: list[bool] = []
    predict = plan_module.predict_peak_bytes
    monkeypatch.setattr(
        plan_module, "predict_peak_bytes", lambda *args, **options: (seen.append(args[1].has_gradients), predict(*args, **options))[1]
    )
    monkeypatch.setattr(plan_module, "probe", lambda *args: replace(probe(*args), has_gradients=True))
    llama_with_lora(tmp_path, checkpoint_activations=wish)
    assert seen[-1] == (wish == "off")


def test_the_models_own_is_switched_off(tmp_path: Path) -> None:
    data = talks()
    model = llama(data)
    model.module.gradient_checkpointing_enable()
    made = plan(model, data, tmp_path, adapt="full", pack="on", batch=6, epochs=1)
    assert any("own gradient checkpointing was switched off" in text for text in made.warnings)
    assert made.decision("pack")
    fl.train(made, quiet=True)
