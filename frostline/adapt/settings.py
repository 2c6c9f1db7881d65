"""An adapter's settings in the model's card: one dict of plain JSON values, from which the same layers are made again.

A method that puts something into the network (LoRA, VeRA, IA³, bottleneck adapters, virtual tokens) notes its settings under
``card.arguments["adapt"]``; a base in few bits is noted there too. Another such method on top is refused: what the first one put
there would stay, frozen, and nobody would see it.
"""

from __future__ import annotations

from typing import Any

from frostline.errors import ModelError
from frostline.models.model import Model

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
