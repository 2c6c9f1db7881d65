"""LoRA (Hu et al., "LoRA: low-rank adaptation of large language models", ICLR 2022) for linear layers, convolutions and embeddings.

A target's weight W stays as it is; beside it learns an update of rank r:

    y = W x + (alpha / r) · B A dropout(x)

A is drawn (Kaiming uniform), B begins at zero, so the network begins as the base it adapts. The variants (rsLoRA, DoRA, PiSSA)
are in lora_layers.py; LoRA+ (Hayou et al., "LoRA+: efficient low rank adaptation of large models", ICML 2024), whose B learns
``lora_plus`` times as fast as A, is in groups.py. ``rank_pattern`` and ``alpha_pattern`` give single layers numbers of their own:
names, ends of names, or regular expressions that match one, as in PEFT. They are settled to full names when the adapter is made,
so no expression of a file is ever run.

Names are ``TARGET.base.*``, ``TARGET.lora_A`` and ``TARGET.lora_B``, which map one to one to those of PEFT's format.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from frostline.adapt import wrapper
from frostline.adapt.lora_layers import DEFAULT, Lora, Variant, wrap
from frostline.adapt.settings import in_place, install, refuse_another
from frostline.adapt.targets import (
    check_modules_to_save,
    is_convolution,
    is_linear,
    match,
    near,
    read_dropout,
    read_targets,
    read_whole,
)
from frostline.adapt.wrapper import wrappers
from frostline.data.randomness import integer_seed
from frostline.errors import ModelError
from frostline.models.model import Model
from frostline.recipe import AdaptRecipe

_WHAT = "linear layer, convolution or embedding"
_LARGEST_ALPHA = 1e9


def check(model: Model, recipe: AdaptRecipe) -> None:
    """Raises ModelError for numbers out of range, targets that match nothing, or other settings than are in place."""
    settings = settings_of(model, recipe)
    _check_numbers(settings)
    check_modules_to_save(model, recipe)
    _check_patterns(recipe, settings["targets"])
    if not math.isfinite(recipe.lora_plus) or recipe.lora_plus <= 0:
        raise ModelError(f"adapt.lora_plus: got {recipe.lora_plus!r}, expected a factor above 0. Use: adapt.lora_plus=16")
    if recipe.init == "pissa" and (other := [n for n in settings["targets"] if not is_linear(_base(model.module.get_submodule(n)))]):
        raise ModelError(f"adapt.init: got 'pissa', but the target {other[0]!r} is no linear layer. Use: adapt.init=default")
    present = in_place(model)
    if present is not None and present["method"] != "lora":
        refuse_another(model, settings)
    if present is not None and any(present.get(key) != settings[key] for key in settings if key != "seed"):
        raise ModelError(
            f"adapt: got lora with {_brief(settings)}, but the model {model.card.name!r} already holds lora with {_brief(present)}. "
            "Load the model anew, add a second adapter with frostline.adapt.adapters.add_adapter, or fold what it holds with "
            "frostline.adapt.adapters.merge_into_base(model)"
        )


def apply(model: Model, recipe: AdaptRecipe, seed: int) -> None:
    """Wrap the targets, freeze all but the updates and the head, and note the settings in the card."""
    install(model, recipe, inject, settings_of(model, recipe, seed))


def settings_of(model: Model, recipe: AdaptRecipe, seed: int = 0) -> dict[str, Any]:
    """Plain JSON values with the targets' full names: what :func:`inject` takes, now and when a saved model is built again."""
    targets = match(model, recipe, is_target, _WHAT, usual=lambda part: is_linear(part) or is_convolution(part))
    return {
        "method": "lora",
        "rank": recipe.rank,
        "alpha": recipe.alpha,
        "dropout": recipe.dropout,
        "targets": targets,
        "seed": seed,
        "ranks": _settled(recipe.rank_pattern, targets),
        "alphas": _settled(recipe.alpha_pattern, targets),
        "rslora": recipe.rslora,
        "dora": recipe.dora,
        "init": recipe.init,
    }


def inject(module: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """Wrap ``settings["targets"]``; returns ``module``. Raises ModelError where the settings do not fit the module.

    What A begins as depends on the seed and the target's name alone. Further adapters (``settings["adapters"]``) are put in place too.
    """
    _check_numbers(settings)
    bases = read_targets(module, settings, is_target, _WHAT)
    made: dict[nn.Module, Lora] = {}  # a module that stands in two places is wrapped once
    for name, base in bases.items():
        if base not in made:
            made[base] = build(base, name, settings, f"lora {name}")
    for name, base in bases.items():
        wrapper.replace(module, name, made[base])
    for other, own in settings.get("adapters", {}).items():
        if not isinstance(own, dict):
            raise ModelError(f"adapt.adapters: got {own!r} for {other!r}, expected its settings. Save the model again")
        add(module, str(other), {**settings, **own})
    switch(module, tuple(map(str, settings.get("active", (DEFAULT,)))))
    return module


def add(module: nn.Module, name: str, settings: dict[str, Any]) -> None:
    """A further adapter of ``name`` on every LoRA layer, with numbers of its own; it is not switched on."""
    if not re.fullmatch(r"[\w-]{1,64}", name) or name == DEFAULT or hasattr(nn.ModuleDict, name):
        raise ModelError(f"adapter: got the name {name!r}, expected letters, digits, _ and -, and no word of torch's own. Choose another")
    _check_numbers(settings)
    seen = set()
    for place, part in wrappers(module):
        if isinstance(part, Lora) and part not in seen:
            seen.add(part)
            part.add(name, build(part.base, place, settings, f"lora {name} {place}"))


def switch(module: nn.Module, names: tuple[str, ...]) -> None:
    """Let the named adapters add up in every LoRA layer, and no other. Raises ModelError as :func:`check_names` does."""
    check_names(module, names)
    for part in _layers(module):
        part.active = names


def check_names(module: nn.Module, names: tuple[str, ...]) -> None:
    """Raises ModelError for adapters that are not there, or that cannot be on together."""
    parts = _layers(module)
    for name in names:
        if any(name != DEFAULT and name not in part.others for part in parts):
            there = [DEFAULT, *(parts[0].others if parts else ())]
            raise ModelError(f"adapter: got {name!r}, expected one of those that the model holds: {', '.join(there)}")
    if len(names) > 1 and any(part.piece(name).variant.dora for part in parts for name in names):
        raise ModelError(f"adapter: got {', '.join(names)!r} at once, but DoRA's updates do not add up. Switch one of them on")


def merge(module: nn.Module) -> None:
    """Fold every update into its base's weight and put the base back; see :func:`frostline.adapt.wrapper.fold`."""
    wrapper.fold(module)


def build(base: nn.Module, target: str, settings: Mapping[str, Any], operation: str) -> Lora:
    """The layer of one target, with the numbers that the settings have for it."""
    numbers = {
        "rank": settings.get("ranks", {}).get(target, settings["rank"]),
        "alpha": settings.get("alphas", {}).get(target, settings["alpha"]),
        "dropout": settings.get("dropout", 0.0),
    }
    variant = Variant(rslora=settings.get("rslora", False), dora=settings.get("dora", False), pissa=settings.get("init") == "pissa")
    generator = torch.Generator().manual_seed(integer_seed(settings["seed"], 0, 0, operation))
    return wrap(base, numbers, variant, generator)


def is_target(module: nn.Module) -> bool:
    """What LoRA can stand around."""
    return is_linear(module) or is_convolution(module) or isinstance(module, nn.Embedding)


def _layers(module: nn.Module) -> list[Lora]:
    return [part for _, part in wrappers(module) if isinstance(part, Lora)]


def _settled(pattern: Mapping[str, Any], targets: list[str]) -> dict[str, Any]:
    """The pattern's values for the targets that it names; the first expression that matches counts, as in PEFT."""
    found = {}
    for target in targets:
        key = next((key for key in pattern if _names(key, target)), None)
        if key is not None:
            found[target] = pattern[key]
    return found


def _names(pattern: str, target: str) -> bool:
    try:
        return re.match(rf"(.*\.)?({pattern})$", target) is not None
    except re.error as error:
        raise ModelError(
            f"adapt.rank_pattern or alpha_pattern: got {pattern!r}, which is no regular expression ({error}). Use a layer's name, "
            "as in: {q_proj: 16}"
        ) from error


def _check_patterns(recipe: AdaptRecipe, targets: list[str]) -> None:
    for field, pattern in (("rank_pattern", recipe.rank_pattern), ("alpha_pattern", recipe.alpha_pattern)):
        for key in pattern:
            if not any(_names(key, target) for target in targets):
                raise ModelError(f"adapt.{field}: got {key!r}, which matches none of the targets. {near(key, targets)}")


def _check_numbers(settings: Mapping[str, Any]) -> None:
    for rank in (settings.get("rank"), *_values(settings, "ranks")):
        read_whole({"rank": rank}, "rank")
    for alpha in (settings.get("alpha"), *_values(settings, "alphas")):
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < _LARGEST_ALPHA:
            raise ModelError(f"adapt.alpha: got {alpha!r}, expected a number above 0. Use: adapt.alpha=16")
    read_dropout(dict(settings))
    seed = settings.get("seed")
    if not isinstance(seed, int):
        raise ModelError(f"adapt: got the seed {seed!r}, expected a whole number. Save the model again")
    for key in ("rslora", "dora"):
        if type(settings.get(key, False)) is not bool:
            raise ModelError(f"adapt.{key}: got {settings[key]!r}, expected one of true, false. Save the model again")
    if settings.get("init", "default") not in ("default", "pissa"):
        raise ModelError(f"adapt.init: got {settings['init']!r}, expected one of default, pissa. Save the model again")


def _values(settings: Mapping[str, Any], key: str) -> list[Any]:
    found = settings.get(key, {})
    if not isinstance(found, dict):
        raise ModelError(f"adapt: got {found!r} for {key}, expected numbers by name. Save the model again")
    return list(found.values())


def _base(part: nn.Module) -> nn.Module:
    return part.base if isinstance(part, wrapper.Wrapper) else part


def _brief(settings: Mapping[str, Any]) -> str:
    numbers = ", ".join(f"{key} {settings.get(key)!r}" for key in ("rank", "alpha", "dropout"))
    variants = [key for key in ("rslora", "dora") if settings.get(key)] + ["pissa"] * (settings.get("init") == "pissa")
    return f"{', '.join([numbers, *variants])} on {len(settings.get('targets', []))} targets"
