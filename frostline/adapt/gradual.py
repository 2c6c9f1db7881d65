"""``adapt: gradual``: gradual unfreezing (Howard & Ruder, "Universal language model fine-tuning for text classification",
ACL 2018). The head learns first; every ``every`` epochs one more block thaws, from the head down; at last what stands
before the blocks (embeddings) thaws too. What learns is a function of the epoch alone, so a resumed run needs no state.
"""

from __future__ import annotations

from frostline.adapt.freeze import freeze
from frostline.adapt.last import learns
from frostline.errors import ModelError
from frostline.models.model import Model
from frostline.recipe import AdaptRecipe


def check(model: Model, recipe: AdaptRecipe) -> None:
    """Raises ModelError where there is no head, no block, or no pace."""
    if not model.head or not model.blocks:
        missing = "blocks are known" if model.head else "head is marked"
        raise ModelError(f"adapt: got 'gradual', but no {missing} in the model {model.card.name!r}. Use: adapt=full")
    if recipe.every < 1:
        raise ModelError(f"adapt.every: got {recipe.every!r}, expected a number of epochs from 1 on. Use: adapt.every=1")


def apply(model: Model, recipe: AdaptRecipe, seed: int) -> None:
    """Freeze all but the head."""
    freeze(model.module, model.in_head)


def thaw(model: Model, recipe: AdaptRecipe, epoch: int) -> bool:
    """Set what learns in ``epoch`` (from 0); called at each epoch's start, whatever the method.

    Returns whether anything changed: then the optimiser takes new groups (its state is kept by name, see
    train/optimizers.py) and the plan's store of prefix outputs no longer fits.
    """
    if recipe.method != "gradual":
        return False
    before = _learning(model)
    blocks = epoch // recipe.every
    if blocks > len(model.blocks):
        freeze(model.module, lambda name: True)
    else:
        freeze(model.module, learns(model, blocks) if blocks else model.in_head)
    return _learning(model) != before


def _learning(model: Model) -> list[str]:
    return [name for name, parameter in model.module.named_parameters() if parameter.requires_grad]
