"""Every key of a recipe is counted, costs nothing, or is refused: none is passed over."""

from __future__ import annotations

from typing import Any

import pytest

from frostline.errors import RecipeError
from frostline.plan import wanted
from frostline.plan.target import parse_target
from frostline.plan.wanted import Wanted, from_recipe
from frostline.recipe import AdaptRecipe, Recipe
from frostline.recipe_reader import all_keys

MODEL = {"model.name": "folder"}
OTHERS: dict[str, Any] = {
    "train.ema": 0.9, "train.focal_gamma": 3.0, "plan.cache": "on", "plan.quality": "fast", "data.size": 64, "model.weights": "file",
    "model.head": ["dense 4"], "adapt.bottleneck": 8, "adapt.tokens": 4, "adapt.last": 3, "data.augment.zoom": 0.1, "data.prompt": "x",
}  # fmt: skip


def test_the_recipe_says_what_is_wanted() -> None:
    recipe = Recipe().with_values({
        **MODEL, "adapt": "lora", "adapt.rank": 16, "train.batch": 4, "train.accumulate": 8, "train.epochs": 2, "data.max_length": 512,
        "train.precision": "bf16", "train.optimizer": "sgd", "train.lr": 1e-4, "data.path": "chat.jsonl", "data.task": "chat",
    })  # fmt: skip
    asked = from_recipe(recipe, rows=50, labelled=0.25)
    assert asked == Wanted(
        model="folder", adapt=AdaptRecipe(method="lora", rank=16), rows=50, batch=4, accumulate=8, length=512, labelled=0.25, epochs=2,
        precision="bf16", optimizer="sgd",
    )  # fmt: skip
    assert asked.settings().startswith("adapt=lora adapt.rank=16 train.batch=4 train.accumulate=8 train.epochs=2 train.precision=bf16")


def test_defaults_are_those_of_a_run() -> None:
    """A language model has no new head, so auto learns in full."""
    asked = from_recipe(Recipe().with_values(MODEL))
    train = Recipe().train
    assert (asked.adapt.method, asked.batch, asked.epochs, asked.precision) == ("full", train.batch, train.epochs, train.precision)
    assert from_recipe(Recipe().with_values({**MODEL, "data.limit": 7})).rows == 7


def test_auto_is_the_faster_precision() -> None:
    asked = Wanted(model="folder", precision="auto")
    assert asked.precision_on(parse_target("h200")) == "bf16" and asked.precision_on(parse_target("t4")) == "fp32"


def test_no_key_is_in_two_minds() -> None:
    counted, free = set(wanted._COUNTED), set(wanted._COSTS_NOTHING)
    assert counted | free | set(wanted._ONLY) <= set(all_keys())
    assert not counted & free and not (counted | free) & set(wanted._ONLY)


@pytest.mark.parametrize("key", OTHERS)
def test_what_is_not_counted_is_refused(key: str) -> None:
    with pytest.raises(RecipeError, match=rf"{key} got .* which is not counted .* Remove {key}"):
        from_recipe(Recipe().with_values({**MODEL, key: OTHERS[key]}))


@pytest.mark.parametrize(("values", "hint"), [
    ({"data.task": "preference"}, "data.task got 'preference', expected one of chat, causal-lm"),
    ({"train.loss": "focal"}, "train.loss got 'focal', expected one of auto, cross-entropy"),
    ({"adapt": "head"}, "adapt got 'head', expected one of lora, full"),
    ({"adapt": "full", "adapt.base": "nf4"}, "adapt.base got 'nf4' with 'full'"),
    ({"adapt": "full", "adapt.modules_to_save": ["embed_tokens"]}, "adapt.modules_to_save got"),
    ({"train.batch": 0}, "train.batch got 0"),
    ({"data.max_length": -1}, "data.max_length got -1"),
    ({"model.name": None}, "model got nothing"),
])  # fmt: skip
def test_what_an_estimate_does_not_hold_for_is_refused(values: dict[str, Any], hint: str) -> None:
    with pytest.raises(RecipeError, match=hint):
        from_recipe(Recipe().with_values({**MODEL, **values}))


@pytest.mark.parametrize(("options", "hint"), [
    ({"rows": 0}, "--rows got 0, expected 1 or more. Use: --rows 1"),
    ({"labelled": 0.0}, "--labelled got 0.0"),
    ({"labelled": float("nan")}, "--labelled got nan"),
])  # fmt: skip
def test_amounts_out_of_range(options: dict[str, Any], hint: str) -> None:
    with pytest.raises(RecipeError, match=hint):
        from_recipe(Recipe().with_values(MODEL), **options)
