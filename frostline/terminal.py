"""Plain text that lines up on a terminal, Chinese included (a Chinese character takes two columns)."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def display_width(text: str) -> int:
    """Columns that ``text`` takes on a terminal.

    >>> display_width("猫 cat")
    6
    """
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def pad(text: str, width: int, right: bool = False) -> str:
    """``text`` filled with spaces to ``width`` columns."""
    space = " " * max(0, width - display_width(text))
    return space + text if right else text + space


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table with a rule under its headers; a column of numbers is set to the right.

    >>> print(table(["class", "rows"], [["猫", 3], ["dog", 12]]))
    class  rows
    -----  ----
    猫        3
    dog      12
    """
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(display_width(row[i]) for row in [list(headers), *cells]) for i in range(len(headers))]
    numeric = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(headers))]
    lines = [[pad(h, w, n) for h, w, n in zip(headers, widths, numeric, strict=True)], ["-" * w for w in widths]]
    lines += [[pad(c, w, n) for c, w, n in zip(row, widths, numeric, strict=True)] for row in cells]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value).replace("\n", " ")
    return f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.2e}"  # a learning rate of 2e-5 is not 0.0000
