"""Conversations to rows of token ids with labels, and what a user must be told of them.

Labels are shifted here: position i is to give token i + 1, if that is trained (chat_template.py says which are). Rows that train
nothing are dropped and counted. Wrong labels train silently, so each thing that is odd becomes a warning with a count and an
example: cuts, cuts that leave nothing to train, answers without an end token, a begin token twice, a template that had to be
chosen or leaves out the tools, a conversation that ends with the user, rows that the template refuses (its role order).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from frostline.data.chat_spans import Message, Tools
from frostline.data.chat_template import Rendered, TrainOn, render_all, with_template
from frostline.data.loader import Encoded
from frostline.data.preprocess import TextPreprocess
from frostline.data.token_rows import IGNORED, TokenRows, token_rows
from frostline.errors import DataError
from frostline.recipe import DataRecipe

TooLong = Literal["cut", "drop", "refuse"]

_ROWS_AT_ONCE = 2000
_TOLD = {
    "cut": "were cut to {limit} tokens (data.max_length)",
    "long": "are longer than {limit} tokens (data.max_length) and were dropped",
    "cut away": "lost all their trained tokens to the cut at {limit} tokens and were dropped; raise data.max_length",
    "nothing": "have no token to train and were dropped",
    "refused": "are refused by the chat template and were dropped",
    "open": "never train the token that ends an answer (the template writes none there, or the cut took it)",
    "begin": "have the begin token twice at their start; the template and the text both write it",
    "asked": "have answers that do not stand behind just what generation is asked with; the template writes them otherwise",
    "tools": "have tools that the template leaves out",
    "user": "end with another turn than the assistant's; that turn trains nothing",
}
"""In the order in which they are told."""


@dataclass(kw_only=True)
class _Made:
    ids: list[list[int]] = field(default_factory=list)
    labels: list[list[int]] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    told: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in _TOLD})
    """Of each kind of warning the rows' origins (and reasons)."""


def encoder(table: pa.Table, preprocess: TextPreprocess, recipe: DataRecipe) -> Encoded:
    """The batches of a split."""
    rows = chat_rows(table, preprocess.tokenizer, max_length=preprocess.max_length, train_on=recipe.train_on, too_long=recipe.too_long)
    return rows.encoded(preprocess)


def chat_rows(table: pa.Table, tokenizer: Any, *, max_length: int, train_on: TrainOn = "assistant", too_long: TooLong = "cut") -> TokenRows:
    """The rows of a table with ``messages`` and ``tools`` (JSON). Raises DataError where no row trains anything.

    ``too_long``: ``cut`` keeps the first ``max_length`` tokens of a longer row, ``drop`` leaves it out, ``refuse`` is an error.
    """
    warnings = with_template(tokenizer)
    conversations = list(read_conversations(table))
    numbered = [f"row {row} of the split" for row in range(1, table.num_rows + 1)]
    origins = table["origin"].to_pylist() if "origin" in table.column_names else numbered
    made = _Made()
    for row, rendered in enumerate(_rendered(conversations, tokenizer, train_on)):
        if isinstance(rendered, str):
            made.told["refused"].append(f"{origins[row]} ({rendered})")
            continue
        if len(rendered.ids) > max_length and too_long == "refuse":
            raise DataError(
                f"{origins[row]}: the conversation has {len(rendered.ids)} tokens, expected at most {max_length} (data.max_length). "
                "Raise data.max_length, or set data.too_long=cut or data.too_long=drop"
            )
        if len(rendered.ids) > max_length and too_long == "drop":
            made.told["long"].append(origins[row])
            continue
        _add(made, row, rendered, origins[row], max_length)
        _look_at(made, rendered, conversations[row], origins[row], tokenizer)
    counted = len(conversations)
    told = [_told(kind, found, counted, max_length) for kind, found in made.told.items() if found]
    if not made.kept:
        raise DataError(
            f"none of the {counted} conversations has a token to train: {'; '.join(told) or 'there are no rows'}. Check the data"
        )
    return token_rows(made.ids, made.labels, made.kept, len(made.told["cut"]), [*warnings, *told])


def _rendered(conversations: list[tuple[list[Message], Tools]], tokenizer: Any, train_on: TrainOn) -> Iterator[Rendered | str]:
    for start in range(0, len(conversations), _ROWS_AT_ONCE):
        yield from render_all(conversations[start : start + _ROWS_AT_ONCE], tokenizer, train_on=train_on)


def read_conversations(table: pa.Table) -> Iterator[tuple[list[Message], Tools]]:
    """``(messages, tools)`` of each row."""
    tools = table["tools"].to_pylist() if "tools" in table.column_names else [None] * table.num_rows
    for spelled, given in zip(table["messages"].to_pylist(), tools, strict=True):
        yield json.loads(spelled), json.loads(given) if given else None


def _add(made: _Made, row: int, rendered: Rendered, origin: str, limit: int) -> None:
    ids = rendered.ids[:limit]
    following = zip(rendered.ids[1:limit], rendered.trained[1:limit], strict=True)
    labels = [token if trained else IGNORED for token, trained in following] + [IGNORED] * bool(ids)
    cut = len(rendered.ids) > limit
    if not any(label != IGNORED for label in labels):
        made.told["cut away" if cut and any(rendered.trained[1:]) else "nothing"].append(origin)
        return
    made.ids.append(ids)
    made.labels.append(labels)
    made.kept.append(row)
    if cut:
        made.told["cut"].append(origin)
    if not any(turn.closing is not None and turn.closing < limit for turn in rendered.turns):
        made.told["open"].append(origin)


def _look_at(made: _Made, rendered: Rendered, conversation: tuple[list[Message], Tools], origin: str, tokenizer: Any) -> None:
    messages, tools = conversation
    begin = tokenizer.bos_token_id
    if begin is not None and rendered.ids[:2] == [begin, begin]:
        made.told["begin"].append(origin)
    if not rendered.asked:
        made.told["asked"].append(origin)
    if tools and not any(tool.get("function", tool).get("name", "") in rendered.text for tool in tools):
        made.told["tools"].append(origin)
    if messages[-1]["role"] != "assistant":
        made.told["user"].append(origin)


def _told(kind: str, found: list[str], counted: int, limit: int) -> str:
    return f"{len(found)} of {counted} conversations {_TOLD[kind].format(limit=limit)}, e.g. {found[0]}"
