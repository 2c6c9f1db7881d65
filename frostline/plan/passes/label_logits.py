"""label_logits: a vocabulary's logits only where a label is, in chunks, the loss and its gradient with them (law 6).

Condition: a language model whose logits are its output layer on its body's output. Saving: the output layer's work for tokens
without a label (a chat's questions), and all memory of (tokens × vocabulary). Exact. Always on where it can be; the work is in
kernels/outputs.py and kernels/cross_entropy.py.
"""

from __future__ import annotations

from typing import Any

import torch

from frostline.data.token_rows import IGNORED
from frostline.plan.decision import Decision
from frostline.plan.execution import Execution


def propose(execution: Execution) -> Decision | None:
    """What is saved; None where the task has no vocabulary."""
    if not execution.task.per_token:
        return None
    if not execution.model.output:
        return Decision(what="label_logits", on=False, why="the network makes its logits itself, with more than one linear layer")
    source = execution.sources["train"]
    labels = source.encode(torch.linspace(0, source.rows - 1, min(source.rows, 32)).long().numpy(), None).labels
    share = float((labels != IGNORED).sum()) / max(1, labels.numel())
    layer: Any = execution.model.module.get_submodule(execution.model.output)
    size = labels.shape[1] * layer.weight.shape[0] * 4 / 1e6
    return Decision(what="label_logits", on=True, why=f"{share:.0%} of the positions have a label; a row's logits would take {size:.0f} MB")
