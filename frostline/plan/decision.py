"""Decision: one thing that the planner chose, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Decision:
    """``exact``: the result is the plain one up to floating-point reordering."""

    what: str
    on: bool
    why: str
    saves_seconds: float = 0.0
    saves_before_line: float = 0.0
    """Those of them that are saved before anything that learns, if that is run in every step."""
    costs: str = ""
    exact: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    """What was chosen within the pass (JSON values), so that a run that goes on chooses the same."""
