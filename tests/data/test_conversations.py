from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frostline.data.conversations import from_table, looks_like_chat
from frostline.data.tables import read_table
from frostline.errors import DataError
from frostline.recipe import DataRecipe

USER, ANSWER = {"role": "user", "content": "法国的首都？"}, {"role": "assistant", "content": "巴黎。"}


@pytest.fixture
def read(tmp_path: Path):
    """``read([row, …])``: the conversations of these rows, written as JSON lines."""

    def run(rows, **options):
        path = tmp_path / "对话.jsonl"
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines), encoding="utf-8")
        return from_table(read_table(path), DataRecipe(**options))

    return run


def messages(raw, row=0):
    return json.loads(raw.table["messages"][row].as_py())


def test_openai_messages_with_tools(read):
    call = {"id": "c1", "type": "function", "function": {"name": "天气", "arguments": '{"城市": "巴黎"}'}}
    tool = {"type": "function", "function": {"name": "天气", "parameters": {"type": "object"}}}
    turns = [
        {"role": "system", "content": ""},
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": '{"度": 20}', "tool_call_id": "c1", "name": "天气"},
        ANSWER,
    ]
    raw = read([{"messages": turns, "tools": [tool]}, {"messages": [USER, ANSWER]}])
    assert raw.task == "chat"
    assert raw.table.column_names == ["id", "origin", "messages", "tools"]
    assert messages(raw) == [
        *turns[:2],
        {"role": "assistant", "content": None, "tool_calls": [{**call, "function": {"name": "天气", "arguments": {"城市": "巴黎"}}}]},
        {"role": "tool", "content": '{"度": 20}', "name": "天气", "tool_call_id": "c1"},
        ANSWER,
    ]
    assert [json.loads(raw.table["tools"][0].as_py()), raw.table["tools"][1].as_py()] == [[tool], None]
    assert raw.table["origin"].to_pylist() == ["对话.jsonl:1", "对话.jsonl:2"]


def test_sharegpt_with_a_function_call(read):
    turns = [
        {"from": "human", "value": "hi"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "三"},
    ]
    raw = read([{"conversations": turns, "system": "简短", "tools": '[{"name": "f"}]'}])
    assert [message["role"] for message in messages(raw)] == ["system", "user", "assistant", "tool", "assistant"]
    assert messages(raw)[2]["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
    assert json.loads(raw.table["tools"][0].as_py()) == [{"name": "f"}]


@pytest.mark.parametrize("history", [[["问", "答"]], [["q1", "a1"], ["q2", "['a2']"]]])
def test_alpaca_with_a_history(read, history):
    raw = read([{"instruction": "Translate", "input": "猫", "output": "cat", "history": history, "system": "s"}])
    expected = [{"role": "system", "content": "s"}]
    for question, answer in history:
        expected += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    assert messages(raw) == [*expected, {"role": "user", "content": "Translate\n猫"}, {"role": "assistant", "content": "cat"}]


def test_prompt_and_completion_as_texts_and_as_messages(read):
    raw = read([{"prompt": "猫", "completion": '{"role": "cat"}'}, {"prompt": [USER], "completion": [ANSWER]}])
    assert messages(raw, 0) == [{"role": "user", "content": "猫"}, {"role": "assistant", "content": '{"role": "cat"}'}]
    assert messages(raw, 1) == [USER, ANSWER]


@pytest.mark.parametrize("content", ['{"a": 1}', "[1, 2]", "null", "1.0", "true", " 空格 "])
def test_a_content_that_looks_like_json_stays_a_text(read, tmp_path, content):
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"messages": pa.array([turns])}), path)
    for raw in (
        read([{"messages": turns}]),
        read([{"prompt": content, "completion": content}]),
        from_table(read_table(path), DataRecipe()),
    ):
        assert messages(raw) == turns


def test_parquet_and_json_give_the_same_rows(read, tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    rows = [[USER, ANSWER], [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]]
    pq.write_table(pa.table({"messages": pa.array(rows)}), tmp_path / "rows.parquet")
    raw = from_table(read_table(tmp_path / "rows.parquet"), DataRecipe())
    same = read([{"messages": row} for row in rows])
    for name in ("id", "messages", "tools"):
        assert raw.table[name].to_pylist() == same.table[name].to_pylist()


def test_csv_with_messages_as_json(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('messages\n"' + json.dumps([USER, ANSWER], ensure_ascii=False).replace('"', '""') + '"\n', encoding="utf-8")
    assert messages(from_table(read_table(path), DataRecipe())) == [USER, ANSWER]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"messages": [', "malformed JSON"),
        ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "message 2 (assistant) is empty"),
        ({"messages": [USER, {"role": "助手", "content": "x"}]}, "the role '助手' is unknown; known ones: system, user, assistant, tool"),
        ({"messages": [USER]}, "no assistant turn"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "message 2 (assistant) has no content"),
        ({"messages": [USER, ANSWER, {"role": "tool", "content": "3"}]}, "message 3 (tool) follows no tool call"),
        ({"messages": "你好"}, "messages is not JSON"),
        ({"messages": [USER, {"role": "assistant", "content": 3}]}, "the content of 'assistant' is 3, not a text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]}, "is not text alone (image_url)"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "it has the format 'conversations', but the first row has 'messages'"),
        ({"other": 1}, "it lacks a value that the format 'messages' needs"),
    ],
)
def test_bad_rows_are_set_aside_with_a_reason(read, row, reason):
    raw = read([{"messages": [USER, ANSWER]}, row])
    assert raw.table.num_rows == 1
    (aside,) = raw.set_aside
    assert aside.origin == "对话.jsonl:2"
    assert reason in aside.reason


def test_what_is_odd_is_kept_and_told(read):
    system = {"role": "system", "content": "s"}
    raw = read([{"messages": turns} for turns in ([USER, USER, ANSWER], [ANSWER, USER, ANSWER], [USER, system, ANSWER], [USER, ANSWER])])
    assert raw.table.num_rows == 4
    assert raw.notes == [
        "warning: 1 conversations have two user turns in a row, e.g. 对话.jsonl:1",
        "warning: 1 conversations begin with the assistant, e.g. 对话.jsonl:2",
        "warning: 1 conversations have a system turn that is not the first, e.g. 对话.jsonl:3",
    ]


def test_no_usable_row_is_an_error(read):
    with pytest.raises(DataError, match=r"none of the 2 rows is a usable conversation; the first: 对话.jsonl:1: no assistant turn"):
        read([{"messages": [USER]}, {"messages": [USER]}])
    with pytest.raises(DataError, match=r"no columns look like conversations; the columns are: 'text'"):
        read([{"text": "a"}])


def test_a_column_by_name_and_groups(read):
    raw = read([{"dialog": [USER, ANSWER], "who": "甲"}, {"dialog": [USER], "who": "乙"}], input_column="dialog", group_column="who")
    assert messages(raw) == [USER, ANSWER]
    assert raw.table["group"].to_pylist() == ["甲"]
    with pytest.raises(DataError, match=r"data.input_column got 'turns', but the columns are: 'dialog', 'who'"):
        read([{"dialog": [USER, ANSWER], "who": "甲"}], input_column="turns")


def test_identical_conversations_have_one_id(read):
    ids = read([{"messages": [USER, ANSWER]}, {"messages": [USER, ANSWER]}, {"messages": [USER, USER, ANSWER]}]).table["id"].to_pylist()
    assert ids[0] == ids[1] != ids[2]


def test_columns_that_look_like_chat():
    assert all(map(looks_like_chat, (["messages"], ["id", "Conversations"], ["instruction", "output"], ["prompt", "completion"])))
    assert not any(map(looks_like_chat, (["message", "label"], ["prompt", "chosen", "rejected"], ["text"])))
