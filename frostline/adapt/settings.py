"""An adapter's settings in the model's card: one dict of plain JSON values, from which the same layers are made again.

A method that puts something into the network (LoRA, VeRA, IA³, bottleneck adapters, virtual tokens) notes its settings under
``card.arguments["adapt"]``; a base in few bits is noted there too. Another such method on top is refused: what the first one put
there would stay, frozen, and nobody would see it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from frostline.adapt import virtual, wrapper
from frostline.adapt.targets import let_learn, saved_modules
from frostline.errors import ModelError
from frostline.models.model import Model
from frostline.recipe import AdaptRecipe

STRUCTURAL = ("lora", "vera", "ia3", "adapter", "prefix", "prompt", "p-tuning", "peft")
"""The methods that change what the network is made of."""


def in_place(model: Model) -> dict[str, Any] | None:
    """The settings of the adapter that the model holds already."""
    present = model.card.arguments.get("adapt")
    return present if present is not None and present.get("method") in STRUCTURAL else None


def refuse_another(model: Model, settings: dict[str, Any]) -> None:
    """Raises ModelError where the model holds another adapter, or the same one with other settings."""
    present = in_place(model)
    differing = [key for key in settings if present is not None and key != "seed" and present.get(key) != settings[key]]
    if present is not None and differing:
        key = differing[0]
        raise ModelError(
            f"adapt: got {settings['method']!r} with {key} {settings[key]!r}, but the model {model.card.name!r} already holds "
            f"{present['method']!r} with {key} {present.get(key)!r}. Load the model anew"
        )


def note(model: Model, settings: dict[str, Any]) -> None:
    """Keep the settings in the card."""
    model.card.arguments["adapt"] = settings


def install(model: Model, recipe: AdaptRecipe, inject: Callable[[nn.Module, dict[str, Any]], nn.Module], settings: dict[str, Any]) -> None:
    """Put an adapter in place, unless it is there, and freeze all but it, the head and ``modules_to_save``."""
    if in_place(model) is None:
        inject(model.module, settings)
        note(model, settings)
    note_modules(model, recipe)
    let_learn(model, recipe, {*wrapper.learning_names(model.module), *virtual.learning_names(model.module)})


def note_modules(model: Model, recipe: AdaptRecipe) -> None:
    """Keep the names of the head's modules and of ``modules_to_save`` in the card: they go with the adapter wherever it is saved.

    Raises ModelError for further ones where several adapters have theirs already.
    """
    settings, wanted = in_place(model) or {}, saved_modules(model, recipe)
    known = settings.get("modules", [])
    further = [name for name in wanted if name not in known]
    new = [name for name in further if name not in model.head]
    if new and settings.get("adapters"):
        raise ModelError(
            f"adapt.modules_to_save: got {new[0]!r}, but the adapters of {model.card.name!r} have {known!r} each. Load the model anew"
        )
    if further and not settings.get("adapters"):
        settings["modules"] = [*known, *further]
