"""Charts as inline SVG: lines, bars, the reliability diagram, points. No script; colours come from the page's CSS variables.

Each returns one ``<svg>`` that scales with its column. All text is escaped, since labels are the user's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from frostline.data.report import printable
from frostline.evaluate.terminal import number, shortened

_WIDTH, _HEIGHT = 380, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 26, 38
_TICKS = 5

Points = Sequence[tuple[float, float]]


def text(value: object) -> str:
    """Escaped for HTML, control characters replaced.

    >>> text("<script>")
    '&lt;script&gt;'
    """
    return escape(printable(str(value)))


def lines(series: Mapping[str, Points], across: str) -> str:
    """One line per name over a common scale, with a dot at each point; ``across`` names the horizontal axis."""
    points = [point for values in series.values() for point in values]
    frame = _Frame(_span([x for x, _ in points]), _span([y for _, y in points]))
    parts = [frame.axes(across)]
    for index, (name, values) in enumerate(series.items()):
        colour = f"var(--line{index % 4})"
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in values)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3" fill="{colour}"><title>{text(name)}: {number(y)}</title></circle>'
            for x, y in values
        ]
        parts.append(f'<rect x="{_LEFT + 130 * index}" y="6" width="14" height="4" rx="2" fill="{colour}"/>')
        parts.append(f'<text x="{_LEFT + 20 + 130 * index}" y="12">{text(name)}</text>')
    return _svg(parts, ", ".join(series))


def reliability(bins: Sequence[Mapping[str, float]]) -> str:
    """Accuracy by confidence: bars on the diagonal mean that a probability can be taken at its word."""
    frame = _Frame((0.0, 1.0), (0.0, 1.0))
    parts = [frame.axes("confidence 置信度", "accuracy 准确率")]
    most = max(part["rows"] for part in bins)
    for part in bins:
        left, right, top = frame.x(part["low"]), frame.x(part["high"]), frame.y(part["accuracy"])
        # A bar that stands for few rows is paler: its height says little.
        opacity = 0.3 + 0.7 * math.sqrt(part["rows"] / most)
        title = f"{part['rows']} rows, confidence {number(part['confidence'])}, accuracy {number(part['accuracy'])}"
        parts.append(
            f'<rect x="{left + 1:.1f}" y="{top:.1f}" width="{right - left - 2:.1f}" height="{frame.y(0) - top:.1f}" '
            f'fill="var(--line0)" opacity="{opacity:.2f}"><title>{text(title)}</title></rect>'
        )
        parts.append(f'<circle cx="{frame.x(part["confidence"]):.1f}" cy="{top:.1f}" r="3" fill="var(--line1)"/>')
    parts.append(f'<line x1="{frame.x(0)}" y1="{frame.y(0)}" x2="{frame.x(1)}" y2="{frame.y(1)}" class="diagonal"/>')
    return _svg(parts, "reliability diagram")


def scatter(points: Points) -> str:
    """Predicted against true numbers, with the line on which they are equal."""
    span = _span([value for point in points for value in point])
    frame = _Frame(span, span)
    parts = [frame.axes("true 真实值", "predicted 预测值")]
    parts += [f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="2.5" fill="var(--line0)" opacity="0.6"/>' for x, y in points]
    low, high = span
    parts.append(f'<line x1="{frame.x(low)}" y1="{frame.y(low)}" x2="{frame.x(high)}" y2="{frame.y(high)}" class="diagonal"/>')
    return _svg(parts, "predicted against true")


def bars(values: Mapping[str, float | None]) -> str:
    """One horizontal bar from 0 to 1 per name; nothing for a value that is not known."""
    row, left, longest = 22, 140, 175
    parts = []
    for index, (name, value) in enumerate(values.items()):
        middle = index * row + row / 2
        parts.append(
            f'<text x="{left - 8}" y="{middle + 4}" text-anchor="end"><title>{text(name)}</title>{text(shortened(name, 20))}</text>'
        )
        parts.append(f'<rect x="{left}" y="{middle - 7}" width="{longest}" height="14" rx="3" class="track"/>')
        if value:
            parts.append(f'<rect x="{left}" y="{middle - 7}" width="{longest * value:.1f}" height="14" rx="3" fill="var(--line0)"/>')
        parts.append(f'<text x="{left + longest + 8}" y="{middle + 4}">{number(value)}</text>')
    return _svg(parts, "values per class", height=row * len(values))


class _Frame:
    """The plot's rectangle: data to pixels, and the axes with their ticks."""

    across: tuple[float, float]
    up: tuple[float, float]

    def __init__(self, across: tuple[float, float], up: tuple[float, float]) -> None:
        self.across, self.up = across, up

    def x(self, value: float) -> float:
        low, high = self.across
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.up
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self, across: str, up: str = "") -> str:
        parts = []
        for tick in _ticks(self.up):
            parts.append(f'<line x1="{_LEFT}" y1="{self.y(tick):.1f}" x2="{_WIDTH - _RIGHT}" y2="{self.y(tick):.1f}" class="grid"/>')
            parts.append(f'<text x="{_LEFT - 7}" y="{self.y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
        for tick in _ticks(self.across):
            parts.append(f'<text x="{self.x(tick):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 5}" text-anchor="middle">{text(across)}</text>')
        if up:
            parts.append(f'<text x="{_LEFT}" y="14">{text(up)}</text>')
        return "".join(parts)


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The range to show: a little wider than the values, and never empty."""
    low, high = min(values), max(values)
    room = 0.04 * (high - low) or 0.5 * max(abs(high), 1e-6)
    return low - room, high + room


def _ticks(span: tuple[float, float]) -> list[float]:
    """Round numbers inside a range, 1, 2 or 5 times a power of ten apart.

    >>> _ticks((0.0, 1.0))
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    low, high = span
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough * 0.999)
    return [round(index * step, 12) for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _svg(parts: Sequence[str], title: str, height: float = _HEIGHT) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{text(title)}">{"".join(parts)}</svg>'
