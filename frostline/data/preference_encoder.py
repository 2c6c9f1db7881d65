"""Preferences to batches: each row gives two sequences, prompt + chosen and prompt + rejected, side by side.

A batch of n rows holds inputs and labels of 2 n sequences, row i's at 2 i and 2 i + 1. Labels (shifted, -100 elsewhere) are the
tokens of the answer's assistant turns with their end tokens, as chat_template.py finds them; the prompt has none, whoever speaks
in it. A row with one answer (KTO) has in the other one's place a sequence of one token without a label: a sequence of padding
alone would make attention divide by zero.

Too long (``data.too_long``). cut: an answer stays whole and loses no token, since its probability would be that of another text;
the prompt is cut from the left, as much in both sequences, and keeps its begin token. A row whose answer leaves the prompt no
token is dropped. drop: such rows are dropped. refuse: the first one is an error. All of it is counted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from frostline.data.chat_template import Rendered, render, render_all, with_template
from frostline.data.conversation_formats import Message, Unreadable, read_row
from frostline.data.loader import Batch, Encoded
from frostline.data.preprocess import TextPreprocess
from frostline.data.token_rows import IGNORED, TokenRows, token_rows
from frostline.errors import DataError
from frostline.recipe import DataRecipe


@dataclass(frozen=True, kw_only=True)
class _Sequence:
    """Prompt and answer as ids; ``trained`` for each of them."""

    ids: list[int]
    trained: list[bool]
    prompt: int
    """How many ids stand before the answer's turn (whose header is never cut)."""
    ends: bool = True
    """Whether the last turn's end token is trained."""

    @property
    def answer(self) -> int:
        return len(self.ids) - self.prompt


def encoder(table: pa.Table, preprocess: TextPreprocess, recipe: DataRecipe) -> Encoded:
    """One split of preferences, for the tasks preference and reward."""
    tokenizer = preprocess.tokenizer
    warnings = with_template(tokenizer)
    made, refused = _sequences(table, tokenizer)
    places = _places(table)
    kept, ids, labels, cut, dropped, untrained = [], [], [], [], [], []
    for row, pair in made:
        fitted = _fitted(pair, places[row], preprocess, recipe)
        if fitted is None:
            dropped.append(row)
        elif not all(any(sequence.trained) for sequence in fitted if sequence is not None):
            untrained.append(row)
        else:
            kept.append(row)
            cut += [row] if fitted is not pair else []
            for sequence in fitted:
                ids.append(sequence.ids if sequence else [_stand_in(tokenizer)])
                labels.append(_shifted(sequence) if sequence else [IGNORED])
    open_ended = [row for row, pair in made if any(sequence is not None and not sequence.ends for sequence in pair)]
    warnings += _warnings(places, preprocess, refused, cut, dropped, untrained, open_ended)
    if not kept:
        raise DataError(f"none of {table.num_rows} rows can be learned from: {'; '.join(warnings)}. Look at them, or raise data.max_length")
    return _encoded(token_rows(ids, labels, kept, len(cut), warnings), preprocess)


def encode_conversations(given: Sequence[str | list[Any]], preprocess: TextPreprocess) -> dict[str, torch.Tensor]:
    """The network's inputs for whole conversations, in one batch: what a reward model predicts from.

    A conversation is a list of messages, or its JSON; another text is taken as it is, without the template. What is too long is
    cut from the left, as in training. Raises DataError where the template refuses one.
    """
    tokenizer = preprocess.tokenizer
    with_template(tokenizer)
    ids = []
    for one in given:
        conversation = _conversation(one)
        whole = tokenizer(one)["input_ids"] if conversation is None else render(conversation, None, tokenizer).ids
        begin = _begin(whole, tokenizer)
        ids.append(whole[:begin] + whole[max(begin, len(whole) - preprocess.max_length + begin) :] or [_stand_in(tokenizer)])
    rows = token_rows(ids, [[IGNORED] * len(row) for row in ids], list(range(len(ids))), 0, [])
    return rows.batch(np.arange(len(ids)), tokenizer.pad_token_id or 0, preprocess.inputs).inputs


def _conversation(given: str | list[Any]) -> list[Message] | None:
    if isinstance(given, str) and not given.lstrip().startswith("[{"):
        return None
    try:
        return read_row({"messages": given}, "messages")[0]
    except Unreadable as reason:
        if isinstance(given, str):
            return None
        raise DataError(f"{str(given)[:60]!r} is no conversation: {reason}. Give a list of messages with role and content") from reason


# -- Sequences --------------------------------------------------------------------------------------------------------


def _sequences(table: pa.Table, tokenizer: Any) -> tuple[list[tuple[int, tuple[_Sequence | None, ...]]], list[tuple[int, str]]]:
    """``(row, (chosen, rejected))`` of the rows that the template takes, and why it refuses the others."""
    prompts = [json.loads(text) for text in table["prompt"].to_pylist()]
    answers = [[None if text is None else json.loads(text) for text in table[name].to_pylist()] for name in ("chosen", "rejected")]
    places = [(row, side) for row in range(table.num_rows) for side in (0, 1) if answers[side][row] is not None]
    rendered = render_all([([*prompts[row], *(answers[side][row] or [])], None) for row, side in places], tokenizer)
    found: dict[int, list[_Sequence | None]] = {row: [None, None] for row in range(table.num_rows)}
    refused: dict[int, str] = {}
    for (row, side), one in zip(places, rendered, strict=True):
        if isinstance(one, str):
            refused[row] = one
        else:
            found[row][side] = _sequence(one, len(prompts[row]))
    return [(row, tuple(pair)) for row, pair in found.items() if row not in refused], list(refused.items())


def _sequence(rendered: Rendered, prompt_turns: int) -> _Sequence:
    start = rendered.turns[prompt_turns].start
    trained = [learned and index >= start for index, learned in enumerate(rendered.trained)]
    return _Sequence(ids=rendered.ids, trained=trained, prompt=start, ends=rendered.turns[-1].closing is not None)


def _fitted(
    pair: tuple[_Sequence | None, ...], place: str, preprocess: TextPreprocess, recipe: DataRecipe
) -> tuple[_Sequence | None, ...] | None:
    """The pair within ``max_length`` tokens; None: it is dropped."""
    most = preprocess.max_length
    there = [sequence for sequence in pair if sequence is not None]
    if all(len(sequence.ids) <= most for sequence in there):
        return pair
    if recipe.too_long == "refuse":
        longest = max(len(sequence.ids) for sequence in there)
        raise DataError(
            f"{place}: the prompt and an answer have {longest} tokens, expected at most {most} (data.max_length). "
            "Raise data.max_length, or set data.too_long=cut or data.too_long=drop"
        )
    begin = _begin(there[0].ids, preprocess.tokenizer)
    room = most - max(sequence.answer for sequence in there)
    if recipe.too_long == "drop" or room <= begin:
        return None
    return tuple(sequence and _cut(sequence, begin, room) for sequence in pair)


def _cut(sequence: _Sequence, begin: int, room: int) -> _Sequence:
    """With a prompt of at most ``room`` ids, of which the first ``begin`` are its own first ones."""
    gone = max(0, sequence.prompt - room)
    ids, trained = sequence.ids, sequence.trained
    return _Sequence(
        ids=ids[:begin] + ids[begin + gone :],
        trained=trained[:begin] + trained[begin + gone :],
        prompt=sequence.prompt - gone,
        ends=sequence.ends,
    )


def _begin(ids: list[int], tokenizer: Any) -> int:
    return int(bool(ids) and ids[0] == tokenizer.bos_token_id)


def _shifted(sequence: _Sequence) -> list[int]:
    """What each position is to predict."""
    following = zip(sequence.ids[1:], sequence.trained[1:], strict=True)
    return [token if learned else IGNORED for token, learned in following] + [IGNORED]


def _stand_in(tokenizer: Any) -> int:
    return next((token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) if token is not None), 0)


# -- Batches ----------------------------------------------------------------------------------------------------------


def _encoded(tokens: TokenRows, preprocess: TextPreprocess) -> Encoded:
    pad = preprocess.tokenizer.pad_token_id or 0

    def encode(rows: np.ndarray, epoch: int | None) -> Batch:
        index = np.asarray(rows, dtype=np.int64)
        batch = tokens.batch(np.stack([2 * index, 2 * index + 1], axis=1).reshape(-1), pad, preprocess.inputs)
        batch.rows = torch.from_numpy(index)
        return batch

    return Encoded(
        encode=encode,
        kept=tokens.kept,
        lengths=tokens.lengths.reshape(-1, 2).sum(axis=1),
        truncated=tokens.truncated,
        warnings=tokens.warnings,
    )


def _warnings(
    places: list[str],
    preprocess: TextPreprocess,
    refused: list[tuple[int, str]],
    cut: list[int],
    dropped: list[int],
    untrained: list[int],
    open_ended: list[int],
) -> list[str]:
    most = preprocess.max_length
    refusals = f"the chat template refuses {len(refused)} rows ({refused[0][1]})" if refused else ""
    found = [
        ([row for row, _ in refused], refusals),
        (cut, f"the prompts of {len(cut)} rows were cut from the left to {most} tokens in all (data.max_length)"),
        (dropped, f"{len(dropped)} rows longer than {most} tokens (data.max_length) were dropped"),
        (untrained, f"{len(untrained)} rows were dropped since an answer of theirs has no token to be trained"),
        (open_ended, f"the end token is never trained in {len(open_ended)} rows: the chat template writes none behind an answer"),
    ]
    return [f"{text}, e.g. {places[rows[0]]}" for rows, text in found if rows]


def _places(table: pa.Table) -> list[str]:
    """What a message calls each row."""
    if "origin" in table.column_names:
        return [str(origin) for origin in table["origin"].to_pylist()]
    return [f"row {row} of the split" for row in range(1, table.num_rows + 1)]
