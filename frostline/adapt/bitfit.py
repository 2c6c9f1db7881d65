"""``adapt: bitfit``: only biases and the head learn (Ben Zaken, Goldberg & Ravfogel, "BitFit: simple parameter-efficient
fine-tuning for transformer-based masked language-models", ACL 2022). Nothing is added to the network. Many decoders have no
biases at all; then it is refused."""

from __future__ import annotations

from frostline.adapt.targets import check_modules_to_save, let_learn
from frostline.errors import ModelError
from frostline.models.model import Model
from frostline.recipe import AdaptRecipe


def check(model: Model, recipe: AdaptRecipe) -> None:
    """Raises ModelError where the body has no biases."""
    check_modules_to_save(model, recipe)
    if all(model.in_head(name) for name in _biases(model)):
        raise ModelError(
            f"adapt: got 'bitfit', but the body of the model {model.card.name!r} has no biases. Use: adapt=norms or adapt=lora"
        )


def apply(model: Model, recipe: AdaptRecipe, seed: int) -> None:
    """Freeze all but the biases and the head."""
    let_learn(model, recipe, _biases(model))


def _biases(model: Model) -> list[str]:
    """``bias``, and what recurrent and attention layers call theirs: ``bias_ih_l0``, ``in_proj_bias``."""
    names = [name for name, _ in model.module.named_parameters(remove_duplicate=False)]
    leaves = {name: name.rpartition(".")[2] for name in names}
    return [
        name for name, leaf in leaves.items() if (leaf.startswith("bias") or leaf.endswith("_bias")) and not leaf.startswith("adapter_")
    ]
