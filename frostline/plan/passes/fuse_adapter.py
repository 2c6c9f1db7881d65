"""fuse_adapter: a linear layer and its LoRA update as one function of autograd (kernels/lora_linear.py), and layers that read one input
as one as well (kernels/lora_siblings.py).

Condition: plain LoRA on linear layers. Saving: the dropped copy of the input, the update and the sums that autograd would keep,
and their passes through memory; of layers that read one input, all but one of the passes over it. Exact.
"""

from __future__ import annotations

import torch

from frostline.adapt.lora_layers import LoRALinear
from frostline.data.loader import spread
from frostline.kernels.lora_linear import multiplies_only
from frostline.kernels.lora_siblings import find_siblings
from frostline.models.model import evaluating
from frostline.plan.decision import Decision
from frostline.plan.execution import Execution
from frostline.recipe import Recipe


def propose(recipe: Recipe, execution: Execution) -> Decision | None:
    """Let the run compute LoRA layers by the fused functions; None where there is none."""
    layers = [part for part in execution.model.module.modules() if isinstance(part, LoRALinear)]
    if not layers:
        return None
    plain = [part for part in layers if part.is_plain() and not part.dropout.p and multiplies_only(part.base)]
    execution.fused = on = recipe.plan.fuse_adapter != "off" and bool(plain)
    if not on:
        return Decision(what="fuse_adapter", on=False, why="switched off in the recipe" if plain else _counted(plain, layers))
    execution.siblings = _siblings(execution, plain)
    why = _counted(plain, layers)
    if execution.siblings:
        why += f"; {sum(map(len, execution.siblings))} of them share an input, in {len(execution.siblings)} groups"
    return Decision(what="fuse_adapter", on=True, why=why, settings={"siblings": execution.siblings} if execution.siblings else {})


def _counted(plain: list[LoRALinear], layers: list[LoRALinear]) -> str:
    if len(plain) == len(layers):
        return f"{len(plain)} linear layers with LoRA"
    others = "the others have dropout, DoRA, PiSSA, or a base in few bits or of a kind of its own"
    return f"{len(plain)} of {len(layers)} linear layers with LoRA: {others}"


def _siblings(execution: Execution, plain: list[LoRALinear]) -> list[list[str]]:
    source, module = execution.sources.get("train"), execution.model.module
    if source is None or len(plain) == 1:
        return []
    row = source.encode(spread(source.rows, 1), None)
    with evaluating(module), torch.no_grad():
        groups = find_siblings(module, lambda: execution.forward(row))
    return [names for names in groups if all(module.get_submodule(name) in plain for name in names)]
