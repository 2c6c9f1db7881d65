"""Conversations from a table: rows of any published format to one form, ``messages`` and ``tools`` as JSON texts.

The first row that has a format decides for the table; a row of another one is set aside, as are rows that could only be learned
wrongly: an unknown role, no answer at all, an answer that is empty or null without a tool call, a tool's result without a call.
What is odd but can be learned is kept and told in a warning: two turns of one role in a row, an assistant that begins, a system
turn that is not the first. An empty system turn or user turn is a choice of the data's author and is kept.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from frostline.data.clean import WARNING
from frostline.data.conversation_formats import FORMATS, Message, Unreadable, formats_of, read_row
from frostline.data.raw import Raw, SetAside
from frostline.data.tables import Table
from frostline.data.text_sources import group_column, text_id
from frostline.errors import DataError
from frostline.recipe import DataRecipe


def looks_like_chat(names: Sequence[str]) -> bool:
    """Whether a table with these columns holds conversations.

    >>> looks_like_chat(["instruction", "input", "output"]), looks_like_chat(["text", "label"])
    (True, False)
    """
    return bool(formats_of([name.casefold() for name in names]))


def from_table(table: Table, recipe: DataRecipe) -> Raw:
    """The conversations of a table. Raises DataError where no row can be used."""
    where = table.origins[0].rpartition(":")[0] or "table"
    columns, formats = _columns(table.table.column_names, recipe, where)
    values = {name: table.table[column].to_pylist() for name, column in columns.items()}
    first: str | None = None
    rows: list[tuple[int, str, str | None]] = []
    aside, odd = list(table.set_aside), defaultdict(list)
    for row, origin in enumerate(table.origins):
        fields = {name: column[row] for name, column in values.items() if column[row] is not None}
        try:
            kind = _format(fields, formats, first)
            first = first or kind
            messages, tools = read_row(fields, kind)
            for fault in _check(messages):
                odd[fault].append(origin)
        except Unreadable as reason:
            aside.append(SetAside(origin=origin, reason=str(reason)))
            continue
        rows.append((row, _spelled(messages), _spelled(tools) if tools else None))
    if not rows:
        raise DataError(
            f"{where}: none of the {len(table.origins)} rows is a usable conversation; the first: {aside[0].origin}: {aside[0].reason}. "
            'Mend them; expected is, for example, {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'
        )
    notes = [f"{WARNING}{len(found)} conversations {fault}, e.g. {found[0]}" for fault, found in odd.items()]
    return Raw(task="chat", table=_table(rows, table, recipe, where), set_aside=aside, notes=[*table.notes, *notes])


def _columns(names: Sequence[str], recipe: DataRecipe, where: str) -> tuple[dict[str, str], list[str]]:
    """``({name in the format: the table's column}, the formats that the columns allow)``."""
    listed = ", ".join(map(repr, names))
    given = recipe.input_column
    if given is not None and given not in names:
        raise DataError(f"{where}: data.input_column got {given!r}, but the columns are: {listed}. Set data.input_column=NAME")
    columns = {name.casefold(): name for name in reversed(names)}
    if given is not None and given.casefold() not in FORMATS:
        columns = {name: column for name, column in columns.items() if name not in FORMATS} | {"messages": given}
    formats = formats_of(list(columns))
    if not formats:
        raise DataError(
            f"{where}: no columns look like conversations; the columns are: {listed}. Expected messages, conversations, "
            "instruction and output, or prompt and completion; or name the list of messages with data.input_column=NAME"
        )
    return columns, formats


def _format(fields: dict[str, Any], formats: list[str], first: str | None) -> str:
    found = [kind for kind in formats_of(list(fields)) if kind in formats]
    if first is None and found:
        return found[0]
    if first is not None and first in found:
        return first
    if not found:
        raise Unreadable(f"it lacks a value that the format {first or formats[0]!r} needs")
    raise Unreadable(f"it has the format {found[0]!r}, but the first row has {first!r}")


def _check(messages: list[Message]) -> list[str]:
    """What is odd. Raises Unreadable for what cannot be learned rightly."""
    if not any(message["role"] == "assistant" for message in messages):
        raise Unreadable("no assistant turn")
    roles = [message["role"] for message in messages]
    for number, message in enumerate(messages, 1):
        content, role = message["content"], message["role"]
        if content is None and not message.get("tool_calls"):
            raise Unreadable(f"message {number} ({role}) has no content")
        if role == "assistant" and not (content or "").strip() and not message.get("tool_calls"):
            raise Unreadable(f"message {number} (assistant) is empty")
        if role == "tool" and not _answers_a_call(messages[: number - 1]):
            raise Unreadable(f"message {number} (tool) follows no tool call")
    odd = [f"have two {role} turns in a row" for role in ("user", "assistant") if (role, role) in itertools.pairwise(roles)]
    if next(role for role in roles if role != "system") == "assistant":
        odd.append("begin with the assistant")
    if "system" in roles[1:]:
        odd.append("have a system turn that is not the first")
    return odd


def _answers_a_call(before: list[Message]) -> bool:
    caller = next((message for message in reversed(before) if message["role"] != "tool"), None)
    return caller is not None and bool(caller.get("tool_calls"))


def _spelled(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # JSON can spell half of a surrogate pair


def _table(rows: list[tuple[int, str, str | None]], table: Table, recipe: DataRecipe, where: str) -> pa.Table:
    columns = {
        "id": pa.array([text_id(f"{messages}\n{tools or ''}") for _, messages, tools in rows], pa.string()),
        "origin": pa.array([table.origins[row] for row, _, _ in rows], pa.string()),
        "messages": pa.array([messages for _, messages, _ in rows], pa.string()),
        "tools": pa.array([tools for _, _, tools in rows], pa.string()),
    }
    if recipe.group_column is not None:
        columns["group"] = group_column(table.table, recipe.group_column, where).take(pa.array([row for row, _, _ in rows]))
    return pa.table(columns)
