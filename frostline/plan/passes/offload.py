"""offload: frozen weights in files that are mapped into memory (kernels/mapped_weights.py), where memory would not do otherwise.

Condition: the predicted peak is above the free memory with all that ``checkpoint_activations`` and ``micro_batch`` can do, or the recipe
asks for it; a network on the CPU, and room on the disk. Saving: the frozen weights, which the system then takes back as it needs.
Cost: where the weights that a step reads do not fit beside the rest, they are read from the disk in each pass, forward and backward.
Weights that are run once and stored, or multiplied by in a form of their own, are not read again. Exact, bit for bit.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace

from torch import Tensor

from frostline.files import private_folder
from frostline.kernels.mapped_weights import frozen_weights, map_weights
from frostline.plan.cost import Work
from frostline.plan.decision import Decision
from frostline.plan.execution import Execution
from frostline.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Offloaded:
    """What the pass has done."""

    decision: Decision | None = None
    bytes: int = 0
    """In files: they count as memory only as long as there is enough."""
    seconds: float = 0.0
    """Of reading, in a pass through all that is read again."""


def propose(recipe: Recipe, execution: Execution, missing: int) -> Offloaded:
    """Move the frozen weights; ``missing``: bytes that are needed beyond those that are free."""
    wish = recipe.plan.offload
    if wish == "off" or (wish == "auto" and missing <= 0):
        return Offloaded()
    off = Decision(what="offload", on=False, why="nothing frozen is large enough, and on the CPU")
    if not (weights := frozen_weights(execution.model.module)):
        return Offloaded(decision=off if wish == "on" else None)
    size = sum(tensor.nbytes for tensor in weights.values())
    try:
        free = shutil.disk_usage(private_folder("mapped")).free
        if size > free:
            raise OSError(f"it takes {size / 1e9:.2f} GB of disk, and {free / 1e9:.2f} GB are free")
        rate = map_weights(list(weights.values()))
    except OSError as error:
        return Offloaded(decision=replace(off, why=str(error)))
    again = sum(tensor.nbytes for tensor in read_again(execution, weights).values())
    reading = missing > size - again  # else what is not read again makes room for what is
    why = f"{size / 1e9:.2f} GB of frozen weights lie in files; "
    why += f"{missing / 1e9:.2f} GB of memory are missing" if missing > 0 else "the recipe asks for it"
    each = again / rate if reading else 0.0
    costs = f"{again / 1e9:.2f} GB read in each pass, {rate / 1e9:.1f} GB/s" if reading else "nothing is read again"
    return Offloaded(decision=Decision(what="offload", on=True, why=why, costs=costs), bytes=size, seconds=each)


def seconds(work: Work, offloaded: Offloaded) -> dict[str, float]:
    """Of the whole run: forward and backward for each training batch, forward for each validation batch."""
    passes = work.epochs * (2 * work.train_rows + work.validation_rows) / work.batch
    return {"weights from disk": passes * offloaded.seconds} if offloaded.seconds else {}


def read_again(execution: Execution, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those that steps compute with: not what stands before the line, nor what is multiplied by in a form of its own."""
    before = () if execution.line is None else tuple(execution.line.names)
    apart = (*before, *execution.products)
    return {name: tensor for name, tensor in weights.items() if not any(name.startswith(f"{part}.") for part in apart)}
