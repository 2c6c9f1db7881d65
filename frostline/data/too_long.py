"""What becomes of rows longer than max_length, where a row can be cut: data.too_long says cut, drop or refuse."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from frostline.errors import DataError


def settle(
    long: Collection[int], rows: int, max_length: int, policy: Literal["cut", "drop", "refuse"], what: str
) -> tuple[list[int], list[str]]:
    """``(rows that are kept, warnings)``; ``long``: those of more than ``max_length`` tokens. Raises DataError for refuse.

    >>> settle([1], 3, 8, "drop", "row")
    ([0, 2], ['1 of 3 rows are longer than max_length=8 and are dropped, e.g. row 2 of the split'])
    """
    if not long:
        return list(range(rows)), []
    first = f"row {min(long) + 1} of the split"
    found = f"{len(long)} of {rows} {what}s are longer than max_length={max_length}"
    if policy == "refuse":
        raise DataError(f"{found}, e.g. {first}, and data.too_long is 'refuse'. Use: data.too_long=cut, or a larger data.max_length")
    warnings = [f"{found} and are {'cut' if policy == 'cut' else 'dropped'}, e.g. {first}"]
    if policy == "cut":
        return list(range(rows)), warnings
    apart = set(long)
    return [row for row in range(rows) if row not in apart], warnings
