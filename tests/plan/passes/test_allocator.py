"""glibc's thresholds: set by the plan and never by importing, and only where the C library has them."""

from __future__ import annotations

import ctypes
import platform
import runpy
import sys
from typing import Any

import pytest

from frostline.kernels import large_blocks
from frostline.plan.passes import allocator
from frostline.recipe import PlanRecipe, Recipe

OFF = Recipe(plan=PlanRecipe(allocator="off"))
GLIBC = sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc"


class Library:
    """A C library that notes what it is asked."""

    def __init__(self, answer: int = 1):
        self.asked: list[tuple[int, int]] = []
        self.answer = answer

    def mallopt(self, which: int, value: int) -> int:
        self.asked.append((which, value))
        return self.answer


def forbidden(name: Any) -> Any:
    raise AssertionError("the C library was opened")


@pytest.fixture(autouse=True)
def no_large_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "use_large_blocks", lambda: "there is no C++ compiler")


@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_here() -> None:
    decision = allocator.propose(Recipe())
    assert decision is not None and decision.on and decision.exact and decision.what == "allocator"
    assert decision.why.endswith("at every step; they are not joined to larger ones, for there is no C++ compiler")
    assert allocator.keep_freed_memory()


def test_with_large_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "use_large_blocks", lambda: None)
    decision = allocator.propose(Recipe())
    assert decision is not None and decision.on and decision.why.endswith("joined to what the next tensors need")
    monkeypatch.setattr(allocator, "keep_freed_memory", lambda: False)  # another C library
    assert allocator.propose(Recipe()).on  # type: ignore[union-attr]
    monkeypatch.setattr(allocator, "use_large_blocks", large_blocks.use_large_blocks)
    assert allocator.propose(OFF) and not allocator.propose(OFF).on  # type: ignore[union-attr]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="not Linux")
def test_both_thresholds_are_set_to_what_an_int_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    assert allocator.propose(Recipe()).on  # type: ignore[union-attr]
    assert library.asked == [(-3, 2**30), (-1, 2**31 - 1)]  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD


def test_off_when_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", forbidden)
    decision = allocator.propose(OFF)
    assert decision is not None and not decision.on and decision.why == "switched off in the recipe"


@pytest.mark.parametrize("library", [object(), Library(answer=0)], ids=["musl", "refused"])
def test_not_proposed_where_the_library_cannot(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    assert allocator.propose(Recipe()) is None


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_not_proposed_on_other_systems(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(ctypes, "CDLL", forbidden)
    assert allocator.propose(Recipe()) is None


def test_importing_sets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", forbidden)
    assert "propose" in runpy.run_path(allocator.__file__)
