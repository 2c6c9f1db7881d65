"""Tagged tokens from column files, tables and spans: same rows from each; what cannot be used is set aside."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import frostline as fl
from frostline.data.tables import Table, read_table, spell_column
from frostline.data.tagged_text import divide, from_path, from_table
from frostline.errors import DataError
from frostline.recipe import DataRecipe

RECIPE = DataRecipe(task="token-classification")
CONLL = """-DOCSTART- -X- O O

EU NNP I-NP B-ORG
rejects VBZ I-VP O

我 PN I-NP O
在 P I-VP O
北 NR I-NP B-LOC
京 NR I-NP I-LOC
"""
TOKENS = [["EU", "rejects"], ["我", "在", "北", "京"]]
TAGS = [["B-ORG", "O"], ["O", "O", "B-LOC", "I-LOC"]]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def rows(raw):
    return raw.table["tokens"].to_pylist(), raw.table["label"].to_pylist()


def table(**columns):
    made = pa.table({name: spell_column(values) for name, values in columns.items()})
    return Table(table=made, origins=[f"x.jsonl:{row + 1}" for row in range(made.num_rows)])


@pytest.mark.parametrize("name", ["a.conll", "a.txt", "a.bio", "eng.testa", "a.tsv"])
@pytest.mark.parametrize("change", [("", ""), ("\n", "\r\n"), (" ", "\t")])
def test_columns(name, change, tmp_path):
    raw = from_path(write(tmp_path / name, CONLL.replace(*change) if change[0] else CONLL), RECIPE)
    assert rows(raw) == (TOKENS, TAGS) and raw.table["origin"].to_pylist() == [f"{name}:3", f"{name}:6"]
    assert raw.notes == ["columns: token 1, tag 4 of 4 (guessed; set data.input_column, data.label_column)"]


def test_columns_by_number(tmp_path):
    raw = from_path(write(tmp_path / "a.conll", CONLL), DataRecipe(label_column="2", input_column="1"))
    assert rows(raw)[1] == [["NNP", "VBZ"], ["PN", "P", "NR", "NR"]] and raw.notes == []
    assert rows(from_path(tmp_path / "a.conll", DataRecipe(label_column="-3")))[1][0] == ["NNP", "VBZ"]


def test_conllu(tmp_path):
    text = "# text = don't\n1-2\tdon't\t_\t_\n1\tdo\tdo\tAUX\n2\tn't\tnot\tPART\n\n"
    assert rows(from_path(write(tmp_path / "a.conllu", text), RECIPE)) == ([["do", "n't"]], [["AUX", "PART"]])


def test_a_folder_is_split_by_names(tmp_path):
    for name in ("eng.train", "dev.conll", "test.txt", "other.bio"):
        write(tmp_path / name, CONLL.replace("rejects", name))
    write(tmp_path / "readme.txt", "About these files.\nThey are tagged.\n")
    raw = from_path(tmp_path, RECIPE)
    assert dict(zip((words[1] for words in rows(raw)[0][::2]), raw.table["split"].to_pylist()[::2])) == {
        "dev.conll": "validation", "eng.train": "train", "test.txt": "test"}  # fmt: skip
    assert "warning: other.bio was not read: its name is no split" in raw.notes


def test_what_is_no_column_file_is_left_alone(tmp_path):
    assert from_path(write(tmp_path / "a.txt", "Some plain prose here.\nAnd more of it, of another length.\n\nEnd."), RECIPE) is None
    assert from_path(write(tmp_path / "a.tsv", "tokens\ttags\na b\tO O\n"), RECIPE) is None
    assert from_path(write(tmp_path / "a.jsonl", "{}"), RECIPE) is None
    assert from_path(tmp_path, RECIPE) is None


def test_an_odd_line_sets_its_sentence_aside(tmp_path):
    raw = from_path(write(tmp_path / "a.conll", CONLL + "\nx NN\ny NN I-NP O\n"), RECIPE)
    assert rows(raw)[0] == TOKENS
    assert [(row.origin, row.reason) for row in raw.set_aside] == [
        ("a.conll:11", "line 11 of its sentence has 2 columns where the file has 4")
    ]


@pytest.mark.parametrize(
    ("tokens", "tags"),
    [
        ({"tokens": TOKENS}, {"ner_tags": TAGS}),
        ({"词": TOKENS}, {"标签": TAGS}),
        ({"words": [" ".join(words) for words in TOKENS]}, {"labels": [" ".join(tags) for tags in TAGS]}),
        ({"text": ["EU rejects", "我在北京"]}, {"labels": TAGS}),
    ],
)
def test_tables_of_tokens_and_tags(tokens, tags):
    assert rows(from_table(table(**tokens, **tags), RECIPE)) == (TOKENS, TAGS)


@pytest.mark.parametrize("column", ["entities", "label"])
def test_spans(column, tmp_path):
    content = [
        {"text": "EU rejects", column: [[0, 2, "ORG"]] if column == "label" else [{"start": 0, "end": 2, "label": "ORG"}]},
        {"text": "我在北京", column: [[2, 4, "LOC"]] if column == "label" else [{"start_offset": 2, "end_offset": 4, "type": "LOC"}]},
        {"text": "nothing", column: []},
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps(row) for row in content))
    raw = from_table(read_table(path), RECIPE)
    assert rows(raw) == ([*TOKENS, ["nothing"]], [*TAGS, ["O"]])
    if column == "entities":  # Parquet gives each struct all keys
        pq.write_table(pa.Table.from_pylist(content), tmp_path / "a.parquet")
        assert rows(from_table(read_table(tmp_path / "a.parquet"), RECIPE)) == rows(raw)


@pytest.mark.parametrize(
    ("text", "entities", "reason"),
    [
        ("abc", [(0, 4)], "the span 0 to 4 (X) lies outside the text of 3 characters, or is empty"),
        ("abc", [(1, 1)], "the span 1 to 1 (X) lies outside"),
        ("abc d", [(0, 3), (2, 5)], "the spans of X and X overlap at 2"),
        ("a  b", [(1, 3)], "the span 1 to 3 (X) covers no text"),
        ("abc", [(None, 2)], "lacks a start, an end or a label"),
        ("  ", [(0, 1)], "no text"),
    ],
)
def test_spans_that_cannot_be_are_set_aside(text, entities, reason):
    spans = [[{"start": a, "end": b, "label": "X"} for a, b in entities], [{"start": 0, "end": 1, "label": "X"}]]
    raw = from_table(table(text=[text, "x"], entities=spans), RECIPE)
    assert rows(raw) == ([["x"]], [["B-X"]]) and reason in raw.set_aside[0].reason


@given(st.text(alphabet="aé b北京,हि😀\n", max_size=30), st.lists(st.integers(0, 30), max_size=4))
def test_divided_text_is_the_text_without_spaces(text, borders):
    places = divide(text, borders)
    assert "".join(text[a:b] for a, b in places) == "".join(text.split())
    assert not any(a < cut < b for a, b in places for cut in borders)


def test_words_of_several_scripts():
    words = [("हिन्दी don't 2024年,好!")[a:b] for a, b in divide("हिन्दी don't 2024年,好!")]
    assert words == ["हिन्दी", "don", "'", "t", "2024", "年", ",", "好", "!"]


def test_tags_are_repaired_with_a_warning():
    raw = from_table(table(tokens=[["a", "b"], ["c"]], tags=[["B-X", "I-X"], ["I-Y"]]), RECIPE)
    assert rows(raw)[1] == [["B-X", "I-X"], ["B-Y"]]
    assert raw.notes[-1] == "warning: 1 of 3 tags did not fit BIO and were repaired, e.g. x.jsonl:2: I-Y became B-Y"


def test_numbers_get_the_names_that_the_file_declares(tmp_path):
    features = {"ner_tags": {"feature": {"names": ["O", "B-X"], "_type": "ClassLabel"}, "_type": "Sequence"}}
    made = pa.table({"tokens": [["a", "b"]], "ner_tags": [[0, 1]]})
    pq.write_table(made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), tmp_path / "a.parquet")
    assert rows(from_table(read_table(tmp_path / "a.parquet"), RECIPE))[1] == [["O", "B-X"]]
    damaged = made.replace_schema_metadata({"huggingface": '{"info": {"features": [3]}}'})
    assert rows(from_table(Table(table=damaged, origins=["x:1"]), RECIPE))[1] == [["0", "1"]]


def test_prepared(tmp_path):
    sentences = "\n".join(f"句{n} O\n在 O\n北{n} B-LOC\n" for n in range(20))
    data = fl.prepare(str(write(tmp_path / "a.conll", sentences)), task="token-classification")
    assert data.task.target == "tags" and data.task.labels == ("O", "B-LOC") and len(data) == 20


@pytest.mark.parametrize(
    ("text", "recipe", "message"),
    [
        ("a\nb\n", RECIPE, r"a\.conll:1: 'a' is one column, expected a token and its tag"),
        ("\n\n", RECIPE, "holds no sentence"),
        ("a O\n", DataRecipe(label_column="3"), r"data\.label_column is 3, but the lines have 2 columns"),
        ("a O\n", DataRecipe(label_column="tag"), r"data\.label_column got 'tag', expected a column's number"),
    ],
)
def test_bad_column_files(text, recipe, message, tmp_path):
    with pytest.raises(DataError, match=message):
        from_path(write(tmp_path / "a.conll", text), recipe)


def test_bad_tables():
    with pytest.raises(DataError, match=r"no row has a tag for each token \(1 set aside, first x\.jsonl:1: 2 tokens but 1 tags\)"):
        from_table(table(tokens=[["a", "b"]], tags=[["O"]]), RECIPE)
    with pytest.raises(DataError, match=r"no column looks like the tags; the columns are: 'tokens', 'foo'"):
        from_table(table(tokens=[["a"]], foo=["x"]), RECIPE)
