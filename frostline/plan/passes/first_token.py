"""first_token: compute what stands behind the last block's attention for the first token only (kernels/first_token.py).

Condition: a network whose head reads the output of the first token and nothing else, as classifiers of BERT's and ViT's kind do.
Saving: two thirds of the last block and more, forward and back, whatever is frozen. Exact: the same sums; proved on a few rows before
the run.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from frostline.data.loader import Batch, spread
from frostline.kernels.first_token import FirstToken, find
from frostline.models.model import evaluating
from frostline.plan.decision import Decision
from frostline.plan.execution import Execution


@torch.no_grad()
def propose(execution: Execution) -> Decision | None:
    """Whether the last block is computed so; None where the network has no such block."""
    if execution.task.per_token:
        return None
    source, module = execution.sources["train"], execution.model.module
    few = source.encode(spread(source.rows, 1 if source.lengths is None else 2), None)  # images all have as many tokens
    plain: list[torch.Tensor] = []
    with evaluating(module):
        found = find(module, execution.model.blocks, lambda: plain.append(execution.forward(few)))
        if found is None or not isinstance(plain[0], torch.Tensor):
            return None
        difference, counts = _tried(execution, few, found, plain[0])
        if found.query and counts and not difference <= execution.tolerance:
            found = replace(found, query=None, output=None)
            difference, counts = _tried(execution, few, found, plain[0])
    if not difference <= execution.tolerance:
        execution.first_token = None
        why = "the network reads more of its last block than the first token's output" if counts else "its outputs do not depend on it yet"
        return Decision(what="first_token", on=False, why=why)
    besides = "but keys and values" if found.query else "behind its attention"
    why = f"the head reads the first token's output, so the last block computes no other {besides}"
    return Decision(what="first_token", on=True, why=why, settings=found.to_dict())


def _tried(execution: Execution, few: Batch, found: FirstToken, plain: torch.Tensor) -> tuple[float, bool]:
    """How far from the plain outputs they are so, relative, and whether they depend on what the block gives; the execution keeps it."""
    execution.first_token, counts = found, True
    try:
        ours, counts = _with_the_first_counting(execution, few, found)
        return _difference(ours, plain) if counts else math.inf, counts
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):  # each architecture fails in its own way
        return math.inf, counts


def _with_the_first_counting(execution: Execution, few: Batch, found: FirstToken) -> tuple[Any, bool]:
    """The outputs, and whether they depend on what the block gives: a head of zeros, as some begin, would hide all that it reads."""
    given: list[torch.Tensor] = []

    def leaf(_: nn.Module, args: Any, output: Any) -> Any:
        given.append((output if isinstance(output, torch.Tensor) else output[0]).detach().requires_grad_())
        return given[0] if isinstance(output, torch.Tensor) else (given[0], *output[1:])

    handle = execution.model.module.get_submodule(found.block).register_forward_hook(leaf)
    try:
        with torch.enable_grad():
            outputs = execution.forward(few)
            (slope,) = torch.autograd.grad(outputs.sum(), given, allow_unused=True)
    finally:
        handle.remove()
    return outputs.detach(), slope is not None and bool(slope.any())


def _difference(ours: object, plain: torch.Tensor) -> float:
    if not isinstance(ours, torch.Tensor) or ours.shape != plain.shape:
        return math.inf
    return float((ours - plain).abs().max() / plain.abs().max().clamp_min(1e-12))
