"""``adapt``: the public verb that draws the frost line, by one of the methods beside this file.

Every method is one file with the same two functions: ``check(model, recipe)``, which refuses before anything is touched,
and ``apply(model, recipe, seed)``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from frostline.adapt import full, gradual, head, last, lora
from frostline.errors import ModelError
from frostline.models.model import Model
from frostline.recipe import AdaptRecipe, Recipe

_METHODS = {"head": head, "last": last, "full": full, "gradual": gradual, "lora": lora}


def adapt(model: Model, recipe: AdaptRecipe | str | None = None, *, seed: int = 0, **options: Any) -> Model:
    """Settle what learns and what is frozen; returns the same object.

    ``adapt(model)``, ``adapt(model, "last 2")``, ``adapt(model, "lora", rank=16)``, or a whole :class:`AdaptRecipe`. A later
    call replaces what an earlier one froze; LoRA's updates, once in place, stay. ``seed``: what LoRA's A begins from.
    Raises ModelError where the model cannot do what is asked for, RecipeError for an unknown option.
    """
    given = _read(recipe, options)
    name = resolve_method(model, given)
    resolved, method = Recipe(adapt=given).with_values({"adapt.method": name}).adapt, _METHODS[name]
    _check_decay(model, resolved)
    method.check(model, resolved)
    method.apply(model, resolved, seed)
    model.recipe = dataclasses.replace(model.recipe, adapt=resolved)
    return model


def resolve_method(model: Model, recipe: AdaptRecipe) -> str:
    """The recipe's method with ``auto`` settled: head where the body is pretrained and a head is known, full otherwise."""
    if recipe.method != "auto":
        return recipe.method
    return "head" if model.card.pretrained and model.head else "full"


def _read(recipe: AdaptRecipe | str | None, options: dict[str, Any]) -> AdaptRecipe:
    base = Recipe(adapt=recipe) if isinstance(recipe, AdaptRecipe) else Recipe()
    values = {f"adapt.{key}": value for key, value in options.items()}
    if isinstance(recipe, str):
        values = {"adapt": recipe, **values}
    return base.with_values(values, "adapt:").adapt


def _check_decay(model: Model, recipe: AdaptRecipe) -> None:
    if not 0 < recipe.lr_decay <= 1:
        raise ModelError(f"adapt.lr_decay: got {recipe.lr_decay!r}, expected a factor above 0 and up to 1. Use: adapt.lr_decay=0.9")
    if recipe.lr_decay < 1 and not model.blocks:
        raise ModelError(
            f"adapt.lr_decay: got {recipe.lr_decay!r}, but no blocks are known of the model {model.card.name!r}, so there is no depth "
            "to go by. Use: adapt.lr_decay=1"
        )
