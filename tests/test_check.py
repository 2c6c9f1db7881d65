"""The doctor before a run: everything that is wrong, found together; nothing trained and nothing written."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import frostline as fl
from frostline import api
from frostline.check import Findings, check, conflicts, read_data, refuse_conflicts, rows_as_seen
from frostline.data.dataset import Dataset
from frostline.errors import FrostlineError, RecipeError
from frostline.recipe import Recipe
from frostline.train import loop
from tests.small import IMAGE_OPTIONS, TEXT_OPTIONS

Command = Callable[..., Any]


def recipe(path: Path, **values: Any) -> Recipe:
    small = {"data.path": path, "model.name": "gru", "model.width": 16}
    return Recipe().with_values({**small, **{name.replace("__", "."): value for name, value in values.items()}})


@pytest.fixture
def nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, snapshot: Callable[[Path], dict[str, bytes]]) -> Any:
    """Training fails, and after the test the current folder is as it was."""
    monkeypatch.chdir(tmp_path)
    for owner, name in ((api, "train_into"), (loop, "train_into"), (torch.Tensor, "backward")):
        monkeypatch.setattr(owner, name, lambda *args, **options: pytest.fail("check trains nothing"))
    yield
    assert snapshot(tmp_path) == {}


def test_nothing_wrong(nothing_else: None, reviews: Path) -> None:
    findings = check(recipe(reviews))
    assert findings.errors == []
    assert findings.warnings == []
    assert len(findings.rows) == 3
    assert str(findings).endswith("0 errors, 0 warnings")


def test_several_problems_at_once(nothing_else: None, command: Command, reviews: Path) -> None:
    words = ["train.epochs=0", "train.loss=mse", "data.augment.zoom=0.1", "model.pool=attention", "train.best_by=猫"]
    done = command("check", reviews, *TEXT_OPTIONS, *words, "--json")
    found = json.loads(done.out)
    assert done.code == 2
    assert found["ok"] is False
    expected = ["train.epochs got 0", "train.loss", "data.augment is for images", "train.best_by got '猫'"]
    assert len(found["errors"]) >= len(expected)
    assert all(any(error.startswith(start) for error in found["errors"]) for start in expected)
    assert len(found["rows"]) == 3, "the rows are shown all the same"
    text = command("check", reviews, *TEXT_OPTIONS, *words).out
    assert text.count("\nerror: ") + text.startswith("error: ") == len(found["errors"])


def test_data_that_cannot_be_read(nothing_else: None) -> None:
    """What the recipe says wrong by itself is told as well."""
    findings = check(recipe(Path("nowhere"), train__epochs=0, train__lr=-1))
    assert [error.split(" ")[0] for error in findings.errors] == ["'nowhere'", "train.epochs", "train.lr"]
    assert findings.rows == []


def test_a_model_that_cannot_be_made(nothing_else: None, reviews: Path) -> None:
    findings = check(recipe(reviews, model__name="vgg16", train__batch=0))
    assert findings.errors[0].startswith("train.batch got 0")
    assert "'vgg16'" in findings.errors[1]


def test_texts_that_are_cut(nothing_else: None, reviews: Path) -> None:
    findings = check(recipe(reviews, data__max_length=3))
    assert findings.warnings == [
        "100.0% of the training texts are longer than 3 tokens and are cut. Raise data.max_length if the end matters"
    ]
    assert {row["length"] for row in findings.rows} == {3}


def test_rows_of_images(nothing_else: None, command: Command, digit_folder: Path) -> None:
    found = json.loads(command("check", digit_folder, *IMAGE_OPTIONS, "--json").out)
    assert found["ok"]
    assert len(found["rows"]) == 3
    for row in found["rows"]:
        assert Path(row["image"]).parent.name == row["label"]
        assert row["shape"][1:] == [28, 28]
        assert row["std"] > 0


def test_rows_are_those_that_the_model_sees(texts: Dataset) -> None:
    model = fl.load("gru", data=texts, width=16)
    rows = rows_as_seen(model, texts, count=5)
    tokenizer = model.card.preprocess.tokenizer  # type: ignore[union-attr]
    training = dict(zip(texts.splits["train"]["text"].to_pylist(), texts.splits["train"]["label"].to_pylist()))
    assert len(rows) == 5
    assert {row["label"] for row in rows} == {"好", "坏"}, "they are spread over the split"
    for row in rows:
        ids = tokenizer(row["text"])["input_ids"]
        assert texts.schema.labels[training[row["text"]]] == row["label"]
        assert row["length"] == len(ids)
        assert row["tokens"] == [tokenizer.decode([token]) for token in ids][:40]


@pytest.mark.parametrize("number", [True, False], ids=["number", "multi-label"])
def test_labels_of_other_targets(number: bool) -> None:
    rows = [(f"text {i}", str(i / 2) if number else "a|b" if i % 2 else "b") for i in range(30)]
    data = fl.prepare(rows, task="text-classification", target="number" if number else "multi-label")
    labels = [row["label"] for row in rows_as_seen(fl.load("gru", data=data, width=16), data)]
    assert all(isinstance(label, float) if number else set(label) <= {"a", "b"} for label in labels)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.epochs", 0),
        ("train.batch", 0),
        ("train.accumulate", 0),
        ("train.lr", 0),
        ("train.weight_decay", -1),
        ("train.momentum", 1),
        ("train.warmup", -1),
        ("train.clip", 0),
        ("train.ema", 1),
        ("train.early_stopping", 0),
        ("train.checkpoint_every", 0),
        ("adapt.every", 0),
        ("data.workers", -1),
        ("data.augment.mixup", -1),
        ("data.augment.cutmix", -1),
        ("data.augment.shear", -1),
        ("data.augment.rotation", -5),
        ("data.augment.width_shift", -0.1),
        ("data.augment.height_shift", -0.1),
        ("data.augment.zoom", 1),
        ("data.augment.crop", 1),
        ("data.augment.brightness", -0.1),
        ("data.augment.contrast", 2),
        ("data.augment.cutout", 1.5),
    ],
)
def test_out_of_range(texts: Dataset, digits: Dataset, key: str, value: float) -> None:
    """Each message names the key, the value, what was expected, and a value that would do."""
    texts = digits if "augment" in key else texts
    found = conflicts(Recipe().with_values({key: value}), texts.schema, texts)
    assert len(found) == 1
    assert found[0].startswith(f"{key} got {value!r}") or found[0].startswith(f"{key} got {float(value)!r}")
    fix = found[0].partition("Use: ")[2]
    assert conflicts(Recipe().with_values(dict([fix.split("=")])), texts.schema, texts) == []


def test_what_needs_a_validation_split(texts: Dataset) -> None:
    data = dataclasses.replace(texts, splits={"train": texts.splits["train"]})
    for values in ({"train.early_stopping": 2}, {"train.schedule": "plateau"}, {"train.best_by": "loss"}):
        found = conflicts(Recipe().with_values(values), data.schema, data)
        assert len(found) == 1
        assert "data.val=0.1" in found[0]
        assert conflicts(Recipe().with_values(values), texts.schema, texts) == []


def test_what_does_not_apply_to_the_task(texts: Dataset, digits: Dataset) -> None:
    for data, other, values in ((texts, digits, {"data.size": 32}), (digits, texts, {"data.max_length": 9})):
        (found,) = conflicts(Recipe().with_values(values), data.schema, data)
        (key,) = values
        assert found.startswith(f"{key} got {values[key]}")
        assert data.schema.task in found
        assert conflicts(Recipe().with_values(values), other.schema, other) == []


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"adapt": "last 99"}, "got 'last 99'"),
        ({"adapt": "lora", "adapt.targets": ["nowhere*"]}, "nowhere*"),
        ({"adapt.lr_decay": -1}, "adapt.lr_decay: got -1"),
        ({"train.optimizer": "sgd", "train.nesterov": True, "train.momentum": 0}, "train.nesterov"),
        ({"train.optimizer": "muon", "adapt": "head"}, "got 'muon', but no matrix"),
    ],
)
def test_how_it_will_learn(nothing_else: None, reviews: Path, values: dict[str, Any], part: str) -> None:
    findings = check(recipe(reviews).with_values(values))
    assert len(findings.errors) == 1
    assert part in findings.errors[0]
    assert len(findings.rows) == 3, "the rows are shown all the same"


def test_an_optimiser_without_its_package(nothing_else: None, reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lion_pytorch", None)
    (error,) = check(recipe(reviews, train__optimizer="lion")).errors
    assert "lion" in error


def test_a_momentum_out_of_range_is_told_once(nothing_else: None, reviews: Path) -> None:
    (error,) = check(recipe(reviews, train__optimizer="sgd", train__momentum=-1)).errors
    assert error.startswith("train.momentum got -1")


def test_what_prepared_data_was_saved_with(digit_folder: Path, tmp_path: Path) -> None:
    """What the user set stands, be it the default; what the user left open is what the data was prepared with."""
    augment = {"horizontal_flip": True, "zoom": 0.2}
    fl.prepare(digit_folder, size=24, augment=augment).save(tmp_path / "数据")
    base = Recipe().with_values({"data.path": tmp_path / "数据"})
    settled, data, filled = read_data(base, ())
    assert filled == {"data.size": 24, "data.augment.horizontal_flip": True, "data.augment.zoom": 0.2}
    assert (settled.data.size, settled.data.augment.horizontal_flip) == (24, True)
    assert data.recipe["augment"] == dataclasses.asdict(settled.data.augment)
    given = base.with_values({"data.size": 32, "data.augment.zoom": 0})
    settled, data, filled = read_data(given, {"data.size", "data.augment.zoom"})
    assert filled == {"data.augment.horizontal_flip": True}
    assert (settled.data.size, settled.data.augment.zoom, data.recipe["size"]) == (32, 0, 32)
    raw = Recipe().with_values({"data.path": digit_folder, "data.size": 28})
    settled, data, filled = read_data(raw, {"data.size"})
    assert (settled, filled, data.recipe["size"]) == (raw, {}, 28)


def test_rows_hold_to_the_limit_of_pixels(digit_folder: Path) -> None:
    data = fl.prepare(digit_folder)
    model = fl.load("cnn", data=data, size=28, width=16)
    assert rows_as_seen(model, data)
    data.recipe["max_pixels"] = 10
    with pytest.raises(FrostlineError, match="pixels"):
        rows_as_seen(model, data)


def test_a_folder_that_is_taken(texts: Dataset, tmp_path: Path) -> None:
    """It is said before anything is prepared or planned."""
    (tmp_path / "a").mkdir()
    (tmp_path / "file").write_text("")
    for out in (None, tmp_path / "a", tmp_path / "new"):
        assert conflicts(Recipe().with_values({"out": out}), texts.schema, texts) == []
    for out, part in ((tmp_path, "is not empty"), (tmp_path / "file", "is a file")):
        assert part in conflicts(Recipe().with_values({"out": out}), texts.schema, texts)[0]


def test_one_conflict_stands_alone_several_are_listed(texts: Dataset) -> None:
    with pytest.raises(RecipeError, match=r"^train\.epochs got 0"):
        refuse_conflicts(Recipe().with_values({"train.epochs": 0}), texts.schema, texts)
    with pytest.raises(RecipeError, match=r"^2 settings of the recipe cannot be carried out:\n- train\.epochs.*\n- train\.batch"):
        refuse_conflicts(Recipe().with_values({"train.epochs": 0, "train.batch": 0}), texts.schema, texts)
    refuse_conflicts(Recipe(), texts.schema, texts)


def test_findings_as_text() -> None:
    text = str(Findings(errors=["a"], warnings=["b", "c"], rows=[{"label": "猫", "length": 3}]))
    assert text.splitlines() == ["error: a", "warning: b", "warning: c", "row: label 猫; length 3", "1 error, 2 warnings"]
