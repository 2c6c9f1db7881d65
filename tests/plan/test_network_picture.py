"""The drawing: widths make up the whole, what learns is seen, names and numbers do not lie on one another."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from frostline.plan.network_picture import WIDTH, bands, groups, network_svg, share_of, short, widths
from frostline.plan.outline import CACHED, FROZEN, INT8, LEARNING, Outline, Part


def part(name: str, *, kind: str = "Block", work: int = 100, **shares: int) -> Part:
    return Part(name=name, kind=kind, numbers=sum(shares.values()), work=work, shares=shares)


def drawn(*parts: Part, line: int | None = None, counted: bool = True) -> Outline:
    return Outline(parts=list(parts), counted=counted, line=line)


NETWORK = drawn(
    part("stem", kind="Conv2d", work=10, cached=50),
    *(part(f"blocks.{i}", cached=1000) for i in range(12)),
    part("blocks.12", learning=1000),
    part("head", kind="Sequential", work=1, learning=10),
    line=13,
)


def test_widths_add_up_to_the_whole() -> None:
    sizes = widths(NETWORK)
    assert sum(sizes) == pytest.approx(WIDTH) and min(sizes) > 2
    assert sizes[1] == sizes[2] > 5 * sizes[0]
    svg = network_svg(NETWORK)
    rects = [(float(x), float(width)) for x, width in re.findall(r'<rect class="\w+" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', svg)]
    assert sum(width for _, width in rects) == pytest.approx(WIDTH, abs=0.1)
    assert all(right == pytest.approx(x + width, abs=0.01) for (x, width), (right, _) in pairwise(rects))
    assert sum(widths(drawn(*(part(f"{i}", learning=1) for i in range(3000))))) == pytest.approx(WIDTH)
    assert sum(widths(drawn(part("a", work=0, learning=1), part("b", work=0, learning=1)))) == pytest.approx(WIDTH)


def test_without_counts_numbers_make_the_widths() -> None:
    few, many = widths(drawn(part("a", work=9000, learning=10), part("b", work=1, learning=1000), counted=False))
    assert many > 10 * few


def test_what_is_alike_is_named_together() -> None:
    found = groups(NETWORK)
    assert [group.label for group in found] == ["Conv2d", "12 × Block", "Block", "head"]
    assert found[1].names == "blocks.0 … blocks.11"
    alike = drawn(*(part(f"{i}", learning=5) for i in range(4)), line=2)
    assert [group.label for group in groups(alike)] == ["2 × Block", "2 × Block"]  # never across the frost line


def test_many_parts_become_few_groups() -> None:
    several = drawn(*(part(f"{i}", kind=f"Kind{i}", work=i, learning=i + 1) for i in range(200)), line=100)
    found = groups(several)
    assert len(found) <= 36 and sum(len(group.parts) for group in found) == 200
    assert found[0].label.endswith(" parts") and any(group.start == 100 for group in found)


def test_numbers_and_names_do_not_overlap() -> None:
    for network in (NETWORK, drawn(*(part(f"{i}", kind=f"Kind{i}", work=10 ** (i % 7), learning=i + 1) for i in range(36)))):
        svg = network_svg(network)
        places = [float(x) for x in re.findall(r'<circle class="tag" cx="([\d.]+)"', svg)]
        assert places[0] >= 11 and places[-1] <= WIDTH - 11
        assert all(b - a >= 24.9 for a, b in pairwise(places))
        labels = [(float(x), len(name)) for x, name in re.findall(r'<text class="label [\w-]+" x="([\d.]+)" y="[\d.]+">([^<]+)<', svg)]
        assert all(b - a > 3.7 * (n + m) for (a, n), (b, m) in pairwise(labels))


def test_what_learns_is_seen_however_small() -> None:
    heights = dict(bands(part("a", frozen=1000, int8=10**9, learning=1)))
    assert set(heights) == {INT8, LEARNING} and heights[LEARNING] >= 8
    assert sum(heights.values()) == pytest.approx(120)
    assert bands(part("empty")) == [(FROZEN, 120.0)]
    assert [state for state, _ in bands(part("b", cached=10, learning=10))] == [CACHED, LEARNING]
    tiny = widths(drawn(part("body", work=10**12, frozen=10**9), part("head", work=1, learning=1), line=1))
    assert tiny[1] >= 8


def test_the_frost_line_stands_before_what_learns() -> None:
    svg = network_svg(NETWORK)
    at = float(re.findall(r'class="frost" d="M([\d.]+) ', svg)[0])
    assert at == pytest.approx(sum(widths(NETWORK)[:13]), abs=0.1)
    assert 'class="frost"' not in network_svg(drawn(part("a", learning=5)))


def test_hostile_names_are_escaped() -> None:
    name = "\"><script>alert('1')</script>"
    svg = network_svg(drawn(part(name, kind=f"<b>{name}", learning=5), part("b", learning=5)))
    assert "<script" not in svg and "<b>" not in svg and "&lt;script&gt;" in svg


def test_numbers_for_people() -> None:
    assert [short(0), short(12), short(1500), short(2_345_678, "B"), short(0.5)] == ["0", "12", "1.50 k", "2.35 MB", "0.500"]
    assert [share_of(0, 0), share_of(1, 1), share_of(1, 10**9)] == ["0.0%", "100.0%", "< 0.1%"]
