"""``adapt: norms``: only the scales and shifts of the norms learn, and the head (Zhao et al., "Tuning LayerNorm in attention:
towards efficient multi-modal LLM finetuning", ICLR 2024; for batch norms Frankle, Schwab & Morcos, ICLR 2021). Nothing is added
to the network. Architectures have norm classes of their own, so a norm is what is one of torch's or is called one."""

from __future__ import annotations

from torch import nn

from frostline.adapt.targets import check_modules_to_save, let_learn
from frostline.errors import ModelError
from frostline.models.model import Model
from frostline.recipe import AdaptRecipe


def check(model: Model, recipe: AdaptRecipe) -> None:
    """Raises ModelError where the body has no norms that could learn."""
    check_modules_to_save(model, recipe)
    if all(model.in_head(name) for name in _parameters(model)):
        raise ModelError(f"adapt: got 'norms', but the body of the model {model.card.name!r} has no norms. Use: adapt=bitfit or adapt=lora")


def apply(model: Model, recipe: AdaptRecipe, seed: int) -> None:
    """Freeze all but the norms and the head."""
    let_learn(model, recipe, _parameters(model))


def is_norm(module: nn.Module) -> bool:
    """LayerNorm, RMSNorm, GroupNorm, BatchNorm, and what architectures call so: ``LlamaRMSNorm``, ``T5LayerNorm``."""
    return "norm" in type(module).__name__.lower()


def _parameters(model: Model) -> list[str]:
    return [
        f"{prefix}.{name}"
        for prefix, part in model.module.named_modules(remove_duplicate=False)
        if is_norm(part)
        for name, _ in part.named_parameters(recurse=False)
    ]
