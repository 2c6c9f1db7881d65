"""Pairs, triplets and scored pairs from tables."""

from __future__ import annotations

import pyarrow as pa
import pytest

import frostline as fl
from frostline.data.tables import Table, spell_column
from frostline.data.text_pairs import from_table, scaled
from frostline.errors import DataError
from frostline.recipe import DataRecipe

RECIPE = DataRecipe(task="embedding")
A, B = ["雪", "冰"], ["snow", "ice"]


def table(**columns):
    made = pa.table({name: spell_column(values) for name, values in columns.items()})
    return Table(table=made, origins=[f"x.csv:{row + 2}" for row in range(made.num_rows)])


def rows(raw):
    return list(zip(*(raw.table[name].to_pylist() for name in ("first", "second", "negative", "score"))))


@pytest.mark.parametrize(
    "names", [("first", "second"), ("sentence1", "sentence2"), ("query", "positive"), ("anchor", "positive"), ("问题", "答案")]
)
def test_pairs(names):
    raw = from_table(table(id=["1", "2"], **dict(zip(names, (A, B)))), RECIPE)
    assert rows(raw) == [("雪", "snow", None, None), ("冰", "ice", None, None)] and len(raw.notes) == 2


def test_triplets_and_lists_of_negatives():
    assert rows(from_table(table(anchor=A, positive=B, negative=["火", "水"]), RECIPE))[1] == ("冰", "ice", "水", None)
    raw = from_table(table(anchor=A, positive=B, negative=[["火", "水"], []]), RECIPE)
    assert rows(raw) == [("雪", "snow", "火", None), ("雪", "snow", "水", None)]
    assert [(row.origin, row.reason) for row in raw.set_aside] == [("x.csv:3", "no negative text")]


@pytest.mark.parametrize(("given", "expected", "scale"), [([0.5, 1], [0.5, 1], None), ([2.5, 5], [0.5, 1], 5), ([10, 70], [0.1, 0.7], 100)])
def test_scores(given, expected, scale):
    raw = scaled(from_table(table(sentence1=A, sentence2=B, score=given), RECIPE))
    assert [row[3] for row in rows(raw)] == pytest.approx(expected)
    assert any("divided by" in note for note in raw.notes) == (scale is not None)
    assert scale is None or (raw.notes[1:] and f"divided by {scale}" in " ".join(raw.notes))


def test_one_scale_for_all_files(tmp_path):
    for name, scores in (("train", (0, 2.5, 5, 4, 3, 1)), ("test", (0.5, 1))):
        lines = [f"{name}{n},x{n},{score}" for n, score in enumerate(scores)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["sentence1,sentence2,score", *lines]) + "\n")
    data = fl.prepare(tmp_path, task="embedding", val=0)
    assert data.splits["test"]["score"].to_pylist() == pytest.approx([0.1, 0.2])
    assert data.splits["train"]["score"].to_pylist() == pytest.approx([0, 0.5, 1, 0.8, 0.6, 0.2])
    assert "scores: 0 to 5, divided by 5" in data.report.notes


def test_incomplete_rows_are_set_aside():
    raw = from_table(table(first=["a", "", "c", "d"], second=["x", "y", None, "z"], score=["1", "1", "1", "high"]), RECIPE)
    assert len(rows(raw)) == 1
    assert [row.reason for row in raw.set_aside] == ["no first text", "no second text", "the score 'high' is not a number"]


def test_a_label_beside_negatives_is_not_read():
    raw = from_table(table(first=A, second=B, negative=B[::-1], label=["x", "y"]), RECIPE)
    assert rows(raw)[0] == ("雪", "snow", "ice", None)
    assert "warning: the column 'label' is not read, since the rows have negatives" in raw.notes


def test_prepared():
    made = [{"query": f"问{n}", "positive": f"答{n}"} for n in range(30)]
    data = fl.prepare(made, task="embedding")
    assert data.task.target == "none" and len(data) == 30


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"first": A, "second": B, "score": [-1, 1]}, r"the scores run from -1 \(x\.csv:2\) to 1 \(x\.csv:3\), expected 0 to 1, 0 to 5"),
        ({"first": A, "foo": B}, r"no column looks like the second text; the columns are: 'foo'\. Set data\.label_column=NAME"),
        ({"first": ["", ""], "second": B}, r"no row has all its texts \(2 set aside, first x\.csv:2: no first text\)"),
    ],
)
def test_bad_input(columns, message):
    with pytest.raises(DataError, match=message):
        scaled(from_table(table(**columns), RECIPE))
