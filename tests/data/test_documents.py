"""Documents from files, folders and tables; large ones divided at paragraph borders, and nothing lost at a border."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import frostline as fl
from frostline.data.documents import from_path, from_table, pieces
from frostline.data.tables import Table
from frostline.errors import DataError
from frostline.recipe import DataRecipe

RECIPE = DataRecipe(task="causal-lm")
PARAGRAPH = "第一段，讲的是雪。Snow fell all night.\n"


def table(**columns):
    made = pa.table(columns)
    return Table(table=made, origins=[f"x.csv:{row + 2}" for row in range(made.num_rows)])


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def test_a_large_file_is_divided_and_every_paragraph_is_whole(tmp_path):
    paragraphs = [f"{number} {PARAGRAPH * (1 + number % 7)}" for number in range(400)]
    raw = from_path(write(tmp_path / "书.txt", "\n".join(paragraphs)), RECIPE)
    texts = raw.table["text"].to_pylist()
    assert "\n\n".join(texts) == "\n".join(paragraphs).strip("\n")
    assert 10 < len(texts) < 40 and max(map(len, texts)) <= 4000
    assert raw.notes == [f"书.txt was divided at paragraph borders into {len(texts)} documents"]
    lines = "\n".join(paragraphs).split("\n")
    for origin, text in zip(raw.table["origin"].to_pylist()[1:], texts[1:]):
        assert lines[int(origin.rpartition(":")[2]) - 1] == text.split("\n")[0]


def test_a_small_file_that_is_all_the_data_can_be_held_out_from(tmp_path):
    data = fl.prepare(str(write(tmp_path / "诗.txt", "\n".join(f"第{n}行 {'雪' * 20}" for n in range(200)))), task="causal-lm")
    assert data.task.target == "none" and set(data.splits) == {"train", "validation", "test"}


def test_a_folder_has_one_document_a_file(tmp_path):
    write(tmp_path / "a.txt", "甲" * 10_000)
    write(tmp_path / "代码" / "b.py", "x = 1\r\n")
    write(tmp_path / "c.md", "中文", "gb18030")
    write(tmp_path / "d.txt", " \n")
    write(tmp_path / "e.bin", "no document")
    write(tmp_path / ".hidden.txt", "no document")
    (tmp_path / "f.txt").write_bytes(b"\x80\x04pickle")
    raw = from_path(tmp_path, RECIPE)
    assert raw.table["text"].to_pylist() == ["甲" * 10_000, "中文", "x = 1"]
    assert [(row.origin.rpartition("/")[2], row.reason[:30]) for row in raw.set_aside] == [
        ("f.txt", "starts with b'\\x80\\x04' and is"),
        ("d.txt", "no text"),
    ]
    assert raw.notes == ["documents: 5 files", "1 files read as gb18030 (guessed; set data.encoding)"]


@pytest.mark.parametrize("name", ["{}.txt", "{}/a.txt"])
def test_splits_by_name(name, tmp_path):
    for split in ("train", "valid", "test"):
        write(tmp_path / name.format(split), f"{split}\n\n" * 300)
    raw = from_path(tmp_path, RECIPE)
    assert {split: {text.split()[0] for text, own in zip(*(raw.table[c].to_pylist() for c in ("text", "split"))) if own == split}
            for split in ("train", "validation", "test")} == {"train": {"train"}, "validation": {"valid"}, "test": {"test"}}  # fmt: skip


def test_tables_are_left_to_their_reader(tmp_path):
    assert from_path(write(tmp_path / "rows.jsonl", '{"text": "a"}'), RECIPE) is None
    write(tmp_path / "README.md", "about the rows")
    assert from_path(tmp_path, RECIPE) is None
    write(tmp_path / "文.txt", "a document")
    assert from_path(tmp_path, RECIPE).notes[-1].startswith("warning: 1 tables beside the documents were not read, e.g. 'rows.jsonl'")


def test_a_table_column_is_guessed_or_given():
    rows = table(id=["1", "2", "3"], 内容=["一篇", "", None], other=["x", "y", "z"], who=["a", "b", "c"])
    raw = from_table(rows, DataRecipe(task="causal-lm", group_column="who"))
    assert raw.table["text"].to_pylist() == ["一篇"] and raw.table["group"].to_pylist() == ["a"]
    assert [row.origin for row in raw.set_aside] == ["x.csv:3", "x.csv:4"]
    assert raw.notes == ["document column: '内容' (guessed; set data.input_column)"]
    assert from_table(rows, DataRecipe(input_column="other")).table["text"].to_pylist() == ["x", "y", "z"]


def test_identical_documents_have_one_id():
    ids = from_table(table(text=["a", "b", "a\n"]), RECIPE).table["id"].to_pylist()
    assert ids[0] == ids[2] != ids[1]


@given(st.text(alphabet="a雪 .\n。", max_size=300), st.integers(2, 40))
def test_pieces_are_the_text(text, size):
    found = list(pieces(text, size))
    assert "".join(piece for _, piece in found) == text
    assert all(0 < len(piece) <= size + 2 and text[start : start + len(piece)] == piece for start, piece in found)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: from_table(table(foo=["x"]), RECIPE), r"x\.csv: no column looks like the document; the columns are: 'foo'"),
        (lambda folder: from_table(table(text=[" "]), RECIPE), r"no row has a text \(1 set aside, first x\.csv:2\)"),
        (lambda folder: from_path(write(folder / "x.txt", "\0\1\2"), RECIPE), r"x\.txt', read as utf-8, holds a NUL character"),
    ],
)
def test_bad_input(make, message, tmp_path):
    with pytest.raises(DataError, match=message):
        make(tmp_path)


def test_a_split_whose_file_is_blank_is_named(tmp_path):
    for name, text in (("train", "snow\n" * 400), ("test", " \n")):
        (tmp_path / f"{name}.txt").write_text(text)
    with pytest.raises(DataError, match=r"no row of the test split can be used \(the first set aside: .*test\.txt: no text\)"):
        from_path(tmp_path, DataRecipe(task="causal-lm"))
