"""Long rows are cut, dropped or refused, and counted."""

from __future__ import annotations

import pytest

from frostline.data.too_long import settle
from frostline.errors import DataError


def test_nothing_is_said_where_nothing_is_too_long():
    assert settle(set(), 3, 8, "refuse", "row") == ([0, 1, 2], [])


def test_cut_and_drop_are_counted():
    assert settle({2, 0}, 3, 8, "cut", "text") == (
        [0, 1, 2],
        ["2 of 3 texts are longer than max_length=8 and are cut, e.g. row 1 of the split"],
    )
    assert settle({2, 0}, 3, 8, "drop", "text")[0] == [1]


def test_refuse():
    with pytest.raises(DataError, match=r"1 of 3 rows are longer than max_length=8, e\.g\. row 3 of the split, and data\.too_long is 'ref"):
        settle({2}, 3, 8, "refuse", "row")
