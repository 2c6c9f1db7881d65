"""The formats in which conversations are published, each to a list of messages ``{"role", "content", …}``.

messages       OpenAI's: ``messages`` (role, content, tool_calls, name, tool_call_id), with ``tools``
conversations  ShareGPT's: ``conversations`` of ``from`` (human, gpt, system, function_call, observation) and ``value``, with
               ``system`` and ``tools``
instruction    Alpaca's (Taori et al., 2023): ``instruction``, ``input``, ``output``, with ``system`` and ``history`` ([[question,
               answer], …]); instruction and input are joined by a line break, as LLaMA-Factory does
prompt         ``prompt`` and ``completion``, each a text or a list of messages

A text stays a text whatever it looks like; JSON is read only where a list or an object has to stand (a table spells these as
JSON). Arguments of tool calls become objects, which is what templates want. In Parquet a struct's absent keys are null, so
nulls are dropped from tools and calls there and everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]

ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "function_call": "assistant",
    "function": "tool",
    "observation": "tool",
}
"""Each role that a file may name, and the one that it becomes."""
FORMATS = ("messages", "conversations", "instruction", "prompt")
_NEEDED = {"messages": {"messages"}, "conversations": {"conversations"}, "instruction": {"instruction", "output"}}
_NEEDED["prompt"] = {"prompt", "completion"}
_KEPT = ("name", "tool_call_id")


class Unreadable(Exception):
    """Why a row cannot be used."""


def formats_of(names: Sequence[str]) -> list[str]:
    """The formats whose columns are all there."""
    return [name for name in FORMATS if _NEEDED[name] <= set(names)]


def read_row(row: dict[str, Any], kind: str) -> tuple[list[Message], list[Any] | None]:
    """``(messages, tools)`` of a row in the format. Raises Unreadable."""
    tools = as_items(row.get("tools"), "tools") if row.get("tools") not in (None, "") else None
    tools = without_nulls(tools) if tools else None
    if tools and not all(isinstance(tool, dict) for tool in tools):
        raise Unreadable("tools is not a list of objects")
    if kind in ("messages", "conversations"):
        messages = [_message(item) for item in as_items(row[kind], kind)]
    elif kind == "instruction":
        messages = _alpaca(row)
    else:
        messages = [*_text_or_messages(row["prompt"], "user", "prompt"), *_text_or_messages(row["completion"], "assistant", "completion")]
    if row.get("system") not in (None, "") and not (messages and messages[0]["role"] == "system"):
        messages.insert(0, {"role": "system", "content": _text(row["system"], "system")})
    return messages, tools


def as_items(value: Any, name: str) -> list[Any]:
    """A list, however a table spells it: a list of values, a list of JSON texts, or one JSON text."""
    if isinstance(value, str):
        value = _json(value, name)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        whole = _json(value[0], name)  # one row's JSON text in a column that has lists elsewhere, or the only item
        value = whole if isinstance(whole, list) and not any(isinstance(item, str) for item in whole) else [whole]
    if not isinstance(value, list):
        raise Unreadable(f"{name} is not a list")
    return [_json(item, name) if isinstance(item, str) else item for item in value]


def without_nulls(value: Any) -> Any:
    """Objects without their keys that are null."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{name} is not JSON: {text[:40]!r}") from error


def _message(item: Any) -> Message:
    if not isinstance(item, dict):
        raise Unreadable(f"{json.dumps(item, ensure_ascii=False)[:40]} is not a message")
    named = item.get("role", item.get("from"))
    role = ROLES.get(named) if isinstance(named, str) else None
    if role is None:
        raise Unreadable(f"the role {named!r} is unknown; known ones: {', '.join(ROLES)}")
    if item.get("weight") in (0, "0"):
        raise Unreadable("a message has the weight 0 (not to be trained), which would be trained here; remove it, or its weight")
    content = item.get("content", item.get("value"))
    if named == "function_call":
        calls = _json(content, "function_call") if isinstance(content, str) else content
        return {"role": role, "content": None, "tool_calls": _calls(calls if isinstance(calls, list) else [calls])}
    message: Message = {"role": role, "content": None if content is None else _text(content, f"the content of {named!r}")}
    if item.get("tool_calls"):
        message["tool_calls"] = _calls(as_items(item["tool_calls"], "tool_calls"))
    return message | {key: item[key] for key in _KEPT if isinstance(item.get(key), str)}


def _text(content: Any, name: str) -> str:
    """A text, or OpenAI's list of parts if all are texts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        return "".join(part["text"] for part in content)
    if isinstance(content, list):
        kinds = {str(part.get("type")) for part in content if isinstance(part, dict) and not isinstance(part.get("text"), str)}
        raise Unreadable(f"{name} is not text alone ({', '.join(sorted(kinds)) or 'a list'})")
    raise Unreadable(f"{name} is {content!r}, not a text")


def _calls(calls: list[Any]) -> list[dict[str, Any]]:
    made = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Unreadable(f"the tool call {json.dumps(call, ensure_ascii=False)[:60]} has no name")
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            arguments = _json(arguments, "a call's arguments")
        if not isinstance(arguments, dict):
            raise Unreadable(f"the arguments of the call of {function['name']!r} are not an object")
        identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        made.append({"type": "function", **identity, "function": {"name": function["name"], "arguments": without_nulls(arguments)}})
    return made


def _alpaca(row: dict[str, Any]) -> list[Message]:
    messages: list[Message] = []
    for pair in as_items(row["history"], "history") if row.get("history") else []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise Unreadable("history is not a list of [question, answer]")
        messages.append({"role": "user", "content": _text(pair[0], "history")})
        messages.append({"role": "assistant", "content": _text(pair[1], "history")})
    asked = [_text(row[name], name) for name in ("instruction", "input") if row.get(name) not in (None, "")]
    if not any(part.strip() for part in asked):
        raise Unreadable("instruction and input are empty")
    messages.append({"role": "user", "content": "\n".join(asked)})
    messages.append({"role": "assistant", "content": _text(row["output"], "output")})
    return messages


def _text_or_messages(value: Any, role: str, name: str) -> list[Message]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str) and not _is_message(value[0]):
        return [{"role": role, "content": value[0]}]  # a text in a column that has lists elsewhere
    return [_message(item) for item in as_items(value, name)]


def _is_message(text: str) -> bool:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("role") in tuple(ROLES) and bool({"content", "tool_calls"} & set(value))
