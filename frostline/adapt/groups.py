"""Parameter groups for the optimiser: learning rates by depth, and weight decay only where it belongs.

Discriminative learning rates (Howard & Ruder, ACL 2018): the head has the full rate, the block k from the top (k = 0, 1, …)
rate · lr_decay^(k + 1), what stands before the blocks one power more. What stands behind a block (a pooler, a final norm)
goes with that block. Weight decay spares biases, the parameters of norms and the vectors that scale (IA³, DoRA): shrinking
them regularises nothing. LoRA+ (Hayou et al., ICML 2024): B's rate is ``lora_plus`` times A's, in groups of their own.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from frostline.errors import ModelError
from frostline.models.model import Model
from frostline.recipe import AdaptRecipe, TrainRecipe

Kind = Literal["hidden", "other", "vector"]
"""hidden: 2-D weights between embedding and head, what Muon is for; vector: biases and norms; other: all else."""
KINDS: tuple[Kind, ...] = ("hidden", "other", "vector")
_SCALES = ("ia3_l", "lora_magnitude_vector")
_RATES = {
    "prompt": 3e-2,
    "prefix": 1e-2,
    **dict.fromkeys(("head", "lora", "vera", "ia3", "adapter", "p-tuning", "bitfit", "norms", "peft"), 1e-3),
}
"""For methods with which little learns, and nothing of what was pretrained."""


def default_lr(recipe: TrainRecipe, method: str, pretrained: bool) -> float:
    """The learning rate where the recipe gives none: by what learns (``method``: settled, not auto) and by the optimiser.

    >>> default_lr(TrainRecipe(), "head", pretrained=True), default_lr(TrainRecipe(optimizer="sgd"), "full", pretrained=True)
    (0.001, 0.0002)
    """
    lr = _RATES.get(method, 2e-5 if pretrained else 1e-3)
    return lr * 10 if recipe.optimizer in ("sgd", "muon") else lr


def parameter_groups(model: Model, recipe: AdaptRecipe, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """One dict per depth and kind, from the head down: params, lr, weight_decay, name, names (of the parameters), kind.

    With LoRA+ B's are apart. Each learning parameter stands in exactly one group, in the order of registration. Without
    ``lr_decay`` all depths are one. Raises ModelError where nothing learns.
    """
    spared, embeddings = _owned_by(model.module, nn.LayerNorm | nn.RMSNorm), _owned_by(model.module, nn.Embedding | nn.EmbeddingBag)
    depth_of = _depths(model)
    members: dict[tuple[int, Kind, bool], dict[str, nn.Parameter]] = {}
    for name, parameter in model.module.named_parameters():
        if not parameter.requires_grad:
            continue
        kind: Kind = "other"
        leaf = name.rpartition(".")[2]
        if parameter.dim() <= 1 or id(parameter) in spared or leaf in _SCALES:
            kind = "vector"
        elif parameter.dim() == 2 and id(parameter) not in embeddings and not model.in_head(name):
            kind = "hidden"
        depth = depth_of[name] if recipe.lr_decay != 1 else 0
        members.setdefault((depth, kind, recipe.lora_plus != 1 and leaf == "lora_B"), {})[name] = parameter
    if not members:
        raise ModelError(f"adapt: got {recipe.method!r}, with which nothing in the model {model.card.name!r} learns. Use: adapt=full")
    return [
        {
            "params": list(found.values()),
            "lr": lr * recipe.lr_decay**depth * (recipe.lora_plus if faster else 1),
            "weight_decay": 0.0 if kind == "vector" else weight_decay,
            "name": f"{_label(model, depth) if recipe.lr_decay != 1 else 'learning'}: {kind}{', B' if faster else ''}",
            "names": list(found),
            "kind": kind,
        }
        for (depth, kind, faster), found in sorted(members.items(), key=lambda item: (item[0][0], KINDS.index(item[0][1]), item[0][2]))
    ]


def _depths(model: Model) -> dict[str, int]:
    """0 for the head, k + 1 for the block k from the top, one more before all blocks."""
    prefixes = [f"{block}." for block in model.blocks]
    depths: dict[str, int] = {}
    above = len(prefixes) + 1  # of a parameter outside the blocks: it goes with the block before it
    for name, _ in model.module.named_parameters():
        block = next((index for index, prefix in enumerate(prefixes) if name.startswith(prefix)), None)
        if block is not None:
            above = len(prefixes) - block
        depths[name] = 0 if model.in_head(name) else above
    return depths


def _label(model: Model, depth: int) -> str:
    if depth == 0:
        return "head"
    return "before the blocks" if depth > len(model.blocks) else model.blocks[-depth]


def _owned_by(module: nn.Module, kinds: Any) -> set[int]:
    return {id(p) for part in module.modules() if isinstance(part, kinds) for p in part.parameters(recurse=False)}
