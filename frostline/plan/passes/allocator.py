"""allocator: let freed memory stay with the process, to be used again by the next step.

glibc's malloc hands large blocks back to the kernel at every free, and the next step's tensors are then paged in again, a page
fault per 4 kB. ``mallopt`` sets from which size on blocks are mapped apart (M_MMAP_THRESHOLD) and how much may stay free at the
heap's top (M_TRIM_THRESHOLD). Condition: glibc, a network on the CPU. Exact: nothing is computed otherwise. The settings hold for
the process, so they are made by the plan and not by importing.
"""

from __future__ import annotations

import ctypes
import sys

from frostline.plan.decision import Decision
from frostline.recipe import Recipe

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_THRESHOLD = 2**30


def propose(recipe: Recipe) -> Decision | None:
    """Set the thresholds; None where the C library is another one."""
    if recipe.plan.allocator == "off":
        return Decision(what="allocator", on=False, why="switched off in the recipe")
    if not keep_freed_memory():
        return None
    return Decision(what="allocator", on=True, why="freed blocks stay with the process and are not paged in again at every step")


def keep_freed_memory() -> bool:
    """Whether it could be done."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _THRESHOLD)) and bool(mallopt(_M_TRIM_THRESHOLD, 2 * _THRESHOLD - 1))
