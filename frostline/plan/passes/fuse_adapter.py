"""fuse_adapter: a linear layer and its LoRA update as one function of autograd (kernels/lora_linear.py).

Condition: plain LoRA on linear layers. Saving: the dropped copy of the input, the update and the sums that autograd would keep,
and their passes through memory. Exact.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from frostline.adapt.lora_layers import LoRALinear
from frostline.kernels.lora_linear import lora_linear
from frostline.plan.decision import Decision
from frostline.recipe import Recipe


def propose(recipe: Recipe, module: nn.Module) -> Decision | None:
    """Put the fused function into every LoRA layer; None where there is none."""
    layers = [part for part in module.modules() if isinstance(part, LoRALinear)]
    if not layers:
        return None
    plain = [part for part in layers if part.is_plain() and not part.dropout.p]
    on = recipe.plan.fuse_adapter != "off" and bool(plain)
    fuse(module, on)
    counted = f"{len(plain)} linear layers with LoRA"
    if len(plain) < len(layers):
        counted = f"{len(plain)} of {len(layers)} linear layers with LoRA: the others have dropout, DoRA, PiSSA or a base in few bits"
    return Decision(what="fuse_adapter", on=on, why=counted if on or not plain else "switched off in the recipe")


def fuse(module: nn.Module, on: bool) -> None:
    """Let LoRA layers compute by the fused function, or as they are written."""
    for part in module.modules():
        if isinstance(part, LoRALinear):
            part.kernel = None if not on else _transposed if part.transposed else lora_linear


def _transposed(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    """For a layer whose weight is stored (inputs, outputs): GPT-2's Conv1D."""
    return lora_linear(x, weight.t(), *rest)
