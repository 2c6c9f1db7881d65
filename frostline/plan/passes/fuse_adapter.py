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
    on = recipe.plan.fuse_adapter != "off"
    fuse(module, on)
    return Decision(what="fuse_adapter", on=on, why=f"{len(layers)} linear layers with LoRA" if on else "switched off in the recipe")


def fuse(module: nn.Module, on: bool) -> None:
    """Let LoRA layers compute by the fused function, or as they are written."""
    for part in module.modules():
        if isinstance(part, LoRALinear):
            part.kernel = None if not on else _transposed if part.transposed else lora_linear


def _transposed(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    """For a layer whose weight is stored (inputs, outputs): GPT-2's Conv1D."""
    return lora_linear(x, weight.t(), *rest)
