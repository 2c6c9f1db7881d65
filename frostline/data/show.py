"""Rows as the model will see them: every token as text, what is trained told apart from what is not, turn by turn.

On a terminal that shows colours, trained text is black on green; elsewhere it stands between ⟦ and ⟧. Line breaks are shown as
↵, and other control characters by their number, so that a row can neither hide tokens nor speak to the terminal.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from frostline.data.chat_template import Rendered, Turn
from frostline.data.token_rows import IGNORED, TokenRows
from frostline.terminal import pad

_GREEN, _PLAIN = "\x1b[30;42m", "\x1b[0m"


def show_rows(rows: Sequence[Rendered] | TokenRows, tokenizer: Any, *, colour: bool = False) -> str:
    """The rows with their counts: ``row 0: 31 tokens, 8 trained``, then a line for each turn with its role."""
    pieces = _from_token_rows(rows) if isinstance(rows, TokenRows) else [(row.ids, row.trained, row.turns) for row in rows]
    return "\n\n".join(_row(number, *piece, tokenizer, colour) for number, piece in enumerate(pieces))


def _from_token_rows(rows: TokenRows) -> list[tuple[list[int], list[bool], list[Turn]]]:
    """Labels are shifted: a token is trained if the position before it is to give it."""
    found = []
    for start, end in itertools.pairwise(rows.offsets.tolist()):
        ids = rows.ids[start:end].tolist()
        trained = np.concatenate([[False], rows.labels[start : end - 1] != IGNORED])[: len(ids)].tolist()
        found.append((ids, trained, [Turn(role="tokens", start=0, end=len(ids))]))
    return found


def _row(number: int, ids: list[int], trained: list[bool], turns: list[Turn], tokenizer: Any, colour: bool) -> str:
    lines = [f"row {number}: {len(ids)} tokens, {sum(trained)} trained"]
    width = max((len(turn.role) for turn in turns), default=0)
    for turn in turns:
        lines.append(f"  {pad(turn.role, width)}  {_turn(ids, trained, turn, tokenizer, colour)}")
    return "\n".join(lines)


def _turn(ids: list[int], trained: list[bool], turn: Turn, tokenizer: Any, colour: bool) -> str:
    opening, closing = (_GREEN, _PLAIN) if colour else ("⟦", "⟧")
    shown, done, position = "", "", turn.start
    for learned, group in itertools.groupby(trained[turn.start : turn.end]):
        position += len(list(group))
        whole = tokenizer.decode(ids[turn.start : position], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        # decoded from the turn's start: a decoder drops the space before its first token
        text, done = _visible(whole[len(done) :]), whole
        shown += f"{opening}{text}{closing}" if learned else text
    return shown


def _visible(text: str) -> str:
    return "".join("↵" if c == "\n" else f"\\u{ord(c):04x}" if unicodedata.category(c) in ("Cc", "Cf") else c for c in text)
