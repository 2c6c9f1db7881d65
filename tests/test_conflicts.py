"""What cannot be carried out, or has no effect, is refused before a run: every setting of it, with its fix."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import frostline as fl
from frostline import device
from frostline.conflicts import conflicts, refuse_conflicts
from frostline.data.dataset import Dataset
from frostline.errors import RecipeError
from frostline.models.save import save_model
from frostline.recipe import Recipe


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
        ("data.augment.views", 0),
    ],
)
def test_out_of_range(texts: Dataset, digits: Dataset, key: str, value: float) -> None:
    """Each message names the key, the value, what was expected, and a value that would do."""
    texts = digits if "augment" in key else texts
    others = {"adapt.every": {"adapt": "gradual"}, "data.augment.views": {"data.augment.horizontal_flip": True}}
    base = Recipe().with_values(others.get(key, {}))
    found = conflicts(base.with_values({key: value}), texts.schema, texts)
    assert len(found) == 1
    assert found[0].startswith(f"{key} got {value!r}") or found[0].startswith(f"{key} got {float(value)!r}")
    fix = found[0].partition("Use: ")[2]
    assert conflicts(base.with_values(dict([fix.split("=")])), texts.schema, texts) == []


def test_views_of_images_that_nothing_changes(digits: Dataset) -> None:
    (found,) = conflicts(Recipe().with_values({"data.augment.views": 3}), digits.schema, digits)
    assert found == "data.augment.views got 3, and no random change is asked for. Use: data.augment.horizontal_flip=true"
    assert conflicts(Recipe().with_values({"data.augment.views": 3, "data.augment.zoom": 0.1}), digits.schema, digits) == []


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


@pytest.mark.parametrize(
    ("values", "key", "fix"),
    [
        ({"adapt": "head", "adapt.rank": 4}, "adapt.rank got 4", {"adapt": "lora"}),
        ({"adapt.alpha": 1}, "adapt.alpha got 1.0", {"adapt": "lora"}),
        ({"adapt": "last 3", "adapt.dropout": 0.1}, "adapt.dropout got 0.1", {"adapt.method": "lora", "adapt.last": 2}),
        ({"adapt": "gradual", "adapt.targets": ["query"]}, "adapt.targets got ['query']", {"adapt": "lora"}),
        ({"adapt": "full", "adapt.last": 3}, "adapt.last got 3", {"adapt.method": "last"}),
        ({"adapt": "head", "adapt.every": 2}, "adapt.every got 2", {"adapt": "gradual"}),
        ({"adapt.method": "full", "plan.int8": "on"}, "plan.int8 got 'on'", {"adapt.method": "lora"}),
        ({"adapt.method": "full", "plan.prepack": "on"}, "plan.prepack got 'on'", {"adapt.method": "lora"}),
        ({"adapt.method": "full", "plan.fuse_convolutions": "on"}, "plan.fuse_convolutions got 'on'", {"adapt.method": "head"}),
        ({"train.optimizer": "adam", "train.nesterov": True}, "train.nesterov got True", {"train.optimizer": "sgd"}),
        ({"train.focal_gamma": 1}, "train.focal_gamma got 1.0", {"train.loss": "focal"}),
        ({"data.augment.rescale": 0.5}, "data.augment is for images", {"data.augment.rescale": None}),
        ({"data.augment.fill": "reflect"}, "data.augment is for images", {"data.augment.fill": "nearest"}),
        ({"model.name": "gru", "model.layers": ["flatten"]}, "model.layers got ['flatten'] with model.name 'gru'", {"model.layers": []}),
    ],
)
def test_what_has_no_effect(texts: Dataset, values: dict[str, Any], key: str, fix: dict[str, Any]) -> None:
    """It is told with the key to remove, and with what would read it, where there is such a thing."""
    recipe = Recipe().with_values(values)
    (found,) = conflicts(recipe, texts.schema, texts)
    assert found.startswith(key)
    assert f"Remove {key.split(' ')[0]}" in found
    assert conflicts(recipe.with_values(fix), texts.schema, texts) == []


def test_every_default_may_stand_in_a_recipe(texts: Dataset, digits: Dataset, tmp_path: Path) -> None:
    """A run's recipe.yaml holds every key; what is at its default was not set."""
    save_model(fl.load("gru", data=texts, width=16), tmp_path / "saved")
    (tmp_path / "recipe.yaml").write_text(Recipe().to_yaml(), encoding="utf-8")
    whole = Recipe.from_yaml(tmp_path / "recipe.yaml")
    for data, names in ((texts, ["gru", tmp_path / "saved"]), (digits, ["vgg16", "efficientnet-lite0", "cnn"])):
        for name in names:
            for method in ("auto", "head", "last 2", "full", "lora", "gradual"):
                recipe = whole.with_values({"model.name": str(name), "adapt": method})
                assert conflicts(recipe, data.schema, data) == []


def test_options_of_another_network(texts: Dataset, digits: Dataset, tmp_path: Path) -> None:
    save_model(fl.load("gru", data=texts, width=16), tmp_path / "saved")
    for data, name in ((digits, "vgg16"), (texts, tmp_path / "saved")):
        recipe = Recipe().with_values({"model.name": str(name), "model.width": 8, "model.depth": 3, "model.dropout": 0.2})
        found = conflicts(recipe, data.schema, data)
        assert [text.split(" ")[0] for text in found] == ["model.width", "model.depth", "model.dropout"]
        assert all(repr(str(name)) in text for text in found)


def test_a_plan_of_another_method_leaves_the_numbers_of_the_first(texts: Dataset) -> None:
    model = fl.adapt(fl.load("gru", data=texts, width=16, depth=3), "last 3")
    assert fl.plan(model, texts, adapt="head").recipe.adapt == Recipe().with_values({"adapt": "head"}).adapt
    with pytest.raises(RecipeError, match=r"adapt\.rank got 4, which only adapt=lora, vera reads, and adapt\.method is 'full'"):
        fl.plan(model, texts, adapt={"method": "full", "last": 2, "rank": 4})


def test_a_device_that_is_not_there(texts: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "accelerator", lambda: None)
    (found,) = conflicts(Recipe().with_values({"train.device": "cuda"}), texts.schema, texts)
    assert found.startswith("train.device got 'cuda', expected") and found.endswith("finds no GPU. Use: train.device=auto")


def test_r2_needs_labels_that_differ() -> None:
    rows = [(f"text {i}", str(float(i))) for i in range(30)]
    data = fl.prepare(rows, task="text-classification", target="number")
    recipe = Recipe().with_values({"train.best_by": "r2", "train.early_stopping": 2})
    assert conflicts(recipe, data.schema, data) == []
    validation = data.splits["validation"]
    alike = dataclasses.replace(data, splits={**data.splits, "validation": validation.take([0] * 3)})
    (found,) = conflicts(recipe, data.schema, alike)
    label = validation["label"][0].as_py()
    assert found.startswith("train.best_by got 'r2', which is not defined where all labels are alike")
    assert f"[{label}]. Use: train.best_by=loss" in found
    assert conflicts(recipe.with_values({"train.best_by": "loss"}), data.schema, alike) == []
