"""The network of a plan as inline SVG: its parts from input to output, as wide as their work, coloured by what they are to the plan.

A part's bands, from above, are the shares of its numbers that are frozen (by how they are run) and that learn; what learns is
always seen, however small. Neighbours that are alike are named together, ``12 × Block``. Names stand inside where there is room,
and a number above each group leads to the table below the picture. All text is escaped: names come from the user's classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from frostline.data.report import printable
from frostline.plan.outline import CACHED, FROZEN, INT8, LEARNING, PACKED, STATES, Outline, Part
from frostline.terminal import display_width

WIDTH = 1000
_HEIGHT, _TOP, _BAND = 214, 48, 120  # of the drawing, above the parts, of the parts
_NARROWEST, _NARROWEST_LEARNING, _THINNEST = 2.5, 9.0, 9.0  # widths of parts and height of a band that can still be seen
_SHOWN = 0.02  # share of a part from which a frozen kind is drawn as a band of its own
_MOST_GROUPS = 36
_TAG = 25  # between the middles of two numbers
_COLUMN = 7.4  # width of one column of text
_CONTAINERS = ("Sequential", "ModuleList", "ModuleDict")

STATE_NAMES = {
    CACHED: "frozen, computed once and stored 冻结，只算一次并缓存",
    FROZEN: "frozen, run in each step 冻结，每步都算",
    PACKED: "frozen, weights packed once 冻结，权重预打包",
    INT8: "frozen, multiplied in 8 bits 冻结，以 8 位数相乘",
    LEARNING: "learns 学习",
}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Neighbours that are named together."""

    start: int
    parts: list[Part]

    @property
    def label(self) -> str:
        """``head``, ``Conv2d``, ``12 × Block`` or ``5 parts``."""
        first, count = self.parts[0], len(self.parts)
        if len({part.kind for part in self.parts}) > 1:
            return f"{count} parts"
        kind = first.name.rpartition(".")[2] if first.kind in _CONTAINERS and count == 1 and first.name else first.kind
        return kind if count == 1 else f"{count} × {kind}"

    @property
    def names(self) -> str:
        first, last = self.parts[0].name or "(itself 自身)", self.parts[-1].name
        return first if len(self.parts) == 1 else f"{first} … {last}"


def text(value: object) -> str:
    """Escaped for HTML, control characters replaced.

    >>> text("<b>\\n")
    '&lt;b&gt;�'
    """
    return escape(printable(str(value)))


def short(value: float, unit: str = "") -> str:
    """
    >>> short(1_234_567), short(999, "B"), short(24e9, "B")
    ('1.23 M', '999 B', '24.0 GB')
    """
    power = 0
    while abs(value) >= 999.5 and power < 4:
        value, power = value / 1000, power + 1
    number = f"{value:#.3g}".rstrip(".") if power or value != int(value) else f"{value:.0f}"
    return f"{number} {('', 'k', 'M', 'G', 'T')[power]}{unit}".rstrip()


def weight_of(part: Part, counted: bool) -> int:
    """What a part's width stands for: its multiply-adds, or its numbers where these are not known."""
    return part.work if counted else part.numbers


def share_of(part: float, whole: float) -> str:
    """Per cent that never say nothing or all of what is little or nearly all.

    >>> share_of(1, 3), share_of(1, 10**6), share_of(10**6 - 1, 10**6), share_of(0, 3)
    ('33.3%', '< 0.1%', '> 99.9%', '0.0%')
    """
    share = part / whole if whole else 0.0
    if 0 < share < 0.0005:
        return "< 0.1%"
    return "> 99.9%" if 0.9995 <= share < 1 else f"{share:.1%}"


def widths(outline: Outline) -> list[float]:
    """Of the parts, in all ``WIDTH``: by their weight, none too narrow to be seen."""
    weights = [weight_of(part, outline.counted) for part in outline.parts]
    least = [_NARROWEST_LEARNING if LEARNING in part.shares else _NARROWEST for part in outline.parts]
    scale = min(1.0, WIDTH / (2 * sum(least)))
    room, total = WIDTH - scale * sum(least), sum(weights)
    shares = [weight / total if total else 1 / len(weights) for weight in weights]
    return [scale * low + room * share for low, share in zip(least, shares, strict=True)]


def groups(outline: Outline) -> list[Group]:
    """Neighbours of one kind, size and state together; then the lightest neighbours, until there are few enough."""
    found: list[Group] = []
    for index, part in enumerate(outline.parts):
        if found and index != outline.line and _likeness(found[-1].parts[-1]) == _likeness(part):
            found[-1].parts.append(part)
        else:
            found.append(Group(start=index, parts=[part]))
    while len(found) > _MOST_GROUPS:
        pairs = [at for at in range(len(found) - 1) if found[at + 1].start != outline.line]
        at = min(pairs, key=lambda at: sum(weight_of(part, outline.counted) for group in found[at : at + 2] for part in group.parts))
        found[at : at + 2] = [Group(start=found[at].start, parts=[*found[at].parts, *found[at + 1].parts])]
    return found


def states(parts: Iterable[Part]) -> list[str]:
    """Those that occur, in their order."""
    present = {state for part in parts for state in part.shares}
    return [state for state in STATES if state in present]


def network_svg(outline: Outline) -> str:
    """The drawing, ``WIDTH`` wide."""
    sizes = widths(outline)
    lefts = [sum(sizes[:index]) for index in range(len(sizes))]
    drawn = [_part(part, left, size, outline.counted) for part, left, size in zip(outline.parts, lefts, sizes, strict=True)]
    spans = [(lefts[group.start], sum(sizes[group.start : group.start + len(group.parts)]), group) for group in groups(outline)]
    drawn += [*_labels(spans), *_tags([left + size / 2 for left, size, _ in spans])]
    drawn.append(_frost_line(outline, lefts))
    title = "the network from input to output, by cost 网络（由输入到输出，宽度表示开销）"
    return f'<svg class="network" viewBox="0 0 {WIDTH} {_HEIGHT}" role="img" aria-label="{text(title)}">{"".join(drawn)}</svg>'


def _likeness(part: Part) -> tuple[object, ...]:
    return part.kind, part.numbers, part.work, tuple(part.shares)


def bands(part: Part) -> list[tuple[str, float]]:
    """(state, height) from above; a part without numbers is as what runs in each step."""
    total = sum(part.shares.values())
    frozen = max((state for state in part.shares if state != LEARNING), key=part.shares.__getitem__, default=None)
    seen = {state: count for state, count in part.shares.items() if state in (LEARNING, frozen) or count >= _SHOWN * total}
    if not seen:
        return [(FROZEN, float(_BAND))]
    least = {state: max(_THINNEST, _BAND * count / sum(seen.values())) for state, count in seen.items()}
    scale = _BAND / sum(least.values())
    return [(state, height * scale) for state, height in least.items()]


def _part(part: Part, left: float, size: float, counted: bool) -> str:
    share = ", ".join(f"{STATE_NAMES[state]}: {short(count)}" for state, count in part.shares.items())
    work = f"; {short(part.work)} multiply-adds a row 每行乘加" if counted else ""
    title = f"{part.name or part.kind} ({part.kind}): {short(part.numbers)} numbers 参数; {share}{work}"
    top, rects = float(_TOP), []
    for state, height in bands(part):
        rects.append(f'<rect class="{state}" x="{left:.3f}" y="{top:.2f}" width="{size:.3f}" height="{height:.2f}"/>')
        top += height
    edge = f'<path class="edge" d="M{left:.2f} {_TOP}V{_TOP + _BAND}"/>' if size > 2 * _NARROWEST else ""
    return f'<g class="part" data-part="{text(part.name)}"><title>{text(title)}</title>{"".join(rects)}{edge}</g>'


def _labels(spans: Sequence[tuple[float, float, Group]]) -> Iterator[str]:
    """The groups' names where they fit, in the largest band of the first part."""
    for left, size, group in spans:
        top, best = float(_TOP), (0.0, float(_TOP), "")
        for state, height in bands(group.parts[0]):
            best = max(best, (height, top, state))
            top += height
        height, top, state = best
        if display_width(group.label) * _COLUMN + 10 <= size:
            place = f'x="{left + size / 2:.1f}" y="{top + height / 2 + 5:.1f}"'
            yield f'<text class="label on-{state}" {place}>{text(group.label)}</text>'


def _tags(middles: Sequence[float]) -> Iterator[str]:
    """The groups' numbers, moved apart where they would touch, each with a line to its group."""
    places: list[float] = []
    for middle in middles:
        places.append(max(middle, places[-1] + _TAG if places else _TAG / 2))
    limit = WIDTH - _TAG / 2
    for index in reversed(range(len(places))):
        places[index] = min(places[index], limit)
        limit = places[index] - _TAG
    for number, (place, middle) in enumerate(zip(places, middles, strict=True), 1):
        yield f'<path class="lead" d="M{place:.1f} 23L{middle:.1f} {_TOP - 2}"/>'
        yield f'<circle class="tag" cx="{place:.1f}" cy="12" r="11"/><text class="number" x="{place:.1f}" y="16.5">{number}</text>'


def _frost_line(outline: Outline, lefts: Sequence[float]) -> str:
    """Where what learns begins, and what stands on its sides."""
    bottom = _TOP + _BAND
    if outline.line is None:
        return ""
    at = lefts[outline.line]
    line = f'<path class="frost" d="M{at:.1f} {_TOP - 8}V{bottom + 34}"/>'
    before, behind = "← nothing here learns 不学习", "learning begins 由此开始学习 →"
    name = "frost line 冰冻线"
    width = display_width(f"{before}  {name}") * _COLUMN
    parts = [line]
    if at > width:  # both sides have room unless the line stands at one end
        parts.append(f'<text class="side end" x="{at - 8:.1f}" y="{bottom + 30}"><tspan class="name">{name}</tspan>  {before}</text>')
    else:
        parts.append(f'<text class="side" x="{at + 8:.1f}" y="{bottom + 30}"><tspan class="name">{name}</tspan>  {behind}</text>')
    return f'<g class="frost-line">{"".join(parts)}</g>'
