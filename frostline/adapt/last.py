"""``adapt: last N``: the last N blocks of the body, what follows them (a final norm, a pooler) and the head learn.

"Follows" is read from the order in which parameters are registered, which is the order of the source code: what stands
after the beginning of the first learning block learns, what stands before it is frozen.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from frostline.adapt.freeze import freeze
from frostline.errors import ModelError
from frostline.models.model import Model
from frostline.recipe import AdaptRecipe


def check(model: Model, recipe: AdaptRecipe) -> None:
    """Raises ModelError where the model has fewer than N blocks."""
    name, known = model.card.name, len(model.blocks)
    if known == 0:
        raise ModelError(f"adapt: got 'last {recipe.last}', but no blocks are known of the model {name!r}. Use: adapt=head or adapt=full")
    if not 1 <= recipe.last <= known:
        use = "head" if recipe.last < 1 else f"'last {known}' or adapt=full"
        raise ModelError(
            f"adapt: got 'last {recipe.last}', but the model {name!r} has {known} blocks ({model.blocks[0]} to {model.blocks[-1]}); "
            f"expected 1 to {known}. Use: adapt={use}"
        )


def apply(model: Model, recipe: AdaptRecipe, seed: int) -> None:
    """Freeze all before the last N blocks."""
    freeze(model.module, learns(model, recipe.last))


def learns(model: Model, blocks: int) -> Callable[[str], bool]:
    """The policy under which the last ``blocks`` blocks, what follows them and the head learn."""
    inside, earlier = _below(model.blocks[-blocks:]), _below(model.blocks[:-blocks])
    # An embedding is read at the bottom wherever it is registered: MPNet's relative positions stand after its last layer.
    embeddings = _below([name for name, part in model.module.named_modules() if isinstance(part, nn.Embedding)])
    names = [name for name, _ in model.module.named_parameters(remove_duplicate=False)]
    start = next((index for index, name in enumerate(names) if name.startswith(inside)), len(names))
    follows = {name for name in names[start:] if not name.startswith(earlier + embeddings)}
    return lambda name: model.in_head(name) or name.startswith(inside) or name in follows


def _below(modules: list[str]) -> tuple[str, ...]:
    return tuple(f"{name}." for name in modules)
