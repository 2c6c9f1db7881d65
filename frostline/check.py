"""The run doctor before a run (law 10): everything that is wrong or doubtful, found and reported together.

``frostline check`` prepares the data, looks at the recipe, encodes every row of every split (of texts) and shows three rows as the model
will see them, before any weights are read; then it loads the model and tries how it will learn. It trains nothing and writes nothing.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from frostline.adapt.apply import adapt, frozen_at_random
from frostline.adapt.groups import parameter_groups
from frostline.adapt.rebuild import rebuild
from frostline.conflicts import conflicts, conflicts_of_recipe
from frostline.data.dataset import Dataset
from frostline.data.encode import SplitSource, split_source
from frostline.data.preprocess import ImagePreprocess, TextPreprocess
from frostline.data.seen import rows_as_seen
from frostline.errors import FrostlineError
from frostline.models.model import Model
from frostline.recipe import AdaptRecipe, DataRecipe, Recipe
from frostline.train.optimizers import build_optimizer

_OF_ENCODING = ("size", "max_length", "train_on", "too_long", "prompt")
"""Keys of `data` that change no row, but what the model sees of it."""


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
        """The rows alone, one line each; a language model's with its turns below."""
        lines = []
        for row in self.rows:
            lines.append("row: " + "; ".join(f"{name} {value}" for name, value in row.items() if name != "seen"))
            lines += [row["seen"]] if "seen" in row else []
        return "\n".join(lines)


def _counted(found: list[str], name: str) -> str:
    return f"{len(found)} {name}{'' if len(found) == 1 else 's'}"


def read_data(recipe: Recipe, sources: Collection[str], *, progress: bool = True) -> tuple[Recipe, Dataset, dict[str, Any]]:
    """The data, the recipe with what prepared data was saved with, and those settings by their dotted keys.

    `frostline prepare photos/ data.size=224 --out P` saves the size: a run on P has it, unless the user sets another
    (``sources``: the keys that were set) or a recipe made in Python does.
    """
    from frostline.data.prepare import from_recipe

    usual = Recipe().data
    data = from_recipe(replace(recipe, data=replace(recipe.data, size=None, max_length=None, augment=usual.augment)), progress=progress)
    augment = data.recipe.get("augment") or {}
    saved = {
        **{f"data.{name}": data.recipe.get(name) for name in _OF_ENCODING},
        **{f"data.augment.{name}": augment.get(name) for name in asdict(usual.augment)},
    }
    filled = {
        key: value
        for key, value in saved.items()
        if value is not None and key not in sources and _value(recipe, key) == _value(Recipe(), key) != value
    }
    recipe = recipe.with_values(filled, "prepared data:")
    data.recipe = {**data.recipe, **{name: asdict(recipe.data)[name] for name in (*_OF_ENCODING, "augment")}}
    return recipe, data, filled


def _value(recipe: Recipe, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), recipe)


def check(recipe: Recipe, *, sources: Collection[str] = (), progress: bool = True) -> Findings:
    """Prepare, look and load; every problem is collected instead of raised. ``sources``: as in :func:`read_data`."""
    from frostline.models.load import from_recipe as load_model
    from frostline.models.load import preprocess_of

    findings = Findings(errors=_room(recipe))
    try:
        recipe, data, _ = read_data(recipe, sources, progress=progress)
    except FrostlineError as error:
        findings.errors += [str(error), *conflicts_of_recipe(recipe)]
        return findings
    findings.warnings += data.report.warnings
    findings.errors += conflicts(recipe, data.schema, data)
    if recipe.data.size is not None and recipe.data.size < 1:
        return findings  # no row can be shown
    try:
        preprocess = preprocess_of(recipe, data)
        findings.rows = _rows(findings, preprocess, data, recipe.data)
        model = load_model(recipe, data, rebuild=rebuild, preprocess=preprocess)
        findings.errors += _learning_errors(model, recipe)
        findings.warnings += frozen_at_random(model)
    except FrostlineError as error:
        findings.errors.append(str(error))
    return findings


def _learning_errors(model: Model, recipe: Recipe) -> list[str]:
    """What freezing and the optimiser refuse, each on its own: an optimiser is tried even where the recipe's adapting cannot be."""
    errors, settings = [], recipe.adapt
    try:
        model = adapt(model, settings, seed=recipe.seed)
    except FrostlineError as error:
        errors.append(str(error))
        settings = AdaptRecipe()  # it refuses before it touches the model, which learns as it was loaded
    try:
        groups = parameter_groups(model, settings, lr=1e-3, weight_decay=0.0)  # rates do not matter here
        build_optimizer(groups, replace(recipe.train, momentum=max(recipe.train.momentum, 0.0)))  # one below 0 is told already
    except FrostlineError as error:
        errors.append(str(error))
    return errors


def _rows(findings: Findings, preprocess: ImagePreprocess | TextPreprocess, data: Dataset, recipe: DataRecipe) -> list[dict[str, Any]]:
    """A few rows as they are seen, after all rows of all splits were encoded; what their tokens say (cuts, rows without a label, a split
    of which no row can be used) goes into the findings. Images are decoded one by one in the run, so only those shown are here.
    """
    if not isinstance(preprocess, TextPreprocess):
        return rows_as_seen(preprocess, data, recipe)
    encoded: dict[str, SplitSource] = {}
    for name, table in data.splits.items():
        try:
            encoded[name] = split_source(table, data.schema, preprocess, recipe=recipe, name=name)
        except FrostlineError as error:
            findings.errors += [] if str(error) in findings.errors else [str(error)]
    source = encoded.get("train")
    if source is not None:
        findings.warnings += source.warnings
    if source is None and data.schema.task != "chat":  # conversations are shown turn by turn even where none of them is learned
        return []
    return rows_as_seen(preprocess, data, recipe, source=source)


def _room(recipe: Recipe) -> list[str]:
    folder = Path(recipe.out or ".").absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return [] if free > 200e6 else [f"out={str(folder)!r} has {free / 1e6:.0f} MB free, expected 200 MB. Choose another disk with --out"]
