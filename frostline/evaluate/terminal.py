"""What reports and the command line show as plain text: numbers for people, and the confusion matrix. No colours."""

from __future__ import annotations

from collections.abc import Sequence

from frostline.data.report import printable
from frostline.terminal import display_width, table

_LARGEST_MATRIX = 12
_PAIRS_SHOWN = 10
_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")


def number(value: float | None) -> str:
    """Four significant decimals for what a metric is like; a dash for what is not known.

    >>> number(0.98765), number(123.456), number(1e-7), number(12), number(None)
    ('0.9877', '123.5', '1e-07', '12', '–')
    """
    if value is None or value != value:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.{1 if abs(value) >= 100 else 2}f}"


def seconds(value: float | None) -> str:
    """
    >>> seconds(0.0123), seconds(75), seconds(3725)
    ('0.012 s', '1 min 15 s', '1 h 02 min')
    """
    if value is None:
        return "–"
    if value < 60:
        return f"{value:.3f} s" if value < 1 else f"{value:.1f} s"
    if value < 3600:
        return f"{int(value // 60)} min {int(value % 60):02d} s"
    return f"{int(value // 3600)} h {int(value % 3600 // 60):02d} min"


def size(value: float | None) -> str:
    """
    >>> size(999), size(1_500_000)
    ('999 B', '1.5 MB')
    """
    if value is None:
        return "–"
    power = 0
    while value >= 1000 and power < len(_BYTE_UNITS) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.1f} {_BYTE_UNITS[power]}" if power else f"{value:.0f} B"


def shortened(text: str, columns: int) -> str:
    """One printable line of at most so many columns; a terminal's escape codes in a label or a text do nothing.

    >>> shortened("一部很好看的电影", 9)
    '一部很好…'
    """
    text = printable(" ".join(text[: 4 * columns + 4].split()))
    if display_width(text) <= columns:
        return text
    while display_width(text) > columns - 1:
        text = text[:-1]
    return f"{text}…"


def confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """True classes as rows, predicted ones as columns; beyond twelve classes the pairs that are confused most.

    >>> print(confusion([[2, 1], [0, 3]], ["猫", "dog"]))
    true \\ predicted  猫  dog
    ----------------  --  ---
    猫                 2    1
    dog                0    3
    """
    if len(labels) <= _LARGEST_MATRIX:
        names = [shortened(label, 14) for label in labels]
        return table(["true \\ predicted", *names], [[name, *row] for name, row in zip(names, matrix, strict=True)])
    pairs = confused_pairs(matrix, labels, _PAIRS_SHOWN)
    return table(["true", "predicted", "rows"], [[shortened(true, 30), shortened(predicted, 30), rows] for true, predicted, rows in pairs])


def confused_pairs(matrix: Sequence[Sequence[int]], labels: Sequence[str], most: int) -> list[tuple[str, str, int]]:
    """``(true, predicted, rows)`` of the largest cells off the diagonal."""
    cells = [(rows, i, j) for i, line in enumerate(matrix) for j, rows in enumerate(line) if i != j and rows]
    cells.sort(key=lambda cell: (-cell[0], cell[1], cell[2]))
    return [(labels[i], labels[j], rows) for rows, i, j in cells[:most]]
