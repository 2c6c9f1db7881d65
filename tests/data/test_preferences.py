"""Preferences from every published form; what nothing can be learned from is set aside with its reason."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import frostline as fl
from frostline.data.sources import read_object, read_path
from frostline.errors import DataError
from frostline.recipe import DataRecipe

USER, GOOD, BAD = ({"role": role, "content": text} for role, text in (("user", "你好？"), ("assistant", "好"), ("assistant", "坏")))
WANTED = ([USER], [GOOD], [BAD])


def raw(rows, **options):
    return read_object(rows, DataRecipe(**{"task": "preference", **options}))


def pairs(found):
    return [
        tuple(None if row[name] is None else json.loads(row[name]) for name in ("prompt", "chosen", "rejected"))
        for row in found.table.to_pylist()
    ]


FORMS = {
    "texts": {"prompt": "你好？", "chosen": "好", "rejected": "坏"},
    "messages": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "implicit": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "text and whole conversations": {"prompt": "你好？", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "messages and whole conversations": {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "sharegpt": {
        "prompt": [{"from": "human", "value": "你好？"}],
        "chosen": [{"from": "gpt", "value": "好"}],
        "rejected": [{"from": "gpt", "value": "坏"}],
    },
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_row(name):
    assert pairs(raw([FORMS[name]])) == [WANTED]


@pytest.mark.parametrize("name", FORMS)
def test_files_give_what_objects_give(name, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(FORMS[name], ensure_ascii=False) + "\n", encoding="utf-8")
    pq.write_table(pa.Table.from_pylist([FORMS[name]]), tmp_path / "a.parquet")
    for suffix in ("jsonl", "parquet"):
        found = read_path(tmp_path / f"a.{suffix}", DataRecipe(task="preference"))
        assert pairs(found) == [WANTED] and found.table["origin"].to_pylist() == [f"a.{suffix}:1"]


def test_a_csv_of_texts_and_one_of_conversations(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\n你好？,好,坏\n", encoding="utf-8")
    whole = [json.dumps([USER, answer], ensure_ascii=False).replace('"', '""') for answer in (GOOD, BAD)]
    (tmp_path / "b.csv").write_text('chosen,rejected\n"{}","{}"\n'.format(*whole), encoding="utf-8")
    for name in ("a.csv", "b.csv"):
        assert pairs(read_path(tmp_path / name, DataRecipe(task="preference"))) == [WANTED]


def test_a_system_turn_and_several_turns_stay_in_the_prompt():
    system, second = {"role": "system", "content": "短"}, {"role": "user", "content": "again"}
    found = raw([{"chosen": [system, USER, GOOD, second, BAD], "rejected": [system, USER, GOOD, second, GOOD]}])
    assert pairs(found) == [([system, USER, GOOD, second], [BAD], [GOOD])]
    found = raw([{"prompt": "你好？", "chosen": [system, USER, GOOD], "rejected": [system, USER, BAD]}])
    assert pairs(found) == [([system, USER], [GOOD], [BAD])]


def test_a_text_that_looks_like_json_stays_a_text():
    found = raw([{"prompt": "p", "chosen": '[{"role": "user"}]', "rejected": "[1]"}])
    assert pairs(found)[0][1][0]["content"] == '[{"role": "user"}]'


@pytest.mark.parametrize(("label", "good"), [(True, True), ("false", False), (1, True), ("0", False)])
def test_a_judged_answer_becomes_chosen_or_rejected(label, good):
    found = raw([{"prompt": "你好？", "completion": "好", "label": label}])
    assert pairs(found) == [([USER], [GOOD], None) if good else ([USER], None, [GOOD])]
    found = raw([{"prompt": None, "completion": [USER, GOOD], "label": label}])
    assert pairs(found) == [([USER], [GOOD], None) if good else ([USER], None, [GOOD])]


ASIDE = [
    ({"prompt": "p", "chosen": " ", "rejected": "b"}, "the chosen answer is empty"),
    ({"prompt": "p", "chosen": "a", "rejected": None}, "the rejected answer is empty"),
    ({"prompt": [USER], "chosen": [USER], "rejected": [USER, BAD]}, "the chosen answer is empty"),
    ({"prompt": "p", "chosen": "a", "rejected": "a"}, "chosen and rejected are equal"),
    ({"prompt": " ", "chosen": "a", "rejected": "b"}, "no prompt"),
    ({"prompt": None, "chosen": [GOOD], "rejected": [BAD]}, "no prompt"),
    ({"prompt": None, "chosen": [USER, GOOD], "rejected": [{**USER, "content": "x"}, BAD]}, "no prompt"),
    ({"prompt": "x", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "do not begin with the prompt"),
    ({"prompt": [{"role": "poet", "content": "p"}], "chosen": "a", "rejected": "b"}, "the role 'poet' is unknown"),
    ({"prompt": [USER, GOOD], "chosen": "a", "rejected": "b"}, "the prompt ends with an assistant's message"),
    ({"prompt": None, "chosen": [USER, USER, GOOD], "rejected": [USER, BAD]}, "the chosen answer begins or ends with the role 'user'"),
]


@pytest.mark.parametrize(("row", "reason"), ASIDE)
def test_what_cannot_be_learned_from_is_set_aside(row, reason):
    found = raw([row, FORMS["texts"]])
    assert pairs(found) == [WANTED] and found.table["origin"].to_pylist() == ["row:1"]
    assert [one.origin for one in found.set_aside] == ["row:0"] and reason in found.set_aside[0].reason


def test_a_label_that_is_none_is_set_aside():
    found = raw([{"prompt": "p", "completion": "a", "label": "perhaps"}, {"prompt": "p", "completion": "a", "label": "true"}])
    assert found.set_aside[0].reason == "the label 'perhaps' is neither true nor false"


def test_the_ids_tell_rows_apart():
    rows = [FORMS["texts"], FORMS["implicit"], {"prompt": "你好？", "chosen": "坏", "rejected": "好"}]
    first, second, third = raw(rows).table["id"].to_pylist()
    assert first == second != third


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"question": "p", "answer": "a"}], {}, "the columns are: 'question', 'answer', expected prompt, chosen, rejected, or"),
        ([{"prompt": "p", "completion": "a", "label": True}], {"task": "reward"}, "data.task got 'reward', which learns from pairs"),
        ([FORMS["texts"]], {"label_column": "prompt"}, "data.label_column got 'prompt', which says whether a completion is good, but"),
        ([FORMS["texts"]], {"label_column": "good"}, "data.label_column got 'good', but the columns are: 'prompt', 'chosen'"),
        ([FORMS["texts"]], {"input_column": "question"}, "data.input_column got 'question', but the columns are: 'prompt', 'chosen'"),
        ([{"prompt": "p", "chosen": "a", "rejected": "a"}], {}, "no row can be used; row:0: chosen and rejected are equal"),
    ],
)
def test_bad_tables_are_refused(rows, options, message):
    with pytest.raises(DataError, match=message):
        raw(rows, **options)


def test_the_prompt_may_have_another_name_and_rows_a_group():
    rows = [
        {"question": "你好？", "chosen": "好", "rejected": "坏", "who": "a"},
        {"question": "", "chosen": "x", "rejected": "y", "who": "b"},
    ]
    found = raw(rows, input_column="question", group_column="who")
    assert pairs(found) == [WANTED] and found.table["group"].to_pylist() == ["a"]


def test_the_label_may_have_another_name():
    row = {"prompt": "你好？", "completion": "好", "good": "yes", "label": "kept"}
    assert pairs(raw([row], label_column="good")) == [([USER], [GOOD], None)]
    found = read_object([{**row, "label": None}], DataRecipe(label_column="good"))
    assert found.task == "preference" and pairs(found) == [([USER], [GOOD], None)]
    assert pairs(raw([{**row, **FORMS["texts"]}], label_column="good")) == [([USER], [GOOD], None)]


def test_rows_of_one_prompt_stay_in_one_split():
    rows = [{"prompt": f"p{i % 10}", "chosen": f"好 {i}", "rejected": f"坏 {i}"} for i in range(40)]
    for task in ("preference", "reward"):
        data = fl.prepare(rows, task=task)
        found = [{row["prompt"] for row in table.to_pylist()} for table in data.splits.values()]
        assert len(found) == 3 and sum(map(len, found)) == 10
        assert "40 different rows have 10 prompts; rows of one prompt stay in one split" in data.report.notes
    other = [{**row, "who": f"w{i % 3}"} for i, row in enumerate(rows)]
    data = fl.prepare(other, group_column="who")
    assert sum(len({row["prompt"] for row in table.to_pylist()}) for table in data.splits.values()) > 10


def test_prompts_of_a_given_split_stay_where_they_are(tmp_path):
    for name, first in (("train", 0), ("test", 40)):
        rows = [{"prompt": f"p{i % 10}", "chosen": f"好 {i}", "rejected": f"坏 {i}"} for i in range(first, first + 40)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = fl.prepare(tmp_path)
    assert data.report.rows["test"] == 40 and data.report.rows["train"] + data.report.rows["validation"] == 40
    found = [{row["prompt"] for row in data.splits[name].to_pylist()} for name in ("train", "validation")]
    assert not found[0] & found[1]


def test_half_a_surrogate_pair_is_mended():
    assert pairs(raw([{"prompt": "p", "chosen": "\ud83d", "rejected": "b"}]))[0][1][0]["content"] == "\ufffd"


def test_a_data_set_is_guessed_prepared_and_read_again(tmp_path):
    rows = [{"prompt": f"p{i}", "chosen": f"好 {i}", "rejected": f"坏 {i}"} for i in range(20)]
    data = fl.prepare(rows)
    assert (data.schema.task, data.schema.target, data.schema.labels) == ("preference", "none", ())
    assert {name: table.num_rows for name, table in data.splits.items()} == {"train": 16, "validation": 2, "test": 2}
    data.save(tmp_path / "d")
    assert fl.prepare(tmp_path / "d").fingerprint == data.fingerprint
    assert fl.prepare(rows, task="reward").schema.task == "reward"
    judged = [{"prompt": row["prompt"], "completion": row["chosen"], "label": i % 2 == 0} for i, row in enumerate(rows)]
    assert fl.prepare(judged).schema.task == "preference"
