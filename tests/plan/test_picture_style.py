"""The style sheet: every state and part of memory has a colour in light and dark, on which a white name can be read."""

from __future__ import annotations

import re

import pytest

from frostline.plan.outline import STATES
from frostline.plan.picture_style import STYLE


def colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w]+):(#[0-9a-f]{3,6})", block))


LIGHT, DARK = (colours(part) for part in re.split(r"@media", STYLE, maxsplit=1))


def luminance(colour: str) -> float:
    """Relative, as WCAG 2 defines it."""
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_both_modes_define_the_same() -> None:
    assert LIGHT.keys() == DARK.keys() and {*STATES, "frost", "m0", "m7"} <= LIGHT.keys()
    assert set(re.findall(r"var\(--(\w+)\)", STYLE)) <= LIGHT.keys()


@pytest.mark.parametrize("state", STATES)
def test_a_state_has_a_colour_with_readable_names(state: str) -> None:
    assert f"svg .{state} {{ fill:var(--{state}); }}" in STYLE and f"i.{state} {{" in STYLE and f"svg .on-{state} {{" in STYLE
    for mode in (LIGHT, DARK):
        assert 1.05 / (luminance(mode[state]) + 0.05) >= 4.5  # white on it


def test_states_are_told_apart() -> None:
    for mode in (LIGHT, DARK):
        assert len({mode[state] for state in STATES}) == len(STATES)
        assert len({mode[f"m{index}"] for index in range(8)}) == 8


def test_nothing_is_fetched() -> None:
    assert not re.search(r"url\(|@import|https?:", STYLE)
