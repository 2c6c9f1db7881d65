"""DataReport: what was found in the data, and what was done about it.

Rows per split and class, a histogram of sizes, duplicates, leakage between given splits, rows set aside with their reasons,
and what was guessed. Printed in the terminal (columns line up with Chinese too), saved as JSON, and part of report.html.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from frostline.data.raw import SetAside
from frostline.terminal import display_width, pad

_CLASSES_SHOWN = 20
_LINES_SHOWN = 4
_WIDTH = 140
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(kw_only=True)
class DataReport:
    """Everything in it is plain JSON values."""

    source: str = ""
    task: str = ""
    target: str = "class"
    rows: dict[str, int] = field(default_factory=dict)
    """Split → rows."""
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    """Class → split → rows (a row with several labels counts for each); empty for numbers."""
    sizes: dict[str, Any] = field(default_factory=dict)
    """``{name, min, median, max, edges, counts}``: shorter sides in pixels, or lengths in characters or tokens."""
    duplicates: dict[str, Any] = field(default_factory=lambda: {"count": 0, "examples": []})
    """Rows that repeat an earlier one, with pairs of places as examples. They stay, in the same split as the earlier one."""
    leakage: dict[str, Any] = field(default_factory=lambda: {"count": 0, "examples": []})
    """Rows of given splits that also stood in a held-out split and were set aside there."""
    set_aside: list[dict[str, Any]] = field(default_factory=list)
    """``{reason, count, examples}``, most frequent first."""
    truncated: float | None = None
    """Share of the texts that are cut to the model's longest length; None until a model is chosen."""
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def with_lengths(self, lengths: Sequence[int] | np.ndarray, truncated: float) -> DataReport:
        """Fill in, and return itself: the lengths in tokens, known once a tokenizer is, and the share of texts that is cut."""
        self.sizes, self.truncated = histogram(lengths, "tokens"), float(truncated)
        return self

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> DataReport:
        return cls(**content)

    def __str__(self) -> str:
        lines = [self._headline(), *self._table_lines()]
        if self.sizes:
            lines.append(f"{self.sizes['name']}: {_spread(self.sizes)}  {_sparkline(self.sizes)}")
        lines += self._finding_lines()
        if self.truncated is not None:
            lines.append(f"cut to the model's longest length: {self.truncated:.1%} of the texts")
        lines += [f"warning: {text}" for text in _shortened(self.warnings)]
        lines += [f"note: {text}" for text in _shortened(self.notes)]
        return "\n".join(_cut(printable(line), _WIDTH) for line in lines)

    def to_html(self) -> str:
        """A fragment for report.html; every text is escaped."""
        parts = [f"<p>{_escape(self._headline())}</p>", self._table_html(), _histogram_html(self.sizes) if self.sizes else ""]
        findings = self._finding_lines(most=20)
        if self.truncated is not None:
            findings.append(f"cut to the model's longest length: {self.truncated:.1%} of the texts")
        parts.append(_list_html("findings", findings))
        parts.append(_list_html("warnings", self.warnings))
        parts.append(_list_html("notes", self.notes))
        return "\n".join(part for part in parts if part)

    def _headline(self) -> str:
        count = len(self.classes)
        kinds = {"number": ["numbers"], "none": [], "tags": [f"{count} tags"]}.get(self.target, [f"{count} classes"])
        return " · ".join([self.source or "(in memory)", self.task, *kinds, f"{sum(self.rows.values()):,} rows"])

    def _cells(self, most: int) -> list[list[str]]:
        """Header, a row per class, and the sum; classes beyond ``most`` in one row."""
        splits = list(self.rows)
        counts = {name: [row.get(split, 0) for split in splits] for name, row in self.classes.items()}
        shown = list(counts) if len(counts) <= most else list(counts)[: most - 1]
        table = [["class" if counts else "", *splits, "total"]]
        table += [[name, *(f"{n:,}" for n in counts[name]), f"{sum(counts[name]):,}"] for name in shown]
        if rest := [counts[name] for name in counts if name not in shown]:
            sums = [sum(column) for column in zip(*rest, strict=True)]
            table.append([f"({len(rest)} more)", *(f"{n:,}" for n in sums), f"{sum(sums):,}"])
        table.append(["rows", *(f"{n:,}" for n in self.rows.values()), f"{sum(self.rows.values()):,}"])
        return table

    def _table_lines(self) -> list[str]:
        cells = [[_cut(printable(row[0]), 40), *row[1:]] for row in self._cells(_CLASSES_SHOWN)]
        widths = [max(display_width(row[column]) for row in cells) for column in range(len(cells[0]))]
        return [
            "  ".join([pad(row[0], widths[0]), *(pad(cell, width, right=True) for cell, width in zip(row[1:], widths[1:], strict=True))])
            for row in cells
        ]

    def _finding_lines(self, most: int = _LINES_SHOWN) -> list[str]:
        lines = []
        if self.duplicates["count"]:
            example = "".join(f", e.g. {a} = {b}" for a, b in self.duplicates["examples"][:1])
            lines.append(f"duplicates: {self.duplicates['count']:,} rows repeat another (kept, in the same split){example}")
        if self.leakage["count"]:
            example = "".join(f", e.g. {place}" for place in self.leakage["examples"][:1])
            lines.append(f"leakage: {self.leakage['count']:,} rows set aside because they also stand in a held-out split{example}")
        if self.set_aside:
            lines.append(f"set aside: {sum(group['count'] for group in self.set_aside):,} rows")
            lines += _shortened(
                [f"  {group['count']:,} × {group['reason']}: {', '.join(group['examples'][:2])}" for group in self.set_aside], most
            )
        return lines

    def _table_html(self) -> str:
        cells = self._cells(200)
        head = "".join(f"<th>{_escape(cell)}</th>" for cell in cells[0])
        body = "".join("<tr>" + "".join(f"<td>{_escape(cell)}</td>" for cell in row) + "</tr>" for row in cells[1:])
        return f'<table class="data-rows"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def group_set_aside(rows: Iterable[SetAside], examples: int = 5) -> list[dict[str, Any]]:
    """Rows set aside by reason, most frequent reason first."""
    groups: dict[str, dict[str, Any]] = {}
    for row in rows:
        group = groups.setdefault(row.reason, {"reason": row.reason, "count": 0, "examples": []})
        group["count"] += 1
        if len(group["examples"]) < examples:
            group["examples"].append(row.origin)
    return sorted(groups.values(), key=lambda group: (-group["count"], group["reason"]))


def histogram(values: Sequence[int] | np.ndarray, name: str) -> dict[str, Any]:
    """Counts between edges of 1, 2, 5, 10, 20, 50, …; the first and last edges enclose all values. Empty without values.

    >>> histogram([3, 4, 30], "tokens")["edges"]
    [2, 5, 10, 20, 50]
    """
    array = np.asarray(values)
    if not len(array):
        return {}
    series = [0] + [step * 10**power for power in range(12) for step in (1, 2, 5)]
    first = max(i for i, edge in enumerate(series) if edge <= max(array.min(), 0))
    last = min(i for i, edge in enumerate(series) if edge > array.max())
    edges = series[first : last + 1]
    counts, _ = np.histogram(array, edges)
    return {
        "name": name,
        "min": int(array.min()),
        "median": float(np.median(array)),
        "max": int(array.max()),
        "edges": edges,
        "counts": [int(count) for count in counts],
    }


def printable(text: str) -> str:
    """Control characters (line ends, a terminal's escapes that a file name may hold) replaced."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "�" for char in text)


def _cut(text: str, width: int) -> str:
    if display_width(text) <= width:
        return text
    while display_width(text) > width - 1:
        text = text[: min(len(text) - 1, width)]
    return text + "…"


def _shortened(lines: list[str], most: int = _LINES_SHOWN) -> list[str]:
    return lines if len(lines) <= most else [*lines[: most - 1], f"  and {len(lines) - most + 1} more, all in the report's JSON and HTML"]


def _spread(sizes: dict[str, Any]) -> str:
    return f"{sizes['min']:,} to {sizes['max']:,}, median {sizes['median']:,.0f}"


def _sparkline(sizes: dict[str, Any]) -> str:
    counts, edges = sizes["counts"], sizes["edges"]
    top = max(counts)
    bars = "".join(_BARS[-(-count * len(_BARS) // top) - 1] if count else " " for count in counts)
    return f"{edges[0]:,} {bars} {edges[-1]:,}"


def _escape(text: str) -> str:
    return html.escape(printable(str(text)))


def _list_html(kind: str, lines: list[str]) -> str:
    return f'<ul class="data-{kind}">' + "".join(f"<li>{_escape(line)}</li>" for line in lines) + "</ul>" if lines else ""


def _histogram_html(sizes: dict[str, Any]) -> str:
    counts, edges = sizes["counts"], sizes["edges"]
    top, row, left, longest = max(counts), 18, 110, 320
    bars = []
    for number, count in enumerate(counts):
        y, length = number * row, round(longest * count / top, 1)
        label = f"{edges[number]:,} – {edges[number + 1] - 1:,}"
        bars.append(
            f'<text x="{left - 6}" y="{y + 13}" text-anchor="end" font-size="11">{_escape(label)}</text>'
            f'<rect x="{left}" y="{y + 3}" width="{length}" height="{row - 6}" fill="#4c78a8"/>'
            f'<text x="{left + length + 5}" y="{y + 13}" font-size="11">{count:,}</text>'
        )
    title = f"{sizes['name']}: {_spread(sizes)}"
    size = f'viewBox="0 0 {left + longest + 70} {row * len(counts)}" width="{left + longest + 70}" height="{row * len(counts)}"'
    return f'<figure class="data-sizes"><figcaption>{_escape(title)}</figcaption><svg role="img" {size}>{"".join(bars)}</svg></figure>'
