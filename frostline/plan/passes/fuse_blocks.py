"""fuse_blocks: RMS norms, rotary positions and SwiGLU's product, each as one function of autograd (kernels/rms_norm.py,
kernels/rotary.py, kernels/swiglu.py).

Condition: parts that compute one, which is tried on random numbers. Saving: passes through memory, and the copies that autograd
would keep. Exact: the same sums in another order.
"""

from __future__ import annotations

from frostline.kernels import block_kernels
from frostline.kernels.fused_blocks import FusedBlocks, find
from frostline.plan.decision import Decision
from frostline.plan.execution import Execution
from frostline.recipe import Recipe


def propose(recipe: Recipe, execution: Execution) -> Decision | None:
    """Let the run compute these parts so; None where there are none."""
    fuse(execution)
    if not (found := str(execution.blocks)):
        return None
    if recipe.plan.fuse_blocks == "off":
        execution.blocks = FusedBlocks()
        return Decision(what="fuse_blocks", on=False, why="switched off in the recipe")
    slow = f"; in PyTorch's passes, which C++ would do in less time, but {reason}" if (reason := block_kernels.library.missing) else ""
    return Decision(what="fuse_blocks", on=True, why=found + slow)


def fuse(execution: Execution) -> None:
    """Find the parts; from now on the execution computes them so."""
    execution.blocks = find(execution.model.module, execution.model.blocks)
