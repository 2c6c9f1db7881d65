"""Texts from tables and folders: layouts, splits, labels, ids, and what is set aside."""

import os

import pytest

from frostline.data.tables import read_table
from frostline.data.text_sources import from_folder, from_table, text_id
from frostline.errors import DataError
from frostline.recipe import DataRecipe


def tree(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def found(raw, *columns):
    return [tuple(row[name] for name in columns) for row in raw.table.to_pylist()]


def test_a_table_with_guessed_columns(tmp_path):
    tree(tmp_path, {"评论.csv": "编号,评论,情感\n1,好,正\n2,坏,负\n"})
    raw = from_table(read_table(tmp_path / "评论.csv"), DataRecipe())
    assert found(raw, "text", "label", "origin") == [("好", "正", "评论.csv:2"), ("坏", "负", "评论.csv:3")]
    assert raw.notes == ["text column: '评论' (guessed; set data.input_column)", "label column: '情感' (guessed; set data.label_column)"]
    assert raw.table["id"].to_pylist() == [text_id("好"), text_id("坏")]


def test_given_columns_joined_and_grouped(tmp_path):
    tree(tmp_path, {"a.jsonl": '{"t": "head", "b": "body", "c": 1, "u": 7}\n{"t": null, "b": "only", "c": 0, "u": null}\n'})
    recipe = DataRecipe(input_column="t+b", label_column="c", group_column="u")
    raw = from_table(read_table(tmp_path / "a.jsonl"), recipe)
    assert found(raw, "text", "label", "group") == [("head body", "1", "7"), ("only", "0", None)] and raw.notes == []
    with pytest.raises(DataError, match=r"a\.jsonl: data\.group_column got 'user', but the columns are: 't', 'b', 'c', 'u'"):
        from_table(read_table(tmp_path / "a.jsonl"), DataRecipe(input_column="t", label_column="c", group_column="user"))
    with pytest.raises(DataError, match=r"a\.jsonl: no column looks like the text; the columns are: 't', 'b', 'c', 'u'"):
        from_table(read_table(tmp_path / "a.jsonl"), DataRecipe())


def test_a_folder_per_class_nested_with_encodings_and_strays(tmp_path):
    tree(
        tmp_path,
        {
            "正面/a.txt": "很好\n".encode("gb18030"),
            "正面/深/b.txt": "不错\r\n一行",
            "负面/c.TXT": "差".encode("utf-16"),
            "负面/broken.txt": b"\xff\xffx",
            "负面/.hidden.txt": "no",
            "负面/picture.jpg": b"",
            "readme.txt": "about",
        },
    )
    raw = from_folder(tmp_path, DataRecipe())
    assert found(raw, "text", "label") == [("很好", "正面"), ("不错\r\n一行", "正面"), ("差", "负面")]
    assert "split" not in raw.table.column_names
    assert {row.origin.rpartition("/")[2]: row.reason for row in raw.set_aside} == {
        "broken.txt": "byte 0 (b'\\xff') is not UTF-8, and byte 0 is not GB18030 either",
        "readme.txt": "stands outside the class folders",
    }
    assert "1 files read as gb18030 (guessed; set data.encoding)" in raw.notes


def test_split_folders(tmp_path):
    tree(tmp_path, {"Train/pos/1.txt": "a", "Train/neg/2.txt": "b", "dev/pos/3.txt": "c", "test/neg/4.txt": "d"})
    raw = from_folder(tmp_path, DataRecipe())
    assert sorted(found(raw, "text", "label", "split")) == [
        ("a", "pos", "train"),
        ("b", "neg", "train"),
        ("c", "pos", "validation"),
        ("d", "neg", "test"),
    ]
    tree(tmp_path, {"more/pos/5.txt": "e"})
    with pytest.raises(DataError, match=r"split folders and, beside them, 'more'"):
        from_folder(tmp_path, DataRecipe())


def test_one_file_per_class(tmp_path):
    tree(tmp_path, {"pos.txt": "good\n\n  great\u2028still great \r\nfine\rlast", "neg.txt": "bad", "README.txt": "about"})
    raw = from_folder(tmp_path, DataRecipe())
    assert found(raw, "text", "label") == [
        ("bad", "neg"),
        ("good", "pos"),
        ("great\u2028still great", "pos"),
        ("fine", "pos"),
        ("last", "pos"),
    ]
    assert raw.table["origin"].to_pylist()[2] == f"{tmp_path / 'pos.txt'}:3"
    assert raw.notes[0] == "layout: one .txt file per class, one row a line (guessed)"
    assert [row.reason for row in raw.set_aside] == ["its name is not a class"]


def test_one_file_per_class_below_splits_and_a_class_called_train(tmp_path):
    splits = tree(tmp_path / "splits", {"train/pos.txt": "a\nb", "train/neg.txt": "c", "test/pos.txt": "d"})
    assert found(from_folder(splits, DataRecipe()), "text", "label", "split")[-1] == ("b", "pos", "train")
    vehicles = tree(tmp_path / "vehicles", {"train/1.txt": "on rails", "bus/2.txt": "on wheels"})
    assert found(from_folder(vehicles, DataRecipe()), "text", "label") == [("on wheels", "bus"), ("on rails", "train")]


def test_links_out_of_the_folder_are_not_read(tmp_path):
    secret = tree(tmp_path, {"secret.txt": "secret"}) / "secret.txt"
    folder = tree(tmp_path / "data", {"a/1.txt": "x", "b/2.txt": "y"})
    (folder / "a" / "link.txt").symlink_to(secret)
    (folder / "a" / "more").symlink_to(tmp_path)
    raw = from_folder(folder, DataRecipe())
    assert found(raw, "text") == [("x",), ("y",)]
    assert [row.reason for row in raw.set_aside] == ["a link that leads outside the folder"]


def test_no_text_files(tmp_path):
    with pytest.raises(DataError, match=r"holds no \.txt files"):
        from_folder(tmp_path, DataRecipe())


def test_pipes_and_links_that_lead_outside_are_set_aside(tmp_path):
    outside = tree(tmp_path, {"secret.txt": "secret"}) / "secret.txt"
    folder = tree(tmp_path / "data", {"pos/a.txt": "good", "neg/b.txt": "bad"})
    os.mkfifo(folder / "pos" / "pipe.txt")
    (folder / "neg" / "link.txt").symlink_to(outside)
    raw = from_folder(folder, DataRecipe())
    assert sorted(raw.table["text"].to_pylist()) == ["bad", "good"]
    assert [row.reason for row in raw.set_aside] == ["a link that leads outside the folder", "not a regular file"]


def test_a_blank_group_is_no_group(tmp_path):
    tree(tmp_path, {"a.csv": "text,label,user\na,1,u\nb,0,\nc,1,  \nd,0,\u3000\n"})
    raw = from_table(read_table(tmp_path / "a.csv"), DataRecipe(group_column="user"))
    assert raw.table["group"].to_pylist() == ["u", None, None, None]
