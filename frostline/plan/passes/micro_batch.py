"""micro_batch: compute a batch in pieces where the whole does not fit in memory; the optimiser's step stays that of the batch.

Condition: the predicted peak is above the free memory, or `plan.micro_batch` names a number of rows; and no row's result depends on
the rows beside it. Exact: losses and counts are summed over the pieces, and only the step divides (law 1); dropout draws other numbers.
Cost: smaller products. Where memory runs out all the same, the training loop halves the pieces again (train/out_of_memory.py).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import nn

from frostline.adapt.freeze import is_frozen
from frostline.plan.decision import Decision
from frostline.plan.execution import Execution
from frostline.recipe import Recipe


def propose(recipe: Recipe, execution: Execution, batch: int, peak: Callable[[int], int], room: int) -> Decision | None:
    """Set the rows that are computed at a time; None where the batch fits whole. ``peak``: bytes, by the rows of a piece."""
    wanted = recipe.plan.micro_batch
    if wanted is None and peak(batch) <= room:
        return None
    if reason := depends_on_the_batch(recipe, execution):
        return Decision(what="micro_batch", on=False, why=reason)
    rows = min(wanted or batch, batch)
    while wanted is None and rows > 1 and peak(rows) > room:
        rows = -(-rows // 2)
    execution.micro_batch = rows
    why = "the recipe asks for it" if wanted else f"a whole batch would take {peak(batch) / 1e9:.1f} GB and {room / 1e9:.1f} GB are free"
    return Decision(what="micro_batch", on=True, why=f"{rows} rows at a time; {why}", settings={"rows": rows})


def depends_on_the_batch(recipe: Recipe, execution: Execution) -> str | None:
    """Why a row's result would be another one in a smaller batch."""
    augment = recipe.data.augment
    if execution.model.card.schema.task == "embedding":
        return "the rows of a batch are compared with each other"
    if augment.mixup or augment.cutmix:
        return "images are mixed with others of their batch"
    norm = learning_batch_norm(execution.model.module)
    return None if norm is None else f"the batch norm {norm!r} learns from whole batches"


def learning_batch_norm(module: nn.Module) -> str | None:
    """The name of the first batch norm that averages what passes through it."""
    parts = module.named_modules()
    return next((name for name, part in parts if isinstance(part, nn.modules.batchnorm._BatchNorm) and not is_frozen(part)), None)


def pieces(rows: np.ndarray, micro_batch: int | None) -> list[np.ndarray]:
    """The rows of a batch in pieces of like size, none larger than ``micro_batch``.

    >>> [piece.tolist() for piece in pieces(np.arange(5), 2)]
    [[0, 1], [2, 3], [4]]
    """
    return np.array_split(rows, -(-len(rows) // micro_batch)) if micro_batch else [rows]
