"""allocator: let freed memory stay with the process, to be used again by the next step.

glibc's malloc hands large blocks back to the kernel at every free, and the next step's tensors are then paged in again, a page
fault per 4 kB; where it keeps them, an aligned block that was freed is too small for the next of its size, and a step holds several
times what lives at once. Large tensors get an allocator of their own where it can be built (kernels/large_blocks.py); for everything
else ``mallopt`` sets from which size on blocks are mapped apart (M_MMAP_THRESHOLD) and how much may stay free at the
heap's top (M_TRIM_THRESHOLD). Condition: glibc, a network on the CPU. Exact: nothing is computed otherwise. The settings hold for
the process, so they are made by the plan and not by importing.
"""

from __future__ import annotations

import ctypes
import sys

from frostline.kernels.large_blocks import use_large_blocks
from frostline.plan.decision import Decision
from frostline.recipe import Recipe

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_THRESHOLD = 2**30


def propose(recipe: Recipe) -> Decision | None:
    """Settle where memory comes from; None where it cannot be settled."""
    if recipe.plan.allocator == "off":
        return Decision(what="allocator", on=False, why="switched off in the recipe")
    reason = use_large_blocks()
    if not keep_freed_memory() and reason:
        return None
    why = "freed blocks stay with the process and are not paged in again at every step"
    why += f"; they are not joined to larger ones, for {reason}" if reason else ", joined to what the next tensors need"
    return Decision(what="allocator", on=True, why=why)


def keep_freed_memory() -> bool:
    """Set the thresholds; whether this C library has them."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _THRESHOLD)) and bool(mallopt(_M_TRIM_THRESHOLD, 2 * _THRESHOLD - 1))
