"""``adapt: head``: only the head learns; the pretrained body is a fixed function of the input (a linear probe, or a small
network on fixed features). The cheapest method, since the body's outputs can be stored once."""

from __future__ import annotations

from frostline.adapt.freeze import freeze
from frostline.errors import ModelError
from frostline.models.model import Model
from frostline.recipe import AdaptRecipe


def check(model: Model, recipe: AdaptRecipe) -> None:
    """Raises ModelError where the model has no head."""
    if not model.head:
        raise ModelError(f"adapt: got 'head', but the model {model.card.name!r} has no part that is marked as its head. Use: adapt=full")


def apply(model: Model, recipe: AdaptRecipe, seed: int) -> None:
    """Freeze all but the head."""
    freeze(model.module, model.in_head)
