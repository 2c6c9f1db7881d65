"""``adapt: full``: everything learns. What a model from zero needs, and the dearest way to adapt a pretrained one."""

from __future__ import annotations

from frostline.adapt.freeze import unfreeze
from frostline.models.model import Model
from frostline.recipe import AdaptRecipe


def check(model: Model, recipe: AdaptRecipe) -> None:
    """Every model can learn in full."""


def apply(model: Model, recipe: AdaptRecipe, seed: int) -> None:
    """Freeze nothing."""
    unfreeze(model.module)
