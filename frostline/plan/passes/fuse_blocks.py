"""fuse_blocks: RMS norms and rotary positions, each as one function of autograd (kernels/rms_norm.py, kernels/rotary.py).

Condition: parts that compute one, which is tried on random numbers. Saving: passes through memory, and the copies that autograd
would keep. Exact: the same sums in another order.
"""

from __future__ import annotations

from frostline.kernels import rms_norm, rotary
from frostline.plan.decision import Decision
from frostline.plan.execution import Execution
from frostline.recipe import Recipe


def propose(recipe: Recipe, execution: Execution) -> Decision | None:
    """Let the run compute these parts so; None where there are none."""
    fuse(execution)
    if not execution.norms and not execution.rotary:
        return None
    if recipe.plan.fuse_blocks == "off":
        execution.norms, execution.rotary = {}, []
        return Decision(what="fuse_blocks", on=False, why="switched off in the recipe")
    why = f"{len(execution.norms)} RMS norms{' and rotary positions' if execution.rotary else ''}"
    return Decision(what="fuse_blocks", on=True, why=why)


def fuse(execution: Execution) -> None:
    """Find the parts; from now on the execution computes them so."""
    module = execution.model.module
    execution.norms, execution.rotary = rms_norm.find(module, execution.model.blocks), rotary.find(module)
