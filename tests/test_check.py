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
from frostline.check import Findings, check, read_data
from frostline.data.dataset import Dataset
from frostline.data.seen import rows_as_seen
from frostline.errors import FrostlineError
from frostline.models.save import save_model
from frostline.recipe import DataRecipe, Recipe
from frostline.train import loop
from tests import small
from tests.models import tiny
from tests.models.language import folder_of
from tests.small import IMAGE_OPTIONS, TEXT_OPTIONS, review_rows

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
    rows = rows_as_seen(model.card.preprocess, texts, DataRecipe(), count=5)
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
    preprocess = fl.load("gru", data=data, width=16).card.preprocess
    labels = [row["label"] for row in rows_as_seen(preprocess, data, DataRecipe())]
    assert all(isinstance(label, float) if number else set(label) <= {"a", "b"} for label in labels)


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


def test_adapting_and_the_optimiser_are_both_told(nothing_else: None, reviews: Path) -> None:
    """Neither of the two hides what the other refuses."""
    findings = check(recipe(reviews, adapt="last 99", train__optimizer="sgd", train__nesterov=True, train__momentum=0))
    assert [part in error for part, error in zip(("got 'last 99'", "train.nesterov"), findings.errors, strict=True)] == [True, True]
    decay = {"adapt.lr_decay": -1, "train.optimizer": "sgd", "train.nesterov": True, "train.momentum": 0}
    assert len(check(recipe(reviews).with_values(decay)).errors) == 2


@pytest.fixture(scope="module")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Hugging Face folder and a saved model, the weights of both damaged."""
    folder = tmp_path_factory.mktemp("模型")
    data = fl.prepare(review_rows(), task="text-classification")
    save_model(fl.load("gru", data=data, width=16), folder / "saved")
    folders = tiny.text_folder("bert", folder / "bert"), folder / "saved"
    for place in folders:
        (place / "model.safetensors").write_bytes(b"damaged")
    return folders


def test_rows_are_shown_before_weights_are_read(nothing_else: None, reviews: Path, model_folders: tuple[Path, Path]) -> None:
    for folder in model_folders:
        values = {"data.path": reviews, "model.name": folder, "train.epochs": 0}
        findings = check(Recipe().with_values(values))
        assert len(findings.rows) == 3
        assert findings.errors[0].startswith("train.epochs got 0")
        assert "model.safetensors" in findings.errors[1]
        assert len(findings.errors) == 2


def test_the_rows_are_shown_though_a_weight_file_is_missing(nothing_else: None, digit_folder: Path) -> None:
    values = {"data.path": digit_folder, "model.name": "vgg11", "model.weights": "absent.h5", "data.size": 32}
    findings = check(Recipe().with_values(values))
    assert (len(findings.rows), len(findings.errors)) == (3, 1)
    assert "absent.h5" in findings.errors[0]


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
    preprocess = fl.load("cnn", data=data, size=28, width=16).card.preprocess
    assert rows_as_seen(preprocess, data, DataRecipe())
    with pytest.raises(FrostlineError, match="pixels"):
        rows_as_seen(preprocess, data, DataRecipe(max_pixels=10))


def test_findings_as_text() -> None:
    text = str(Findings(errors=["a"], warnings=["b", "c"], rows=[{"label": "猫", "length": 3}]))
    assert text.splitlines() == ["error: a", "warning: b", "warning: c", "row: label 猫; length 3", "1 error, 2 warnings"]


def test_every_row_of_every_split_is_looked_at(nothing_else: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The counts are of all training rows, not of those shown; a split of which no row can be learned is named."""
    folder = tmp_path_factory.mktemp("对话")
    long = [{"role": "user", "content": "说 " * 300}, {"role": "assistant", "content": "好"}]
    talks = {"train": small.talks(40), "test": [{"messages": [*long[:1], {**long[1], "content": f"好{n}"}]} for n in range(3)]}
    talks["train"][7]["messages"][1]["content"] = "好的 " * 200
    for name, rows in talks.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    small_gpt = {"model.name": "gpt", "model.width": 16, "model.depth": 1, "model.tokenizer": "char"}
    findings = check(Recipe().with_values({"data.path": folder, "data.val": 0, "data.max_length": 160, **small_gpt}))
    assert any("conversations were cut to 160 tokens (data.max_length)" in text for text in findings.warnings)
    assert len(findings.rows) == 3
    (error,) = findings.errors
    assert error.startswith("the test split: none of the 3 conversations has a token to train")


def test_a_chat_template_that_is_chosen_is_told(nothing_else: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("模型")
    (folder / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in small.talks(20)), encoding="utf-8")
    model = folder_of("llama", folder / "llama", chat=False, max_position_embeddings=200)
    findings = check(Recipe().with_values({"data.path": folder / "talks.jsonl", "model.name": model, "data.max_length": 160}))
    assert findings.errors == []
    assert any("the chat template was missing" in text for text in findings.warnings)


def test_images_of_no_size(nothing_else: None, digit_folder: Path) -> None:
    findings = check(Recipe().with_values({"data.path": digit_folder, "model.name": "cnn", "data.size": 0}))
    assert any("data.size got 0, expected 1 or more" in text for text in findings.errors)


def test_random_weights_that_never_learn(nothing_else: None, digit_folder: Path) -> None:
    values = {"data.path": digit_folder, "model.name": "cnn", "data.size": 32}
    frozen, learning = (check(Recipe().with_values({**values, "adapt.method": method})) for method in ("head", "full"))
    assert any("of 'cnn' are random and frozen" in text for text in frozen.warnings)
    assert not any("random" in text for text in learning.warnings)
