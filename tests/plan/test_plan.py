"""The plan: what it settles, what it prints and saves, what it refuses, and the same again for a run that goes on."""

from __future__ import annotations

import dataclasses
import json

import pyarrow as pa
import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import DataError, RecipeError
from frostline.plan import plan as subject
from frostline.plan.decision import Decision
from frostline.plan.plan import plan_recipe
from tests.train.small import cnn, first_rows, plan


@pytest.fixture
def data(digits):
    return first_rows(digits, 60)


def test_a_plan_for_people(data, tmp_path):
    text = str(plan(cnn(data), data, tmp_path, adapt="head", cache="on", batch=20, accumulate=2, epochs=3, lr=0.002, optimizer="sgd"))
    assert "Plan for cnn, image-classification: adapt head" in text
    assert "cache_prefix" in text and "the frozen part runs once instead of 3 times" in text
    assert "work: 60 rows in batches of 20 × 2 = 2 steps an epoch, 3 epochs, lr 0.002 (sgd)" in text
    assert "predicted:" in text and "peak memory" in text and "disk" in text
    assert ", of which 50 (" in text  # 4 features to 10 classes, and biases


def test_a_plan_in_a_notebook_is_escaped(data, tmp_path):
    made = plan(cnn(data), data, tmp_path, adapt="full")
    made.decisions.append(Decision(what="x", on=True, why="a < b & c"))
    assert "a &lt; b &amp; c" in made._repr_html_() and made._repr_html_().startswith("<pre>")


def test_a_plan_as_json(data, tmp_path):
    made = plan(cnn(data), data, tmp_path, adapt="head", cache="on")
    content = json.loads(json.dumps(made.to_dict()))
    assert [Decision(**decision) for decision in content["decisions"]] == made.decisions
    assert content["model"] == "cnn" and content["data"] == data.fingerprint
    assert content["predicted"]["seconds"] == pytest.approx(sum(content["predicted"]["parts"].values()))
    assert made.decision("cache_prefix") and not made.decision("bf16") and not made.decision("no such pass")


def test_the_counts(data, tmp_path):
    model = cnn(data)
    made = plan(model, data, tmp_path, adapt="head", cache="on", optimizer="adam")
    every = sum(p.numel() for p in model.module.parameters())
    learning = sum(p.numel() for p in model.module.parameters() if p.requires_grad)
    counts = made.parameters
    assert (counts["all"], counts["learning"], counts["before_line"]) == (every, learning, every - learning)
    assert counts["weights_bytes"] == 4 * every and counts["gradients_bytes"] == 4 * learning and counts["optimizer_bytes"] == 8 * learning
    stored = (60 + 30) * 4 * 4  # rows of train and at most of validation, 4 features
    rows = sum(table.nbytes for table in data.splits.values())
    assert rows < made.predicted.disk_bytes < rows + stored + 4 * every + 2 * 12 * learning + 10_000
    assert made.predicted.peak_bytes > counts["gradients_bytes"]


def test_the_learning_rate_is_settled(data, tmp_path):
    assert plan(cnn(data), data, tmp_path, lr=None).recipe.train.lr == 1e-3
    assert plan(cnn(data), data, tmp_path, lr=None, optimizer="sgd").recipe.train.lr == 1e-2
    assert plan(cnn(data), data, tmp_path, lr=0.5).recipe.train.lr == 0.5
    assert plan(cnn(data), data, tmp_path).recipe.adapt.method == "full"


def test_no_training_rows(data, tmp_path):
    empty = {**data.splits, "train": data.splits["train"].slice(0, 0)}
    model = cnn(data)
    with pytest.raises(DataError, match=r"no training rows, expected at least one.*frostline check"):
        plan(model, dataclasses.replace(data, splits=empty), tmp_path)


def test_one_training_row_and_no_validation(data, tmp_path):
    one = dataclasses.replace(data, splits={"train": data.splits["train"].slice(0, 1)})
    made = plan(cnn(data), one, tmp_path / "run", adapt="head", cache="on", epochs=1)
    assert not made.decision("cache_prefix")
    assert "validation" not in made.predicted.parts and "validation" not in made.execution.sources
    run = fl.train(made, quiet=True)
    assert len(run.history) == 1 and not any(name.startswith("val_") for name in run.history[0])


def test_what_cannot_fit_is_refused_with_advice(data, tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "memory_limit", lambda *_: -subject.resident_bytes() + 1_000_000)
    advice = r"Try train\.batch=12 train\.accumulate=2, or adapt=head"
    with pytest.raises(RecipeError, match=rf"would need .* GB of memory and .* are free\. {advice}"):
        plan(cnn(data), data, tmp_path)


def test_a_run_that_goes_on_measures_nothing_and_decides_the_same(data, tmp_path, monkeypatch):
    made = plan(cnn(data), data, tmp_path, adapt="head", cache="on", channels_last="on", precision="bf16")
    for name in ("machine", "probe"):
        monkeypatch.setattr(subject, name, lambda *args: pytest.fail("measured again"))
    again = plan_recipe(made.recipe, cnn(data), data, forced=made.decisions)
    assert again.decisions == made.decisions
    assert (again.execution.precision, again.execution.channels_last) == ("bf16", True)
    assert again.execution.line.border == made.execution.line.border
    assert again.recipe == made.recipe and again.parameters["learning"] == made.parameters["learning"]


def test_balanced_class_weights(data, tmp_path):
    train = data.splits["train"]
    labels = pa.array([0] * 40 + [1] * 20, pa.int32())
    skewed = {**data.splits, "train": train.set_column(train.column_names.index("label"), "label", labels)}
    made = plan(cnn(data), dataclasses.replace(data, splits=skewed), tmp_path, class_weights="balanced")
    weights = made.loss_options.class_weights
    assert weights[1] == pytest.approx(2 * weights[0])
    logits = torch.zeros(2, 10)
    total, count = made.loss(logits, torch.tensor([0, 1]))
    assert float(total / count) == pytest.approx(float(torch.log(torch.tensor(10.0))))


def test_a_last_batch_of_one_row_is_refused_where_batch_norm_needs_two(data):
    model = fl.load("cnn", data=data, width=16, head=["dense 8", "batchnorm"])
    with pytest.raises(RecipeError, match=r"train.batch got 59: of 60 training rows .*Use: train.batch=60"):
        fl.plan(model, data, batch=59)
    assert fl.plan(model, data, batch=20)


def test_balanced_weights_for_several_labels(texts):
    rows = {"text": [f"row {i}" for i in range(40)], "labels": ["a" if i % 4 else "a|b" for i in range(40)]}
    several = fl.prepare(rows, target="multi-label")
    made = fl.plan(fl.load("mlp", data=several, width=8), several, class_weights="balanced")
    assert made.loss_options.class_weights is not None and len(made.loss_options.class_weights) == 2


def test_a_gradual_run_is_planned_as_its_last_epoch(data, tmp_path):
    model = fl.load("cnn", data=data, width=16, depth=2)
    head = fl.plan(fl.load("cnn", data=data, width=16, depth=2), data, adapt="head", epochs=5)
    made = fl.plan(model, data, adapt="gradual", epochs=5)
    full = sum(p.numel() for p in model.module.parameters())
    assert made.parameters["learning"] == full > head.parameters["learning"]
    assert sum(p.numel() for p in model.module.parameters() if p.requires_grad) == head.parameters["learning"]  # as it begins


def test_quality_fast_takes_the_faster_precision(data, monkeypatch):
    from frostline.plan import machine
    from tests.conftest import MACHINE

    monkeypatch.setattr(machine, "_measure", lambda: dataclasses.replace(MACHINE, bf16_gflops=500.0))
    assert fl.plan(cnn(data), data, quality="fast").decision("bf16") and not fl.plan(cnn(data), data).decision("bf16")


def test_a_last_row_alone_that_a_batch_norm_cannot_take(digits, tmp_path):
    """Over images it can, as long as these have more than one place."""
    data = first_rows(digits, 25)

    def net(*pooled: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), *pooled, nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(10))

    plan(fl.load(net(), data=data, size=8), data, tmp_path, adapt="full")
    with pytest.raises(RecipeError, match=r"train\.batch got 24.*'module\.2' needs two.*train\.batch=25"):
        plan(fl.load(net(nn.AdaptiveAvgPool2d(1)), data=data, size=8), data, tmp_path, adapt="full")


def test_random_weights_that_are_frozen_are_told_of(data, tmp_path):
    assert any("random and frozen" in text for text in plan(cnn(data), data, tmp_path / "a", adapt="head").warnings)
    assert plan(cnn(data), data, tmp_path / "b", adapt="full").warnings == []
    run = fl.train(plan(cnn(data), data, tmp_path / "c", adapt="full", epochs=1), quiet=True)
    assert plan(fl.load(str(run.folder)), data, tmp_path / "d", adapt="head").warnings == []
