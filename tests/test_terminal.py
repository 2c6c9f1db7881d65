"""Tables of plain text line up, whatever the script."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.terminal import display_width, pad, table


@pytest.mark.parametrize(("text", "width"), [("", 0), ("cat", 3), ("猫", 2), ("猫 cat", 6), ("ｆｕｌｌ", 8), ("e\u0301", 1), ("“好”", 4)])
def test_display_width(text: str, width: int) -> None:
    assert display_width(text) == width


def test_pad() -> None:
    assert pad("猫", 4) == "猫  "
    assert pad("猫", 4, right=True) == "  猫"
    assert pad("too long", 3) == "too long"


@given(st.lists(st.lists(st.text("ab 猫狗，é", max_size=6), min_size=2, max_size=2), max_size=5))
def test_columns_begin_at_one_place(rows: list[list[str]]) -> None:
    lines = table(["名", "value"], rows).split("\n")
    widths = [max([display_width(row[i]) for row in rows] + [display_width(["名", "value"][i])]) for i in range(2)]
    assert len(lines) == len(rows) + 2
    assert lines[1] == "-" * widths[0] + "  " + "-" * widths[1]
    for line, row in zip(lines[2:], rows):
        assert line == (pad(row[0], widths[0]) + "  " + pad(row[1], widths[1])).rstrip()


def test_numbers_stand_to_the_right() -> None:
    assert table(["n", "x"], [[1, 0.5], [100, 12.25]]).splitlines() == ["  n        x", "---  -------", "  1   0.5000", "100  12.2500"]


def test_small_numbers_are_not_nought() -> None:
    assert table(["lr"], [[2e-5], [0.0], [0.001], [-2e-5]]).splitlines()[2:] == [" 2.00e-05", "   0.0000", "   0.0010", "-2.00e-05"]


def test_a_cell_is_one_line() -> None:
    assert table(["a"], [["x\ny"]]).splitlines()[2:] == ["x y"]
    assert table(["a", "b"], []).splitlines() == ["a  b", "-  -"]
