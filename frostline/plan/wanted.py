"""The run that an estimate is asked about, out of a recipe: every setting is counted, costs nothing, or is refused.

No data is read, so how much there is has to be said: rows, tokens of each (``data.max_length``), and the share that has a label.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

from frostline.errors import RecipeError
from frostline.plan.cost import STATE_TENSORS
from frostline.plan.target import Target
from frostline.recipe import AdaptRecipe, Recipe, TrainRecipe
from frostline.recipe_reader import all_keys

ROWS, LENGTH = 1000, 2048
"""Where nothing is said; 2048 is also the most that a run takes of a language model's rows where nothing is said."""
METHODS = ("lora", "full")
_OF_LORA = ("rank", "dropout", "targets", "rank_pattern", "dora", "init", "modules_to_save", "base")
_COUNTED = (
    "model.name", "data.max_length", "data.limit",
    "train.epochs", "train.batch", "train.accumulate", "train.optimizer", "train.precision", "plan.checkpoint_activations",
    "adapt.method", *(f"adapt.{name}" for name in _OF_LORA),
)  # fmt: skip
_COSTS_NOTHING = (
    "seed", "out", "adapt.alpha", "adapt.alpha_pattern", "adapt.rslora", "adapt.lora_plus", "adapt.lr_decay",
    *(f"train.{name}" for name in (
        "lr", "momentum", "nesterov", "weight_decay", "schedule", "warmup", "clip", "class_weights", "label_smoothing",
        "early_stopping", "best_by", "device", "checkpoint_every",
    )),
    *(f"data.{name}" for name in (
        "path", "train", "validation", "test", "input_column", "label_column", "group_column", "val", "test_share", "seed", "encoding",
        "train_on", "too_long", "workers",
    )),
)  # fmt: skip
"""What changes neither the size of a step nor its time, or only says where the rows are and which: they are not read."""
_ONLY = {"data.task": (None, "chat", "causal-lm"), "train.loss": ("auto", "cross-entropy")}
"""What an estimate holds for."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The run that is asked about."""

    model: str
    """A config.json in HF's layout, or the folder that holds one."""
    adapt: AdaptRecipe = field(default_factory=lambda: AdaptRecipe(method="full"))
    rows: int = ROWS
    batch: int = TrainRecipe.batch
    """Rows in one forward pass."""
    accumulate: int = 1
    """Forward passes in one optimiser step."""
    length: int = LENGTH
    """Tokens a row."""
    labelled: float = 1.0
    """Share of the tokens that have a label."""
    epochs: int = TrainRecipe.epochs
    precision: str = TrainRecipe.precision
    """``auto``: the faster one on the machine."""
    optimizer: str = TrainRecipe.optimizer
    recompute: bool = False
    """Whether all blocks are computed once more in the backward pass."""

    def precision_on(self, target: Target) -> str:
        """The precision there, ``auto`` settled."""
        return max(target.gflops, key=lambda name: target.gflops[name]) if self.precision == "auto" else self.precision

    def settings(self) -> str:
        """What is counted, as it is typed."""
        adapt, usual = self.adapt, AdaptRecipe()
        changed = [f"adapt.{name}={getattr(adapt, name)}" for name in _OF_LORA if getattr(adapt, name) != getattr(usual, name)]
        changed += ["plan.checkpoint_activations=on"] if self.recompute else []
        return " ".join([
            f"adapt={adapt.method}", *changed, f"train.batch={self.batch} train.accumulate={self.accumulate}",
            f"train.epochs={self.epochs} train.precision={self.precision} train.optimizer={self.optimizer}",
        ])  # fmt: skip


def from_recipe(recipe: Recipe, *, rows: int | None = None, labelled: float = 1.0) -> Wanted:
    """What ``recipe`` asks for; ``adapt: auto`` is full, as in a run of a language model, which has no new head.

    Raises RecipeError for a setting that an estimate would pass over, and for numbers out of range.
    """
    if recipe.model.name is None:
        raise RecipeError("model got nothing, expected a config.json or the folder that holds one. Use: --model FOLDER/config.json")
    usual = Recipe()
    for key in all_keys():
        value = _at(recipe, key)
        fine = value in _ONLY[key] if key in _ONLY else key in (*_COUNTED, *_COSTS_NOTHING) or value == _at(usual, key)
        if not fine:
            expected = f"expected one of {', '.join(str(one) for one in _ONLY[key] if one)}" if key in _ONLY else "which is not counted"
            raise RecipeError(f"{key} got {value!r}, {expected} in an estimate for another machine. Remove {key}, or plan without --on")
    adapt = recipe.with_values({"adapt.method": "full"}).adapt if recipe.adapt.method == "auto" else recipe.adapt
    wanted = Wanted(
        model=recipe.model.name, adapt=adapt, rows=rows if rows is not None else recipe.data.limit or ROWS, labelled=labelled,
        batch=recipe.train.batch, accumulate=recipe.train.accumulate, length=recipe.data.max_length or LENGTH,
        epochs=recipe.train.epochs, precision=recipe.train.precision, optimizer=recipe.train.optimizer,
        recompute=recipe.plan.checkpoint_activations == "on",
    )  # fmt: skip
    check(wanted)
    return wanted


def check(wanted: Wanted) -> None:
    """Raises RecipeError for what cannot be estimated."""
    typed = {
        "rows": "--rows ", "batch": "train.batch=", "accumulate": "train.accumulate=", "length": "data.max_length=",
        "epochs": "train.epochs=",
    }  # fmt: skip
    for name, words in typed.items():
        if getattr(wanted, name) < 1:
            raise RecipeError(f"{words.rstrip(' =')} got {getattr(wanted, name)!r}, expected 1 or more. Use: {words}1")
    if not 0 < wanted.labelled <= 1:
        raise RecipeError(f"--labelled got {wanted.labelled!r}, expected a share above 0 and up to 1. Use: --labelled 1")
    adapt = wanted.adapt
    if adapt.method not in METHODS:
        raise RecipeError(f"adapt got {adapt.method!r}, expected one of {', '.join(METHODS)} in an estimate. Use: adapt=lora")
    if adapt.method == "full" and (adapt.base != "full" or adapt.modules_to_save):
        key = "base" if adapt.base != "full" else "modules_to_save"
        raise RecipeError(f"adapt.{key} got {getattr(adapt, key)!r} with 'full', where all layers learn. Remove it, or use: adapt=lora")
    if wanted.optimizer not in STATE_TENSORS:
        known = ", ".join(STATE_TENSORS)
        raise RecipeError(f"train.optimizer got {wanted.optimizer!r}, expected one of {known}. Use: train.optimizer=adamw")


def _at(recipe: Recipe, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), recipe)
