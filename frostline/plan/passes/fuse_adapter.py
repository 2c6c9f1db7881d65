"""fuse_adapter: a linear layer and its LoRA update as one function of autograd (kernels/lora_linear.py).

Condition: plain LoRA on linear layers. Saving: the dropped copy of the input, the update and the sums that autograd would keep,
and their passes through memory. Exact.
"""

from __future__ import annotations

from frostline.adapt.lora_layers import LoRALinear
from frostline.kernels.lora_linear import multiplies_only
from frostline.plan.decision import Decision
from frostline.plan.execution import Execution
from frostline.recipe import Recipe


def propose(recipe: Recipe, execution: Execution) -> Decision | None:
    """Let the run compute LoRA layers by the fused function; None where there is none."""
    layers = [part for part in execution.model.module.modules() if isinstance(part, LoRALinear)]
    if not layers:
        return None
    plain = [part for part in layers if part.is_plain() and not part.dropout.p and multiplies_only(part.base)]
    execution.fused = on = recipe.plan.fuse_adapter != "off" and bool(plain)
    counted = f"{len(plain)} linear layers with LoRA"
    if len(plain) < len(layers):
        others = "the others have dropout, DoRA, PiSSA, or a base in few bits or of a kind of its own"
        counted = f"{len(plain)} of {len(layers)} linear layers with LoRA: {others}"
    return Decision(what="fuse_adapter", on=on, why=counted if on or not plain else "switched off in the recipe")
