"""Tables: the csv module as reference for sound files; exact places and reasons for broken ones."""

import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline.data.tables import read_table, spell_column
from frostline.errors import DataError


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows_of(table):
    return [tuple(row.values()) for row in table.table.to_pylist()]


# No bare carriage return: before Python 3.13 the csv module writes it unquoted.
cells = st.text(st.sampled_from('ab,;"\n 好\t\u2028'), max_size=6)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(cells, cells.filter(lambda text: text.strip())), min_size=1, max_size=6), st.sampled_from(["\n", "\r\n"]))
def test_whatever_the_csv_module_writes_is_read_back(tmp_path_factory, rows, end):
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator=end)
    writer.writerows([("text", "label"), *rows])
    path = write(tmp_path_factory.mktemp("csv"), "a.csv", buffer.getvalue())
    assert rows_of(read_table(path)) == rows


def test_old_line_ends(tmp_path):
    table = read_table(write(tmp_path, "r.csv", 'text,label\ra,1\r"b\rc",2\r'))
    assert rows_of(table) == [("a", "1"), ("b\rc", "2")] and table.origins == ["r.csv:2", "r.csv:3"]


def test_line_numbers_count_breaks_inside_quotes_and_blank_lines(tmp_path):
    path = write(tmp_path, "r.csv", 'text,label\r\n"one\r\ntwo",a\r\n\r\n"x ""y"" z",b\nplain "quote" inside,c\n')
    table = read_table(path)
    assert table.origins == ["r.csv:2", "r.csv:5", "r.csv:6"]
    assert rows_of(table) == [("one\r\ntwo", "a"), ('x "y" z', "b"), ('plain "quote" inside', "c")]
    assert not table.set_aside and not table.notes


@pytest.mark.parametrize(("name", "separator"), [("a.tsv", "\t"), ("a.csv", ";"), ("a.CSV", ","), ("a.csv", "\t")])
def test_separators(tmp_path, name, separator):
    path = write(tmp_path, name, f"text{separator}label\ngood{separator}1\n")
    assert read_table(path).table.to_pylist() == [{"text": "good", "label": "1"}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030", "utf-16-be"])
def test_encodings(tmp_path, encoding):
    path = write(tmp_path, "中文.csv", "文本,标签\n好,正\n".encode(encoding))
    table = read_table(path)
    assert table.table.to_pylist() == [{"文本": "好", "标签": "正"}]
    assert bool(table.notes) == (not encoding.startswith("utf-8"))
    assert read_table(path, encoding).notes == []


def test_broken_rows_are_set_aside_alone(tmp_path):
    path = write(tmp_path, "b.csv", 'text,label\nfine,a\n"he said "hi" there",b\ntoo,many,fields\nfew\n"opens,c\n"closes" late,d\nlast,e\n')
    table = read_table(path)
    assert rows_of(table) == [("fine", "a"), ("last", "e")]
    assert [(row.origin, row.reason.split(" (")[0].split(":")[0]) for row in table.set_aside] == [
        ("b.csv:3", "broken quoting"),
        ("b.csv:4", "3 fields where the header has 2"),
        ("b.csv:5", "1 fields where the header has 2"),
        ("b.csv:6", "broken quoting"),
        ("b.csv:7", "broken quoting"),
    ]


def test_an_open_quote_on_the_last_line_costs_that_line_only(tmp_path):
    table = read_table(write(tmp_path, "b.csv", 'text,label\nfine,a\n"open,b\n'))
    assert rows_of(table) == [("fine", "a")]
    assert [(row.origin, row.reason) for row in table.set_aside] == [("b.csv:3", "a quote that is never closed")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", 'text,label\nok,a\n"open,b\nlost,c\nlost,d\n', r"a\.csv:3: a quote opens on this line and is never closed"),
        ("a.csv", "text,label,text\n", r"a\.csv:1: columns 1 and 3 are both named 'text'"),
        ("a.csv", " \n", r"a\.csv' is empty"),
        ("a.csv", "", r"a\.csv' is empty"),
        ("a.csv", "text,label\n", r"has the header \['text', 'label'\] but no readable rows"),
        ("a.csv", "text,label\n1,2,3\n", r"no readable rows; a\.csv:2 has 3 fields"),
        ("a.csv", b"\x80\x04\x95\x00", r"is a Python pickle"),
        ("a.jsonl", "{]\nnonsense\n", r"no readable rows \(a\.jsonl:1: malformed JSON"),
        ("a.json", '[{"a": 1},\n {"a": }]', r"a\.json:2: malformed JSON in the item that starts here"),
        ("a.json", '[{"a": 1} {"a": 2}]', r"malformed JSON: got .* expected a comma"),
        ("a.json", "[]", r"no readable rows \(the list is empty\)"),
        ("a.json", '[{"a": 1}', r"expected a comma or \]"),
        ("a.parquet", b"PAR1 nothing", r"is not a readable Parquet file"),
        ("a.parquet", b"\x80\x04\x95", r"is not a readable Parquet file"),
        ("a.xlsx", b"PK", r"ends in '\.xlsx', expected a table"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        read_table(write(tmp_path, name, content))


def test_json_lines_and_lists_have_the_same_rows_and_true_lines(tmp_path):
    rows = [{"text": "好", "label": 1}, {"text": "bad\nvery", "label": 2.0, "extra": None}, {"label": True}]
    lines = write(tmp_path, "a.jsonl", "\n\n".join(json.dumps(row) for row in rows) + "\nnonsense\n[1]\n")
    whole = write(tmp_path, "a.json", json.dumps(rows, indent=2, ensure_ascii=False))
    expected = [("好", "1", None), ("bad\nvery", "2", None), (None, "true", None)]
    table = read_table(lines)
    assert rows_of(table) == expected and table.origins == ["a.jsonl:1", "a.jsonl:3", "a.jsonl:5"]
    assert [row.origin for row in table.set_aside] == ["a.jsonl:6", "a.jsonl:7"]
    assert "malformed JSON" in table.set_aside[0].reason and "not an object" in table.set_aside[1].reason
    assert rows_of(read_table(whole)) == expected and read_table(whole).origins == ["a.json:2", "a.json:6", "a.json:11"]
    assert rows_of(read_table(write(tmp_path, "lines.json", json.dumps(rows[0])))) == [("好", "1")]


def test_hostile_json_is_set_aside(tmp_path):
    path = write(tmp_path, "a.jsonl", "[" * 100_000 + "\n" + '{"text": ' + "9" * 5000 + "}\n" + '{"text": "\\ud83d"}\n')
    table = read_table(path)
    assert table.table.to_pylist() == [{"text": "\ufffd"}] and len(table.set_aside) == 2


def test_parquet_keeps_types_and_counts_rows(tmp_path):
    pq.write_table(pa.table({"text": ["a", "b"], "label": [1, None]}), tmp_path / "p.parquet")
    table = read_table(tmp_path / "p.parquet")
    assert table.table.schema.field("label").type == pa.int64() and table.origins == ["p.parquet:1", "p.parquet:2"]
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    with pytest.raises(DataError, match="no rows"):
        read_table(tmp_path / "empty.parquet")


def test_spelling():
    assert spell_column([0, 1.0, 2.5, True, None, float("nan"), {"a": "好"}]).to_pylist() == [
        "0",
        "1",
        "2.5",
        "true",
        None,
        None,
        '{"a": "好"}',
    ]
    assert spell_column([["a", 1], "b", None, []]).to_pylist() == [["a", "1"], ["b"], None, []]


def test_long_fields_have_no_limit(tmp_path):
    path = write(tmp_path, "long.csv", 'text,label\n"' + "好" * 300_000 + '",a\n')
    assert len(read_table(path).table["text"][0].as_py()) == 300_000
