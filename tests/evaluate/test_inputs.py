"""What a table's rows become for each task: the column that training would take, lists as lists, conversations up to the last answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frostline.data.dataset import Schema
from frostline.errors import DataError
from frostline.evaluate.answers import Asked
from frostline.evaluate.inputs import Reading, read_items
from frostline.evaluate.predict import predict
from tests.evaluate.parrot import ANSWER, parrot

USER, GOOD, MORE = {"role": "user", "content": "第1问"}, {"role": "assistant", "content": "好"}, {"role": "user", "content": "more"}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """As Parquet, as JSON lines, or, of texts, as CSV."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def items(path: Path, task: str, **reading: Any) -> tuple[list[Any], list[str]]:
    said: list[str] = []
    found = read_items(path, Schema(task=task, target="none"), Reading(say=said.append, **reading))  # type: ignore[arg-type]
    return found, said


@pytest.mark.parametrize(
    ("task", "row", "source", "note"),
    [
        ("translation", {"id": 1, "source": "雪", "target": "snow"}, "雪", "source column: 'source' (guessed; set --column)"),
        ("translation", {"id": 1, "en": "snow", "zh": "雪"}, "snow", "source column: 'en' (guessed; set --column; 'zh' would fit too)"),
        ("translation", {"id": 1, "en": "snow"}, "snow", "source column: 'en' (guessed; set --column)"),
        ("summarisation", {"id": 1, "article": "雪下了"}, "雪下了", "source column: 'article' (guessed; set --column)"),
        ("embedding", {"id": 1, "sentence1": "a", "sentence2": "b"}, "a", "first text column: 'sentence1' (guessed; set --column)"),
        ("embedding", {"id": 1, "text": "a"}, "a", "text column: 'text' (guessed; set --column)"),
        ("causal-lm", {"id": 1, "code": "x = 1"}, "x = 1", "document column: 'code' (guessed; set --column)"),
        ("token-classification", {"id": 1, "text": "李明"}, "李明", "document column: 'text' (guessed; set --column)"),
        ("text-classification", {"title": "好", "body": "坏", "id": 1}, "好 坏", "text column: 'title+body' (guessed; set --column)"),
    ],
)
def test_the_column_is_guessed_by_the_task(task: str, row: dict[str, Any], source: str, note: str, tmp_path: Path) -> None:
    found, said = items(write(tmp_path / "t.csv", [row]), task)
    assert [(item.name, item.source) for item in found] == [(source, source)]
    assert said == [note]


def test_a_column_of_translations_holds_the_source(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [{"translation": {"en": "snow", "zh": "雪"}}])
    assert [item.source for item in items(path, "translation")[0]] == ["snow"]
    assert [item.source for item in items(path, "translation", usual_column="zh")[0]] == ["雪"]
    assert [item.source for item in items(path, "translation", column="zh")[0]] == ["雪"]


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_lists_are_read_as_in_training(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, [{"tokens": ["李", "明", "in", "York"], "text": ["one", "two"]}])
    (item,) = items(path, "token-classification")[0]
    assert (item.name, item.source) == ("李明in York", ["李", "明", "in", "York"])
    assert [one.source for one in items(path, "text-classification")[0]] == ["one two"]
    assert [one.source for one in items(path, "causal-lm")[0]] == ["one\ntwo"]
    (item,) = items(path, "embedding")[0]
    assert item.error == f"{name}:1: got a list of 2, expected one text. Give each a row of its own"


CONVERSATIONS = [
    ({"messages": [USER, GOOD, MORE, GOOD]}, [USER, GOOD, MORE]),
    ({"messages": [USER, GOOD, MORE]}, [USER, GOOD, MORE]),
    ({"conversations": [{"from": "human", "value": "第1问"}, {"from": "gpt", "value": "好"}]}, [USER]),
    ({"instruction": "第1问", "input": "more", "output": "好"}, [{"role": "user", "content": "第1问\nmore"}]),
    ({"instruction": "第1问"}, [USER]),
    ({"prompt": "第1问", "completion": "好"}, [USER]),
    ({"prompt": [USER], "chosen": [GOOD], "rejected": [GOOD]}, [USER]),
    ({"id": 1, "question": "第1问"}, [USER]),
    ({"system": "短", "messages": [USER]}, [{"role": "system", "content": "短"}, USER]),
]


@pytest.mark.parametrize(("row", "messages"), CONVERSATIONS)
@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_conversations_up_to_the_last_answer(row: dict[str, Any], messages: list[Any], name: str, tmp_path: Path) -> None:
    for task in ("chat", "preference"):
        (item,) = items(write(tmp_path / name, [row]), task)[0]
        assert item.source == Asked(messages=messages)
        assert item.name == messages[-1]["content"]


def test_tools_and_the_columns_that_are_named(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "look"}}
    path = write(tmp_path / "t.jsonl", [{"messages": [USER, GOOD], "tools": [tool], "other": "more"}])
    for options in ({}, {"column": "messages"}, {"usual_column": "messages"}):
        assert items(path, "chat", **options)[0][0].source == Asked(messages=[USER], tools=[tool])
    assert items(path, "chat", column="other")[0][0].source == Asked(messages=[MORE], tools=[tool])
    chosen = write(tmp_path / "p.jsonl", [{"chosen": [USER, GOOD], "rejected": [USER, {**GOOD, "content": "坏"}]}])
    assert items(chosen, "preference")[0][0].source == Asked(messages=[USER])


def test_conversations_that_cannot_be_asked(tmp_path: Path) -> None:
    rows = [{"messages": [USER]}, {"messages": [GOOD]}, {"messages": [{"role": "poet", "content": "x"}]}, {"messages": None}]
    found, _ = items(write(tmp_path / "t.jsonl", rows), "chat")
    assert [item.error is None for item in found] == [True, False, False, False]
    assert found[1].error == "t.jsonl:2: no turn to answer"
    assert "t.jsonl:3: the role 'poet' is unknown" in str(found[2].error)
    with pytest.raises(DataError, match=r"no column looks like the prompt; the columns are: 'a', 'b'\. Set --column NAME"):
        items(write(tmp_path / "x.csv", [{"a": 1, "b": 2}]), "chat")


@pytest.mark.parametrize(
    ("row", "source", "said"),
    [
        ({"messages": [USER, GOOD]}, [USER, GOOD], []),
        ({"prompt": "第1问", "completion": "好"}, [USER, GOOD], ["answer column: 'completion' (guessed; set --column)"]),
        (
            {"prompt": [USER], "chosen": [GOOD], "rejected": [{**GOOD, "content": "坏"}]},
            [USER, GOOD],
            ["answer column: 'chosen' (guessed; set --column; 'rejected' would fit too)"],
        ),
        ({"prompt": "第1问", "chosen": [USER, GOOD]}, [USER, GOOD], ["answer column: 'chosen' (guessed; set --column)"]),
        ({"text": "好"}, "好", []),
    ],
)
def test_a_reward_is_for_the_whole_conversation(row: dict[str, Any], source: Any, said: list[str], tmp_path: Path) -> None:
    (item,), notes = items(write(tmp_path / "t.jsonl", [row]), "reward")
    assert (item.source, item.name, notes) == (source, "好", said)


def test_the_runs_own_column_is_the_prompts_for_a_reward(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [{"asked": "第1问", "chosen": "好", "rejected": "坏"}])
    assert items(path, "reward", usual_column="asked")[0][0].source == [USER, GOOD]
    assert items(path, "reward", usual_column="asked", column="rejected")[0][0].source == [USER, {**GOOD, "content": "坏"}]


def test_conversations_are_answered(tmp_path: Path) -> None:
    model = parrot("chat")
    path = write(tmp_path / "t.jsonl", [{"messages": [USER, GOOD, MORE, GOOD]}, {"messages": [GOOD]}])
    assert predict(model, path) == [{"input": "more", "text": ANSWER}, {"input": "t.jsonl:2", "error": "t.jsonl:2: no turn to answer"}]
    (prompt,) = model.module.prompts
    assert model.card.preprocess.tokenizer.decode(prompt).count("<|im_start|>") == 4
