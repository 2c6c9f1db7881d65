"""Preferences: of two answers to one prompt the better one (pairs), or of one answer whether it is good.

pairs    ``prompt, chosen, rejected``, each a text (one user's or one assistant's message) or a list of messages. Without a prompt,
         chosen and rejected are whole conversations, and the prompt is what they share (the implicit form of the Hugging Face hub).
judged   ``prompt, completion, label`` (true or false), as KTO takes them. The row's completion becomes its chosen or its
         rejected answer; the other one is null. Where the label has another name, data.label_column says it.

A row of the table holds prompt, chosen and rejected as JSON lists of messages. What nothing can be learned from is set aside:
an empty answer, two equal answers, no prompt, a role that no template knows, answers that do not begin where the prompt ends.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from frostline.data.conversation_formats import Message, Unreadable, read_row
from frostline.data.raw import Raw, SetAside
from frostline.data.tables import Table, spell_column
from frostline.data.text_sources import group_column, text_id
from frostline.errors import DataError
from frostline.recipe import DataRecipe

Pair = tuple[list[Message], list[Message] | None, list[Message] | None]
"""(prompt, chosen, rejected)."""

_YES, _NO = ("true", "1", "yes"), ("false", "0", "no")


class _Unusable(Exception):
    """Why nothing can be learned from a row."""


def from_table(table: Table, recipe: DataRecipe) -> Raw:
    """Rows of a table; ``data.input_column`` names the prompt's column and ``data.label_column`` the label's, if called otherwise."""
    where = table.origins[0].rpartition(":")[0] or "table"
    read, names = _reader(table.table.column_names, recipe, where)
    columns = [table.table[name].to_pylist() if name in table.table.column_names else [None] * table.table.num_rows for name in names]
    pairs: list[Pair] = []
    kept: list[int] = []
    aside: list[SetAside] = []
    for row, values in enumerate(zip(*columns, strict=True)):
        try:
            pairs.append(_checked(*read(*values)))
            kept.append(row)
        except _Unusable as reason:
            aside.append(SetAside(origin=table.origins[row], reason=str(reason)))
    if not pairs:
        raise DataError(f"{where}: no row can be used; {aside[0].origin}: {aside[0].reason}. Expected prompt, chosen and rejected")
    raw = Raw(task="reward" if recipe.task == "reward" else "preference", table=_table(pairs, [table.origins[row] for row in kept]))
    raw.set_aside, raw.notes = [*table.set_aside, *aside], list(table.notes)
    if recipe.group_column is not None:
        groups = group_column(table.table, recipe.group_column, where)
        raw.table = raw.table.append_column("group", groups.take(pa.array(kept, pa.int64())))
    return raw


def _reader(names: Sequence[str], recipe: DataRecipe, where: str) -> tuple[Callable[..., Pair], tuple[str, ...]]:
    """What makes a pair of a row, and the columns that it takes."""
    prompt, label = recipe.input_column or "prompt", recipe.label_column or "label"
    listed = ", ".join(map(repr, names))
    for key, given in (("data.input_column", recipe.input_column), ("data.label_column", recipe.label_column)):
        if given is not None and given not in names:
            raise DataError(f"{where}: {key} got {given!r}, but the columns are: {listed}. Set {key}=NAME")
    judged = {"completion", label} <= set(names)
    if {"chosen", "rejected"} <= set(names) and not (judged and recipe.label_column):
        if recipe.label_column is not None:
            raise DataError(
                f"{where}: data.label_column got {label!r}, which says whether a completion is good, but the rows have chosen and rejected "
                "and no completion. Leave data.label_column out"
            )
        return _pair, (prompt, "chosen", "rejected")
    if not judged:
        raise DataError(
            f"{where}: the columns are: {listed}, expected prompt, chosen, rejected, or prompt, completion, label (true or false). "
            "Rename them, or name the prompt's with data.input_column=NAME and the label's with data.label_column=NAME"
        )
    if recipe.task == "reward":
        raise DataError(
            f"{where}: data.task got 'reward', which learns from pairs, but the rows have one answer each (completion, {label}). "
            "Give chosen and rejected, or use: data.task=preference train.loss=kto"
        )
    return _judged, (prompt, "completion", label)


def grouped(raw: Raw) -> Raw:
    """Rows of one prompt in one group, lest a prompt that is tested on was trained with, unless other groups are given.

    Rows of a given validation or test split belong to no group: they stay where they are.
    """
    if "group" in raw.table.column_names:
        return raw
    prompts, ids = raw.table["prompt"].to_pylist(), raw.table["id"].to_pylist()
    if len(set(ids)) == len(set(prompts)):
        return raw
    splits = raw.table["split"].to_pylist() if "split" in raw.table.column_names else [None] * len(prompts)
    groups = [None if split in ("validation", "test") else text_id(prompt) for prompt, split in zip(prompts, splits, strict=True)]
    note = f"{len(set(ids))} different rows have {len(set(prompts))} prompts; rows of one prompt stay in one split"
    return replace(raw, table=raw.table.append_column("group", pa.array(groups, pa.string())), notes=[*raw.notes, note])


def _table(pairs: list[Pair], origins: list[str]) -> pa.Table:
    spelled = [[None if part is None else json.dumps(part, ensure_ascii=False) for part in pair] for pair in pairs]
    return pa.table(
        {
            "id": pa.array([text_id("\x00".join(part or "" for part in parts)) for parts in spelled], pa.string()),
            "origin": pa.array(origins, pa.string()),
            **{name: spell_column([parts[i] for parts in spelled]) for i, name in enumerate(("prompt", "chosen", "rejected"))},
        }
    )


# -- The forms --------------------------------------------------------------------------------------------------------


def _pair(prompt: Any, chosen: Any, rejected: Any) -> Pair:
    asked = _messages(prompt, "user")
    good, bad = (_messages(value, "assistant") if asked else _whole(value) for value in (chosen, rejected))
    _refuse_empty(good, "chosen")
    _refuse_empty(bad, "rejected")
    if good == bad:
        raise _Unusable("chosen and rejected are equal")
    if asked and good[: len(asked)] == asked == bad[: len(asked)]:
        return asked, good[len(asked) :], bad[len(asked) :]
    if good[0]["role"] == "assistant" == bad[0]["role"] and asked:
        return asked, good, bad
    shared = 0
    while shared < min(len(good), len(bad)) and good[shared] == bad[shared]:
        shared += 1
    if asked and (asked[-1]["content"] or "") not in [message["content"] for message in good[:shared]]:
        raise _Unusable("chosen and rejected are conversations that do not begin with the prompt")
    return good[:shared], good[shared:], bad[shared:]


def _whole(value: Any) -> list[Message]:
    """A conversation that holds its prompt; spelled as JSON where a table has only texts."""
    if value is None or value == "":
        return []
    try:
        return _conversation(value)
    except Unreadable as reason:
        raise _Unusable("no prompt" if isinstance(value, str) else str(reason)) from reason


def _judged(prompt: Any, completion: Any, label: Any) -> Pair:
    asked, answer = _messages(prompt, "user"), _messages(completion, "assistant")
    _refuse_empty(answer, "completion")
    if asked and answer[: len(asked)] == asked:
        answer = answer[len(asked) :]
    elif answer[0]["role"] != "assistant" and not asked:
        asked, answer = answer[:-1], answer[-1:]
    spelled = str(label).strip().casefold()
    if spelled not in (*_YES, *_NO):
        raise _Unusable(f"the label {label!r} is neither true nor false")
    return (asked, answer, None) if spelled in _YES else (asked, None, answer)


def _checked(prompt: list[Message], chosen: list[Message] | None, rejected: list[Message] | None) -> Pair:
    """The pair, if its answers stand behind its prompt."""
    if not prompt:
        raise _Unusable("no prompt")
    if prompt[-1]["role"] == "assistant":
        raise _Unusable("the prompt ends with an assistant's message")
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if answer is None:
            continue
        _refuse_empty(answer, name)
        if answer[0]["role"] != "assistant" or answer[-1]["role"] != "assistant":
            raise _Unusable(f"the {name} answer begins or ends with the role {answer[0]['role']!r}, expected the assistant's")
    return prompt, chosen, rejected


def _refuse_empty(answer: list[Message], name: str) -> None:
    if not answer or any(m["role"] == "assistant" and not (m["content"] or "").strip() and not m.get("tool_calls") for m in answer):
        raise _Unusable(f"the {name} answer is empty" if name != "completion" else "the completion is empty")


# -- Messages ---------------------------------------------------------------------------------------------------------


def _messages(value: Any, role: str) -> list[Message]:
    """A text as one message of ``role``; or the messages of a conversation. Empty: there is nothing."""
    if isinstance(value, str):
        return [{"role": role, "content": value}] if value.strip() else []
    if not value:
        return []
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str) and not value[0].lstrip().startswith("{"):
        return _messages(value[0], role)  # a text in a column that has lists elsewhere
    try:
        return _conversation(value)
    except Unreadable as reason:
        raise _Unusable(str(reason)) from reason


def _conversation(value: Any) -> list[Message]:
    """The messages of a list, however a table spells it. Raises Unreadable."""
    return read_row({"messages": value}, "messages")[0]
