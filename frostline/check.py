"""The run doctor before a run (law 10): everything that is wrong or doubtful, found and reported together.

``frostline check`` prepares the data, looks at the recipe, reads the model, and shows three rows as the model will see
them; it trains nothing and writes nothing.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from frostline.adapt.apply import adapt
from frostline.adapt.groups import parameter_groups
from frostline.adapt.lora import inject
from frostline.data.dataset import Dataset, Schema
from frostline.data.encode import split_source
from frostline.data.preprocess import TextPreprocess
from frostline.errors import FrostlineError, RecipeError
from frostline.models.model import Model
from frostline.recipe import AugmentRecipe, Recipe
from frostline.tasks.losses import loss_conflicts
from frostline.train.optimizers import build_optimizer

_EPOCH_METRICS = {
    "class": ("loss", "accuracy", "f1_macro"),
    "multi-label": ("loss", "f1_micro", "f1_macro", "subset_accuracy"),
    "number": ("loss", "mae", "rmse", "mse", "r2"),
}
"""What `train.best_by` may name."""


@dataclass(kw_only=True)
class Findings:
    """What a check found: errors stop a run, warnings do not."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    """A few rows as the model sees them."""

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ok": not self.errors}

    def __str__(self) -> str:
        lines = [f"error: {text}" for text in self.errors] + [f"warning: {text}" for text in self.warnings]
        lines += [self.rows_text()] if self.rows else []
        return "\n".join([*lines, f"{_counted(self.errors, 'error')}, {_counted(self.warnings, 'warning')}"])

    def rows_text(self) -> str:
        """The rows alone, one line each."""
        return "\n".join("row: " + "; ".join(f"{name} {value}" for name, value in row.items()) for row in self.rows)


def _counted(found: list[str], name: str) -> str:
    return f"{len(found)} {name}{'' if len(found) == 1 else 's'}"


def refuse_conflicts(recipe: Recipe, schema: Schema, data: Dataset) -> None:
    """Raise one RecipeError that names every conflict of the recipe with itself and with the data."""
    found = conflicts(recipe, schema, data)
    if found:
        raise RecipeError(
            found[0] if len(found) == 1 else "\n- ".join([f"{len(found)} settings of the recipe cannot be carried out:", *found])
        )


def conflicts(recipe: Recipe, schema: Schema, data: Dataset) -> list[str]:
    """Every setting that cannot be carried out, each as one message with its fix."""
    return [*_of_the_recipe(recipe), *loss_conflicts(recipe.train, schema), *_with_data(recipe, schema, data)]


def _of_the_recipe(recipe: Recipe) -> list[str]:
    """What can be said before the data is read."""
    return [*_out_of_range(recipe), *_taken(recipe)]


def _taken(recipe: Recipe) -> list[str]:
    """Whether the run's folder is one that will be refused, which should not come out only after all the work before it."""
    folder = Path(recipe.out or "")
    if recipe.out is None or not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return []
    kind = "is a file" if folder.is_file() else "holds another run" if (folder / "recipe.yaml").exists() else "is not empty"
    advice = f", or go on with that run: frostline train --resume {folder}" if kind == "holds another run" else ""
    return [f"out={str(folder)!r} {kind}, expected a folder that is new or empty. Choose another with --out{advice}"]


def _out_of_range(recipe: Recipe) -> list[str]:
    train, adapt = recipe.train, recipe.adapt
    rules = [
        ("train.epochs", train.epochs, train.epochs >= 1, "1 or more", "3"),
        ("train.batch", train.batch, train.batch >= 1, "1 or more", "32"),
        ("train.accumulate", train.accumulate, train.accumulate >= 1, "1 or more", "1"),
        ("train.lr", train.lr, train.lr is None or train.lr > 0, "more than 0", "1e-3"),
        ("train.weight_decay", train.weight_decay, train.weight_decay >= 0, "0 or more", "0.01"),
        ("train.momentum", train.momentum, 0 <= train.momentum < 1, "0 or more and below 1", "0.9"),
        ("train.warmup", train.warmup, train.warmup >= 0, "0 or more", "0.06"),
        ("train.clip", train.clip, train.clip is None or train.clip > 0, "more than 0", "1"),
        ("train.ema", train.ema, train.ema is None or 0 < train.ema < 1, "between 0 and 1", "0.999"),
        ("train.early_stopping", train.early_stopping, train.early_stopping is None or train.early_stopping >= 1, "1 or more", "3"),
        (
            "train.checkpoint_every",
            train.checkpoint_every,
            train.checkpoint_every is None or train.checkpoint_every >= 1,
            "1 or more",
            "100",
        ),
        ("adapt.every", adapt.every, adapt.every >= 1, "1 or more", "1"),
        ("data.workers", recipe.data.workers, recipe.data.workers is None or recipe.data.workers >= 0, "0 or more", "2"),
        *_augment_rules(recipe.data.augment),
    ]
    return [f"{key} got {value!r}, expected {expected}. Use: {key}={example}" for key, value, fine, expected, example in rules if not fine]


def _augment_rules(augment: AugmentRecipe) -> list[tuple[str, float, bool, str, str]]:
    amounts = {name: getattr(augment, name) for name in ("mixup", "cutmix", "shear", "rotation", "width_shift", "height_shift")}
    shares = {name: getattr(augment, name) for name in ("zoom", "crop", "brightness", "contrast")}
    return [
        *((f"data.augment.{name}", value, value >= 0, "0 or more", "0.1") for name, value in amounts.items()),
        *((f"data.augment.{name}", value, 0 <= value < 1, "0 or more and below 1", "0.1") for name, value in shares.items()),
        ("data.augment.cutout", augment.cutout, 0 <= augment.cutout <= 1, "0 to 1", "0.1"),
    ]


def _with_data(recipe: Recipe, schema: Schema, data: Dataset) -> list[str]:
    train, augment = recipe.train, recipe.data.augment
    found = []
    validated = [
        ("early_stopping", train.early_stopping),
        ("schedule=plateau", train.schedule == "plateau"),
        ("best_by", train.best_by is not None),
    ]
    needs_validation = [name for name, on in validated if on]
    if needs_validation and "validation" not in data.splits:
        found.append(f"train.{needs_validation[0]} goes by validation results, and the data has no validation split. Use: data.val=0.1")
    if train.best_by is not None and train.best_by not in _EPOCH_METRICS[schema.target]:
        found.append(
            f"train.best_by got {train.best_by!r}, expected one of {', '.join(_EPOCH_METRICS[schema.target])}. Use: train.best_by=loss"
        )
    for key, value, kind in [("size", recipe.data.size, "image"), ("max_length", recipe.data.max_length, "text")]:
        if value is not None and schema.task != f"{kind}-classification":
            found.append(f"data.{key} got {value!r}, which is for {kind}s, and the task is {schema.task!r}. Remove data.{key}")
    if augment.random and schema.task != "image-classification":
        found.append(f"data.augment is for images, and the task is {schema.task!r}. Remove data.augment from the recipe")
    if (augment.mixup or augment.cutmix) and schema.target == "number":
        found.append(
            "data.augment.mixup and cutmix mix classes, and data.target is 'number'. Use: data.augment.mixup=0 data.augment.cutmix=0"
        )
    return found


def read_data(recipe: Recipe, sources: Collection[str], *, progress: bool = True) -> tuple[Recipe, Dataset, dict[str, Any]]:
    """The data, the recipe with what prepared data was saved with, and those settings by their dotted keys.

    `frostline prepare photos/ data.size=224 --out P` saves the size: a run on P has it, unless the user sets another
    (``sources``: the keys that were set) or a recipe made in Python does.
    """
    from frostline.data.prepare import from_recipe

    usual = Recipe().data
    data = from_recipe(
        replace(recipe, data=replace(recipe.data, size=None, max_length=None, augment=usual.augment)), progress=progress
    )
    augment = data.recipe.get("augment") or {}
    saved = {
        **{f"data.{name}": data.recipe.get(name) for name in ("size", "max_length")},
        **{f"data.augment.{name}": augment.get(name) for name in asdict(usual.augment)},
    }
    filled = {
        key: value
        for key, value in saved.items()
        if value is not None and key not in sources and _value(recipe, key) == _value(Recipe(), key) != value
    }
    recipe = recipe.with_values(filled, "prepared data:")
    data.recipe = {**data.recipe, **{name: asdict(recipe.data)[name] for name in ("size", "max_length", "augment")}}
    return recipe, data, filled


def _value(recipe: Recipe, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), recipe)


def check(recipe: Recipe, *, sources: Collection[str] = (), progress: bool = True) -> Findings:
    """Prepare, load and look; every problem is collected instead of raised. ``sources``: as in :func:`read_data`."""
    from frostline.models.load import from_recipe as load_model

    findings = Findings(errors=_room(recipe))
    try:
        recipe, data, _ = read_data(recipe, sources, progress=progress)
    except FrostlineError as error:
        findings.errors += [str(error), *_of_the_recipe(recipe)]
        return findings
    findings.warnings += data.report.warnings
    findings.errors += conflicts(recipe, data.schema, data)
    try:
        model = load_model(recipe, data, rebuild=inject)
        findings.rows = rows_as_seen(model, data)
        findings.warnings += _truncation(model, data)
        _try_learning(model, recipe)
    except FrostlineError as error:
        findings.errors.append(str(error))
    return findings


def _try_learning(model: Model, recipe: Recipe) -> None:
    """Freeze and build the optimiser as a run would; raises what these refuse. Rates do not matter for that."""
    model = adapt(model, recipe.adapt, seed=recipe.seed)
    groups = parameter_groups(model, recipe.adapt, lr=1e-3, weight_decay=0.0)
    build_optimizer(groups, replace(recipe.train, momentum=max(recipe.train.momentum, 0.0)))  # one below 0 is told already


def rows_as_seen(model: Model, data: Dataset, count: int = 3) -> list[dict[str, Any]]:
    """Rows of the training split as they reach the network, for people to look at."""
    table = data.splits["train"]
    table = table.take(np.linspace(0, table.num_rows - 1, num=min(count, table.num_rows), dtype=int))
    preprocess = model.card.preprocess
    source = split_source(table, data.schema, preprocess, max_pixels=data.recipe.get("max_pixels") or 100_000_000)
    rows = []
    for index in range(table.num_rows):
        batch = source.encode(np.array([index]), None)
        shown: dict[str, Any] = {"label": _label(data.schema, table["label"][index].as_py())}
        if isinstance(preprocess, TextPreprocess):
            ids = batch.inputs["input_ids"][0].tolist()
            shown |= {
                "text": table["text"][index].as_py()[:200],
                "tokens": [preprocess.tokenizer.decode([token]) for token in ids[:40]],
                "length": len(ids),
            }
        else:
            pixels = batch.inputs["pixel_values"]
            origin = table["path"][index].as_py() if "path" in table.column_names else f"row {index}"
            shown |= {
                "image": origin,
                "shape": list(pixels.shape[1:]),
                "mean": round(float(pixels.mean()), 3),
                "std": round(float(pixels.std()), 3),
            }
        rows.append(shown)
    return rows


def _label(schema: Schema, label: Any) -> Any:
    if schema.target == "number":
        return label
    return [schema.labels[i] for i in label] if isinstance(label, list) else schema.labels[label]


def _truncation(model: Model, data: Dataset) -> list[str]:
    if not isinstance(model.card.preprocess, TextPreprocess):
        return []
    source = split_source(data.splits["train"], data.schema, model.card.preprocess)
    if not source.truncated:
        return []
    length = model.card.preprocess.max_length
    return [
        f"{source.truncated:.1%} of the training texts are longer than {length} tokens and are cut. "
        "Raise data.max_length if the end matters"
    ]


def _room(recipe: Recipe) -> list[str]:
    folder = Path(recipe.out or ".").absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return [] if free > 200e6 else [f"out={str(folder)!r} has {free / 1e6:.0f} MB free, expected 200 MB. Choose another disk with --out"]
