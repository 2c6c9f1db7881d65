"""pack: compute a transformer's blocks for real tokens only, without padding (kernels/unpad.py).

Condition: texts of different lengths, and blocks whose attention can be reached. Saving: the padded share of the blocks, and
attention across it. Exact: a token never saw padding nor another row before, and sees neither now; the same sums in another
order, proved on a few rows before the run. Taken from a small share of padding on: below it nothing is won.
"""

from __future__ import annotations

import numpy as np
import torch

from frostline.data.encode import SplitSource
from frostline.data.loader import epoch_batches
from frostline.kernels.sequence_attention import library
from frostline.kernels.unpad import can_unpad, unpad_deviation
from frostline.plan.decision import Decision
from frostline.plan.execution import Execution
from frostline.recipe import Recipe

WORTHWHILE = 0.03
"""The padded share from which on packing is faster for certain."""
TOLERANCE = 1e-4
"""Largest relative difference between the outputs with and without padding."""


def propose(recipe: Recipe, execution: Execution) -> Decision | None:
    """Whether to pack, and by how much a batch is faster so; None where there are no lengths (images)."""
    source, forced = execution.sources["train"], recipe.plan.pack
    if source.lengths is None:
        return None

    def decide(on: bool, why: str) -> Decision:
        execution.pack = on
        return Decision(what="pack", on=on, why=why)

    if forced == "off":
        return decide(False, "switched off in the recipe")
    if reason := can_unpad(execution.model):
        return decide(False, reason)
    share = padded_share(source, recipe.train.batch)
    if forced == "auto" and share < WORTHWHILE:
        return decide(False, f"only {share:.1%} of a batch would be padding")
    difference = unpad_deviation(execution.model, _few_rows(source))
    if not difference <= TOLERANCE:
        return decide(False, f"the blocks give other outputs without padding (they differ by {difference:.1e})")
    slow = f"; PyTorch attends in groups of texts, which C++ would do in less time, but {reason}" if (reason := library.missing) else ""
    return decide(True, f"{share:.0%} of a batch would be padding{slow}")


def padded_share(source: SplitSource, batch: int) -> float:
    """The share of the positions of an epoch's batches that hold no token."""
    assert source.lengths is not None, "only texts are padded"
    batches = epoch_batches(source.rows, batch, 0, 0, source.lengths)
    padded = sum(len(rows) * int(source.lengths[rows].max()) for rows in batches)
    return 1 - float(source.lengths.sum()) / max(1, padded)


def _few_rows(source: SplitSource) -> dict[str, torch.Tensor]:
    """Three rows of the shorter half, of different lengths where there are any, so that the proof is quick."""
    assert source.lengths is not None, "only texts are padded"
    order = np.argsort(source.lengths, kind="stable")
    return source.encode(order[np.linspace(0, source.rows // 2, num=min(3, source.rows), dtype=int)], None).inputs
