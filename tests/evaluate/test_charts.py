"""Charts are well-formed SVG with escaped names, and stand degenerate data."""

import xml.etree.ElementTree as ElementTree

import pytest

from frostline.evaluate import charts

HOSTILE = "<script>\x1b&\"'"


def parsed(svg):
    return ElementTree.fromstring(svg)


def test_lines_put_each_point_in_its_place():
    svg = parsed(charts.lines({"train": [(1, 0.0), (2, 1.0)], HOSTILE: [(1, 0.5)]}, "epoch"))
    first, second, third = ((float(dot.get("cx")), float(dot.get("cy"))) for dot in svg.findall("circle"))
    assert first[0] < second[0] and first[1] > second[1]
    assert third == (first[0], pytest.approx((first[1] + second[1]) / 2, abs=0.1))
    assert any("<script>" in (element.text or "") for element in svg.iter("text"))


@pytest.mark.parametrize("points", [[(1, 0.5)], [(1, 0.0), (2, 0.0)], [(1, -3e-9), (2, 7e12)]])
def test_one_point_and_flat_and_huge_ranges(points):
    svg = parsed(charts.lines({"x": points}, "epoch"))
    assert len(svg.findall("circle")) == len(points)
    parsed(charts.scatter([(float(y), float(x)) for x, y in points]))


def test_reliability_has_a_bar_per_bin():
    bins = [
        {"low": 0.4, "high": 0.5, "rows": 1, "confidence": 0.45, "accuracy": 1.0},
        {"low": 0.9, "high": 1.0, "rows": 99, "confidence": 0.97, "accuracy": 0.9},
    ]
    pale, full = (float(bar.get("opacity")) for bar in parsed(charts.reliability(bins)).findall("rect"))
    assert pale < full == 1.0


def test_bars_leave_out_what_is_not_known():
    svg = parsed(charts.bars({"a": 1.0, HOSTILE: 0.5, "absent": None}))
    tracks = [bar for bar in svg.findall("rect") if bar.get("class") == "track"]
    filled = [float(bar.get("width")) for bar in svg.findall("rect") if bar.get("class") != "track"]
    assert len(tracks) == 3 and len(filled) == 2 and filled[0] == 2 * filled[1]


def test_text_is_escaped_and_printable():
    assert charts.text(HOSTILE) == "&lt;script&gt;�&amp;&quot;&#x27;"
