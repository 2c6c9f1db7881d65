"""Frozen weights in files: the same run bit for bit, only where memory is missing, and said with its price."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import frostline as fl
from frostline.errors import RecipeError
from frostline.kernels import hosted_weights, mapped_weights
from frostline.plan import plan as plan_module
from frostline.plan.decision import Decision
from frostline.plan.passes import offload
from frostline.plan.plan import Plan
from tests.plan.small import bert_with_lora, llama_with_lora
from tests.train.small import saved, stopped_and_resumed


@pytest.fixture(autouse=True)
def _small_weights_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_weights, "_LEAST", 1024)


def decision(made: Plan) -> Decision | None:
    return next((one for one in made.decisions if one.what == "offload"), None)


def mapped(made: Plan) -> int:
    """Frozen weights that lie in files, by what the process has mapped."""
    with open("/proc/self/maps") as maps:
        ranges = [tuple(int(part, 16) for part in line.split()[0].split("-")) for line in maps if "/mapped/" in line]
    weights = mapped_weights.frozen_weights(made.model.module).values()
    return sum(any(start <= weight.data_ptr() < stop for start, stop in ranges) for weight in weights)


def test_the_run_is_the_same(tmp_path: Path) -> None:
    usual = llama_with_lora(tmp_path / "plain")
    made = llama_with_lora(tmp_path / "mapped", offload="on")
    found = decision(made)
    assert decision(usual) is None and mapped(usual) == 0
    assert found and found.on and found.exact and "the recipe asks for it" in found.why and found.costs == "nothing is read again"
    assert mapped(made) == len(mapped_weights.frozen_weights(made.model.module)) > 5
    plain, moved = fl.train(usual, quiet=True), fl.train(made, quiet=True)
    assert [epoch["loss"] for epoch in moved.history] == [epoch["loss"] for epoch in plain.history]
    for name, value in usual.model.module.state_dict().items():
        assert torch.equal(made.model.module.state_dict()[name], value), name


def test_a_run_that_goes_on(texts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fl.train(bert_with_lora(texts, tmp_path, out=str(tmp_path / "whole"), offload="on"), quiet=True)
    made = bert_with_lora(texts, tmp_path, out=str(tmp_path / "parts"), offload="on")
    moved: list[int] = []
    monkeypatch.setattr(offload, "map_weights", lambda tensors: (moved.append(len(tensors)), mapped_weights.map_weights(tensors))[1])
    parts = stopped_and_resumed(made, 3, monkeypatch)
    assert moved == [mapped(made)]
    for name, value in saved(whole).items():
        assert torch.equal(saved(parts)[name], value), name


def test_where_memory_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The free memory is just short of what is needed: the weights that lie in files make up for it."""
    made = llama_with_lora(tmp_path / "room")
    assert decision(made) is None
    size = sum(weight.nbytes for weight in mapped_weights.frozen_weights(made.model.module).values())
    fixed = 10**12
    monkeypatch.setattr(plan_module, "predict_peak_bytes", lambda *_, **__: fixed)
    room = [fixed - size // 2]
    monkeypatch.setattr(plan_module, "memory_limit", lambda *_: room[0] - plan_module.resident_bytes())
    options = {"checkpoint_activations": "off", "micro_batch": 6}
    made = llama_with_lora(tmp_path / "short", **options)
    found = decision(made)
    assert found and found.on and "GB of memory are missing" in found.why and mapped(made) > 5
    assert made.predicted.peak_bytes == fixed, "the pages count as long as there is room for them"
    with pytest.raises(RecipeError, match="would need"):
        llama_with_lora(tmp_path / "off", offload="off", **options)
    room[0] = fixed - 2 * size
    with pytest.raises(RecipeError, match="would need"):
        llama_with_lora(tmp_path / "shorter", **options)


def test_what_is_read_again_and_how_long_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "map_weights", lambda tensors: 1e6)
    made = llama_with_lora(tmp_path, prepack="off", cache="off")
    weights = mapped_weights.frozen_weights(made.model.module)
    size = sum(weight.nbytes for weight in weights.values())
    assert offload.read_again(made.execution, weights) == weights
    found = offload.propose(made.recipe, made.execution, 1)
    assert (
        found.bytes == size
        and found.seconds == pytest.approx(size / 1e6)
        and "read in each pass" in found.decision.why + found.decision.costs
    )
    name = next(iter(weights)).rpartition(".")[0]
    made.execution.products[name] = None  # multiplied by in a form of its own
    assert list(weights) != list(offload.read_again(made.execution, weights))
    cold = weights[f"{name}.weight"].nbytes
    assert offload.propose(made.recipe, made.execution, cold).seconds == 0, "it makes room for the others"
    assert offload.propose(made.recipe, made.execution, cold + 1).seconds == pytest.approx((size - cold) / 1e6)
    work = plan_module._work(made.recipe, made.model, made.execution.sources)
    passes = work.epochs * (2 * work.train_rows + work.validation_rows) / work.batch
    assert offload.seconds(work, found) == {"weights from disk": pytest.approx(passes * size / 1e6)}
    assert offload.seconds(work, offload.Offloaded()) == {}


def test_what_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = llama_with_lora(tmp_path, adapt="full", offload="on")
    assert decision(full) == Decision(what="offload", on=False, why="nothing frozen is large enough")
    made = llama_with_lora(tmp_path / "lora")
    monkeypatch.setattr(offload.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    found = offload.propose(made.recipe, made.execution, 1).decision
    assert found and not found.on and "GB of disk" in found.why and mapped(made) == 0


def test_as_many_blocks_stay_away_from_a_gpu_as_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosted_weights, "_LEAST", 1024)
    made = llama_with_lora(tmp_path)
    recipe, model = made.recipe, made.model
    sizes = offload._hosted_bytes(model.module, model.blocks)
    assert len(sizes) == len(model.blocks) >= 2 and min(sizes.values()) > 1024
    learning = sum(parameter.nbytes for parameter in model.module.parameters() if parameter.requires_grad)
    needed = sum(tensor.nbytes for tensor in model.module.state_dict().values()) + 3 * learning
    assert offload._too_many(recipe, model, int(needed / 0.9) + 1) == []
    assert offload._too_many(recipe, model, 0) == list(model.blocks)
    block = next(iter(sizes.values()))
    monkeypatch.setattr(offload, "_hosted_bytes", lambda _, names: dict.fromkeys("abcdef", block) if names else {})
    assert offload._too_many(recipe, model, int((needed - 1) / 0.9)) == ["a", "b", "c"], "two of them are there while they are computed"
    off = recipe.with_values({"plan.offload": "off"})
    assert offload._too_many(off, model, 0) == []
    assert offload._too_many(recipe.with_values({"plan.offload": "on"}), model, 2**40) == list("abcdef")
    assert offload._too_many(recipe.with_values({"adapt": {"method": "gradual"}}), model, 0) == [], "they will learn"
    assert offload.place(recipe, model, torch.device("cpu")) is None
