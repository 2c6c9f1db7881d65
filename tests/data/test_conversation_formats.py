from __future__ import annotations

import pytest

from frostline.data.conversation_formats import ROLES, Unreadable, as_items, formats_of, read_row, without_nulls


def test_every_format_says_the_same():
    expected = [{"role": "user", "content": "猫"}, {"role": "assistant", "content": "cat"}]
    rows = {
        "messages": {"messages": expected},
        "conversations": {"conversations": [{"from": "human", "value": "猫"}, {"from": "gpt", "value": "cat"}]},
        "instruction": {"instruction": "猫", "input": "", "output": "cat"},
        "prompt": {"prompt": "猫", "completion": "cat"},
    }
    for kind, row in rows.items():
        assert formats_of(list(row)) == [kind]
        assert read_row(row, kind) == (expected, None)


@pytest.mark.parametrize("value", [[{"a": 1}], '[{"a": 1}]', ['{"a": 1}'], ['[{"a": 1}]']])
def test_a_list_however_it_is_spelled(value):
    assert as_items(value, "x") == [{"a": 1}]


def test_parts_of_text_are_joined():
    parts = [{"type": "text", "text": "你"}, {"type": "text", "text": "好"}]
    assert read_row({"messages": [{"role": "user", "content": parts}]}, "messages")[0] == [{"role": "user", "content": "你好"}]


def test_nulls_of_absent_keys_go():
    assert without_nulls({"a": None, "b": [{"c": None, "d": 1}]}) == {"b": [{"d": 1}]}


def test_roles_become_the_four_that_templates_know():
    assert set(ROLES.values()) == {"system", "user", "assistant", "tool"}


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({"function": {}}, "has no name"),
        ({"function": {"name": "f", "arguments": "{"}}, "a call's arguments is not JSON"),
        ({"function": {"name": "f", "arguments": [1]}}, "the arguments of the call of 'f' are not an object"),
    ],
)
def test_calls_that_cannot_be_read(call, reason):
    with pytest.raises(Unreadable, match=reason):
        read_row({"messages": [{"role": "assistant", "tool_calls": [call]}]}, "messages")
