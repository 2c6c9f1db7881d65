"""A step that ran out of memory is taken again in halves: the same step from smaller passes."""

from __future__ import annotations

import torch

from frostline.data.loader import Batch
from frostline.errors import TrainingStopped
from frostline.plan.passes.micro_batch import depends_on_the_batch, pieces
from frostline.plan.plan import Plan

_WORDS = ("can't allocate memory", "not enough memory", "MPS backend out of memory")
"""What PyTorch's allocators for the processor and for MPS say, in an error of no kind of its own."""


def ran_out(error: RuntimeError) -> bool:
    """Whether memory is what was missing."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _WORDS)


def halved(plan: Plan, group: list[Batch], epoch: int, step: int, kept: str) -> list[Batch]:
    """The rows of one optimiser step in pieces of half the size, which later steps have as well. Raises TrainingStopped where they
    cannot be halved."""
    largest, batch = max(len(batch.rows) for batch in group), plan.recipe.train.batch
    reason = depends_on_the_batch(plan.recipe, plan.execution) if largest > 1 else "it holds one row"
    if reason:
        raise TrainingStopped(
            f"step {step}: {largest} rows do not fit in memory, and a pass cannot be smaller, since {reason}. {kept}. "
            f"Try train.batch={max(1, batch // 2)}, a shorter data.max_length or a smaller data.size, or adapt=head"
        )
    plan.execution.micro_batch = -(-largest // 2)
    return divided(plan, group, epoch)


def divided(plan: Plan, group: list[Batch], epoch: int) -> list[Batch]:
    """The same rows, no more at a time than fitted in memory before: batches are made ahead, in the size that they had then."""
    most = plan.execution.micro_batch
    if most is None or all(len(batch.rows) <= most for batch in group):
        return group
    encode = plan.execution.encoder("train")
    return [encode(piece, epoch) for batch in group for piece in pieces(batch.rows.numpy(), most)]
