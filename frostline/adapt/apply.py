"""``adapt``: the public verb that draws the frost line, by one of the methods beside this file.

Every method is one file with the same two functions: ``check(model, recipe)``, which refuses before anything is touched,
and ``apply(model, recipe, seed)``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from frostline.adapt import adapter, bitfit, full, gradual, head, ia3, last, lora, norms, peft_config, prefix, prompt, vera
from frostline.adapt.quantize import quantizable, quantize
from frostline.adapt.targets import saved_modules
from frostline.errors import ModelError
from frostline.models.model import Model
from frostline.recipe import AdaptRecipe, Recipe

_METHODS: dict[str, Any] = {
    "head": head, "last": last, "full": full, "gradual": gradual, "lora": lora, "vera": vera, "ia3": ia3, "adapter": adapter,
    "prefix": prefix, "prompt": prompt, "p-tuning": prompt, "bitfit": bitfit, "norms": norms, "peft": peft_config,
}  # fmt: skip
_WHOLE = ("full", "last", "gradual")
"""Methods under which whole layers of the body learn: none of them can be kept in few bits."""
_WITHOUT_MORE = ("head", *_WHOLE)
"""Methods that leave no adapter for ``modules_to_save`` to go with."""


def adapt(model: Model, recipe: Any = None, *, seed: int = 0, **options: Any) -> Model:
    """Settle what learns and what is frozen; returns the same object.

    ``adapt(model)``, ``adapt(model, "last 2")``, ``adapt(model, "lora", rank=16)``, a whole :class:`AdaptRecipe`, or a
    ``peft.PeftConfig``. A later call replaces what an earlier one froze; adapters, once in place, stay. ``seed``: what they begin
    from. Raises ModelError where the model cannot do what is asked for, RecipeError for an unknown option.
    """
    if peft_config.is_config(recipe):
        peft_config.put_in_place(model, recipe, options, seed)
        recipe = AdaptRecipe(method="peft")
    given = _read(recipe, options)
    name = resolve_method(model, given)
    resolved, method = Recipe(adapt=given).with_values({"adapt.method": name}).adapt, _METHODS[name]
    _check_decay(model, resolved)
    _check_shared(model, resolved)
    method.check(model, resolved)
    quantized = _quantize_base(model, resolved)
    method.apply(model, resolved, seed)
    if quantized:
        model.card.arguments.setdefault("adapt", {"method": name}).update(quantized)
    model.recipe = dataclasses.replace(model.recipe, adapt=resolved)
    return model


def frozen_at_random(model: Model) -> list[str]:
    """A warning where weights are frozen that nobody has trained: what learns then builds on random features."""
    name = model.recipe.model.name
    if model.card.source != "from zero" or model.recipe.adapt.method == "gradual" or (name and Path(name).exists()):
        return []
    frozen = sum(parameter.numel() for parameter in model.module.parameters() if not parameter.requires_grad)
    if not frozen:
        return []
    return [f"{frozen:,} weights of {model.card.name!r} are random and frozen, so they never learn. Give model.weights=FILE, or adapt=full"]


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


def _check_shared(model: Model, recipe: AdaptRecipe) -> None:
    """What several methods have in common and not all."""
    if recipe.modules_to_save and recipe.method in _WITHOUT_MORE:
        raise ModelError(
            f"adapt.modules_to_save: got {recipe.modules_to_save!r} with {recipe.method!r}, which has no adapter beside which they could "
            "learn. Use: adapt=lora, or leave it out"
        )
    present = model.card.arguments.get("adapt", {}).get("base", "full")
    if recipe.base != "full" and recipe.method in _WHOLE:
        raise ModelError(f"adapt.base: got {recipe.base!r} with {recipe.method!r}, whose layers learn. Use: adapt.base=full, or adapt=lora")
    if present not in ("full", recipe.base):
        raise ModelError(
            f"adapt.base: got {recipe.base!r} with {recipe.method!r}, but the model {model.card.name!r} holds its base in {present!r}. "
            f"Load the model anew, or use: adapt.base={present}"
        )


def _quantize_base(model: Model, recipe: AdaptRecipe) -> dict[str, Any]:
    """Store the frozen linear layers in few bits; what the card has to say of it, or nothing."""
    present = model.card.arguments.get("adapt", {})
    if recipe.base == "full" or present.get("base") == recipe.base:
        return {key: present[key] for key in ("base", "quantized") if key in present}
    if present:
        raise ModelError(f"adapt.base: got {recipe.base!r}, but {model.card.name!r} holds an adapter already. Load the model anew")
    names = quantizable(model.module, (*saved_modules(model, recipe), *([model.output] if model.output else [])))
    if not names:
        raise ModelError(
            f"adapt.base: got {recipe.base!r}, but {model.card.name!r} has no linear layer outside its head. Use: adapt.base=full"
        )
    quantize(model.module, names, recipe.base)
    return {"base": recipe.base, "quantized": names}
