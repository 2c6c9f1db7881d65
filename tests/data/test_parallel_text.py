"""Sources and targets from tables, two files, and folders."""

from __future__ import annotations

import pyarrow as pa
import pytest

import frostline as fl
from frostline.data.parallel_text import from_path, from_table
from frostline.data.tables import Table, spell_column
from frostline.errors import DataError
from frostline.recipe import DataRecipe

RECIPE = DataRecipe(task="translation")
ENGLISH, CHINESE = ["snow", "ice", "rain"], ["雪", "冰", "雨"]
PAIRS = list(zip(ENGLISH, CHINESE))


def table(**columns):
    made = pa.table({name: spell_column(values) for name, values in columns.items()})
    return Table(table=made, origins=[f"x.csv:{row + 2}" for row in range(made.num_rows)])


def rows(raw):
    return list(zip(raw.table["source"].to_pylist(), raw.table["target"].to_pylist()))


def write(path, text):
    path.write_bytes(text.encode())
    return path


def pair(folder, stem, english=ENGLISH, chinese=CHINESE, ends=("en", "zh")):
    for suffix, lines in zip(ends, (english, chinese)):
        write(folder / f"{stem}.{suffix}", "\n".join(lines) + "\n")


@pytest.mark.parametrize(
    "columns",
    [
        {"source": ENGLISH, "target": CHINESE},
        {"id": ["1", "2", "3"], "src": ENGLISH, "tgt": CHINESE},
        {"en": ENGLISH, "zh": CHINESE},
        {"id": ["1", "2", "3"], "en": ENGLISH, "zh_CN": CHINESE},
        {"document": ENGLISH, "summary": CHINESE},
        {"原文": ENGLISH, "译文": CHINESE},
        {"内容": ENGLISH, "摘要": CHINESE},
        {"text": ENGLISH, "x": CHINESE},
        {"translation": [{"en": a, "zh": b} for a, b in PAIRS]},
    ],
)
def test_columns(columns):
    raw = from_table(table(**columns), RECIPE)
    assert rows(raw) == PAIRS and raw.task == "translation" and raw.notes


def test_given_columns_decide():
    both = table(en=ENGLISH, zh=CHINESE)
    assert rows(from_table(both, DataRecipe(input_column="zh"))) == [(b, a) for a, b in PAIRS]
    assert rows(from_table(both, DataRecipe(label_column="en"))) == [(b, a) for a, b in PAIRS]
    raw = from_table(table(a=ENGLISH, b=CHINESE, c=CHINESE), DataRecipe(task="summarisation", input_column="a", label_column="c"))
    assert rows(raw) == PAIRS and raw.task == "summarisation" and raw.notes == []


def test_blank_sides_are_set_aside():
    raw = from_table(table(source=["a", "", "c", "d"], target=["x", "y", None, " "]), RECIPE)
    assert rows(raw) == [("a", "x")]
    assert [(row.origin, row.reason) for row in raw.set_aside] == [
        ("x.csv:3", "no source"),
        ("x.csv:4", "no target"),
        ("x.csv:5", "no target"),
    ]


def test_rows_of_one_source_stay_in_one_split():
    raw = from_table(table(source=["a", "a", "b"], target=["x", "y", "z"]), RECIPE)
    groups = raw.table["group"].to_pylist()
    assert groups[0] == groups[1] != groups[2] and "1 sources have more than one target" in raw.notes[-1]
    assert "group" not in from_table(table(source=["a", "a"], target=["x", "x"]), RECIPE).table.column_names


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_two_files(end, tmp_path):
    write(tmp_path / "train.en", end.join(ENGLISH) + end)
    write(tmp_path / "train.zh", end.join(CHINESE))
    assert rows(from_path(tmp_path / "train.en", RECIPE)) == PAIRS
    assert rows(from_path(tmp_path / "train.zh", RECIPE)) == [(b, a) for a, b in PAIRS]
    assert rows(from_path(tmp_path, RECIPE)) == PAIRS
    assert rows(from_path(tmp_path, DataRecipe(input_column="zh"))) == [(b, a) for a, b in PAIRS]


def test_a_folder_is_split_by_names(tmp_path):
    pair(tmp_path, "train", [f"t{n}" for n in range(9)], [f"火{n}" for n in range(9)], ("source", "target"))
    pair(tmp_path, "valid", ["v"], ["验"], ("source", "target"))
    write(tmp_path / "readme.txt", "about")
    raw = from_path(tmp_path, RECIPE)
    assert raw.table["split"].to_pylist() == ["train"] * 9 + ["validation"] and rows(raw)[-1] == ("v", "验")
    assert set(fl.prepare(str(tmp_path), task="translation").splits) == {"train", "validation"}


def test_catalogues_of_a_folder_are_read_together(tmp_path):
    for name, source in (("a", "snow"), ("b", "ice")):
        write(tmp_path / f"{name}.po", f'msgid "{source}"\nmsgstr "{source}!"\n')
    write(tmp_path / "a.mo", "compiled of the same messages")
    assert rows(from_path(tmp_path, RECIPE)) == [("snow", "snow!"), ("ice", "ice!")]


def tmx(path, source="zh", target="en"):
    texts = "".join(f'<tuv xml:lang="{name}"><seg>{text}</seg></tuv>' for name, text in ((source, "霜"), (target, "frost")))
    return write(path, f'<tmx><header srclang="{source}"/><body><tu>{texts}</tu></body></tmx>')


def test_pairs_of_files_beside_a_tmx_are_read_in_its_direction(tmp_path):
    tmx(tmp_path / "记忆.tmx", "zh-CN")
    pair(tmp_path, "more")
    for name in ("readme.md", "readme.txt", "lonely.en", "three.en", "three.zh", "three.de"):
        write(tmp_path / name, "x")
    write(tmp_path / "t.csv", "a,b\n1,2\n")
    raw = from_path(tmp_path, RECIPE)
    assert rows(raw) == [("霜", "frost"), *[(b, a) for a, b in PAIRS]]
    aside = {row.origin.rpartition("/")[2]: row.reason for row in raw.set_aside}
    assert set(aside) == {"readme.md", "readme.txt", "lonely.en", "three.en", "three.zh", "three.de"}
    assert aside["lonely.en"] == "one side of a parallel text, without the other"
    assert aside["three.de"].startswith("one of 3 sides; data.input_column and data.label_column name the two")
    assert "endings that name languages" in aside["readme.md"]
    assert any("1 tables beside the parallel texts were not read, e.g. 't.csv'" in note for note in raw.notes)


def test_two_sides_of_three_that_are_named(tmp_path):
    pair(tmp_path, "a")
    write(tmp_path / "a.de", "Schnee\nEis\nRegen\n")
    raw = from_path(tmp_path, DataRecipe(input_column="de", label_column="zh"))
    assert rows(raw)[0] == ("Schnee", "雪") and [row.origin[-4:] for row in raw.set_aside] == ["a.en"]
    with pytest.raises(DataError, match=r"holds no two files that can be read together; 'a\.de': one of 3 sides; data\.input_column"):
        from_path(tmp_path, RECIPE)


def test_files_that_go_in_different_directions_are_told(tmp_path):
    tmx(tmp_path / "a.tmx")
    tmx(tmp_path / "b.tmx", "en", "zh")
    (warning,) = (note for note in from_path(tmp_path, RECIPE).notes if note.startswith("warning"))
    assert "a.tmx from 'zh' to 'en', b.tmx from 'en' to 'zh'" in warning


def test_a_compiled_catalogue_beside_its_source_is_told(tmp_path):
    write(tmp_path / "a.po", 'msgid "snow"\nmsgstr "雪"\n')
    write(tmp_path / "a.mo", "compiled of the same messages")
    assert "a.mo was not read: a.po holds its messages" in from_path(tmp_path, RECIPE).notes


def test_a_split_without_a_usable_pair_is_named(tmp_path):
    pair(tmp_path, "train")
    pair(tmp_path, "test", ["", ""], ["a", "b"])
    with pytest.raises(DataError, match=r"no row of the test split can be used \(the first set aside: test\.en:1: no source\)"):
        from_path(tmp_path, RECIPE)


def test_what_is_a_table_is_left_to_its_reader(tmp_path):
    write(tmp_path / "a.csv", "source,target\na,b\n")
    assert from_path(tmp_path / "a.csv", RECIPE) is None and from_path(tmp_path, RECIPE) is None


def test_bad_input(tmp_path):
    pair(tmp_path, "train", chinese=CHINESE[:2])
    with pytest.raises(DataError, match=r"train\.en has 3 lines and train\.zh has 2, expected as many of one as of the other"):
        from_path(tmp_path, RECIPE)
    with pytest.raises(DataError, match=r"lonely\.en holds one side of a parallel text.*there: none"):
        from_path(write(tmp_path / "lonely.en", "x"), RECIPE)
    with pytest.raises(DataError, match=r"no column looks like the source; the columns are: 'foo', 'bar', 'baz'"):
        from_table(table(foo=["a"], bar=["b"], baz=["c"]), RECIPE)
    with pytest.raises(DataError, match=r"'en' is the column of the source and of the target, expected two"):
        from_table(table(en=["a"], x=["b"], y=["c"]), DataRecipe(input_column="en", label_column="en"))
    with pytest.raises(DataError, match=r"no row has a source and a target \(1 set aside, first x\.csv:2: no target\)"):
        from_table(table(source=["a"], target=[""]), RECIPE)
