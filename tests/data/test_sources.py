"""Which reader a path gets, and one paragraph for each path that none can read."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from frostline.data.raw import Raw
from frostline.data.sources import join, read_object, read_path, read_recipe
from frostline.errors import DataError
from frostline.recipe import DataRecipe


def write(path, content=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 9, 3), value, np.uint8)).save(path)
    return path


CSV = "text,label\ngood,pos\nbad,neg\n"


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_table_of_texts(tmp_path, name):
    content = CSV if name == "a.csv" else '{"text": "good", "label": "pos"}\n{"text": "bad", "label": "neg"}\n'
    raw = read_path(write(tmp_path / name, content), DataRecipe())
    assert raw.task == "text-classification" and raw.table["text"].to_pylist() == ["good", "bad"]


def test_a_table_of_images_is_told_by_its_values(tmp_path):
    picture(tmp_path / "图" / "1.png", 1)
    picture(tmp_path / "图" / "2.png", 2)
    table = write(tmp_path / "metadata.csv", "file_name,label\n图/1.png,a\n图/2.png,b\n图/3.png,b\nbroken\n")
    for path in (table, tmp_path):
        raw = read_path(path, DataRecipe())
        assert raw.task == "image-classification" and raw.table["label"].to_pylist() == ["a", "b"]
        assert [row.origin for row in raw.set_aside] == ["metadata.csv:5", "metadata.csv:4"]
    texts = read_path(write(tmp_path / "t" / "x.csv", "file,text,label\n1.png,hello,a\n"), DataRecipe(task="text-classification"))
    assert texts.table["text"].to_pylist() == ["hello"]


def test_folders_of_images_and_of_texts(tmp_path):
    picture(tmp_path / "i" / "cat" / "1.png")
    write(tmp_path / "i" / "readme.txt")
    write(tmp_path / "i" / "submission.csv", "id,label\n")
    images = read_path(tmp_path / "i", DataRecipe())
    assert images.task == "image-classification" and images.table.num_rows == 1
    assert "task: image-classification (guessed from 1 images and 1 .txt files; set data.task)" in images.notes
    write(tmp_path / "t" / "pos" / "1.txt", "x")
    assert read_path(tmp_path / "t", DataRecipe()).task == "text-classification"
    with pytest.raises(DataError, match=r"holds 1 \.txt files and no images, which does not fit data\.task='image-classification'"):
        read_path(tmp_path / "t", DataRecipe(task="image-classification"))


def test_one_table_per_split_in_a_folder(tmp_path):
    for name in ("train.csv", "dev.csv", "notes.csv"):
        write(tmp_path / name, CSV)
    raw = read_path(tmp_path, DataRecipe())
    assert raw.table["split"].to_pylist() == ["validation"] * 2 + ["train"] * 2
    assert "splits: dev.csv is validation, train.csv is train (by the files' names)" in raw.notes
    assert "warning: notes.csv was not read: its name is no split" in raw.notes
    (tmp_path / "train.csv").rename(tmp_path / "train-00000-of-00001.csv")
    assert read_path(tmp_path, DataRecipe()).table.num_rows == 4


def test_splits_given_apart(tmp_path):
    train, test = write(tmp_path / "x.csv", CSV), write(tmp_path / "y.csv", "sentence,stars\nfine,pos\n")
    raw = read_recipe(DataRecipe(train=str(train), test=str(test)))
    assert raw.table["split"].to_pylist() == ["train", "train", "test"] and raw.table["text"].to_pylist()[-1] == "fine"
    raw = read_recipe(DataRecipe(path=str(train), validation=str(test)))
    assert raw.table["split"].to_pylist() == [None, None, "validation"]
    with pytest.raises(DataError, match=r"both name the training rows\. Set only one"):
        read_recipe(DataRecipe(path=str(train), train=str(train)))
    with pytest.raises(DataError, match="no data was given"):
        read_recipe(DataRecipe(test=str(test)))


def test_idx_names(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2]) + bytes(8))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 5, 7]))
    for path in (tmp_path, tmp_path / "train-images-idx3-ubyte"):
        assert read_path(path, DataRecipe()).table["label"].to_pylist() == ["5", "7"]


@pytest.mark.parametrize(
    ("source", "texts"),
    [
        ([("good", 1), ("bad", 0)], ["good", "bad"]),
        ((["good", "bad"], np.array([1, 0])), ["good", "bad"]),
        ({"review": ["good", "bad"], "stars": [1, 0]}, ["good", "bad"]),
    ],
)
def test_texts_from_python(source, texts):
    raw = read_object(source, DataRecipe())
    assert raw.table["text"].to_pylist() == texts and raw.table["label"].to_pylist() == ["1", "0"]


def test_images_from_python():
    import torch

    images, labels = np.zeros((2, 8, 8), np.uint8), [0, 1]
    assert read_object((images, labels), DataRecipe(), ["猫", "狗"]).table["label"].to_pylist() == ["猫", "狗"]
    dataset = torch.utils.data.TensorDataset(torch.zeros(3, 1, 8, 8), torch.tensor([0, 1, 1]))
    assert read_object(dataset, DataRecipe()).table.num_rows == 3


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (42, r"the data is 42 \(int\), expected a path"),
        ([], r"the data is \[\] \(list\), expected a path"),
        ((np.zeros((2, 8, 8)), [0]), r"got 2 inputs and 1 labels"),
        ({"text": ["a"], "label": []}, r"got columns of lengths \{'text': 1, 'label': 0\}"),
    ],
)
def test_objects_that_are_no_data(source, message):
    with pytest.raises(DataError, match=message):
        read_object(source, DataRecipe())


def test_a_missing_path_names_its_neighbours(tmp_path):
    (tmp_path / "dog_vs_cat").mkdir()
    with pytest.raises(DataError, match=rf"dogs_vs_cats' does not exist.*'{tmp_path}' exists, and close names there: 'dog_vs_cat'"):
        read_path(tmp_path / "dogs_vs_cats", DataRecipe())
    with pytest.raises(DataError, match=rf"'{tmp_path}' exists, and nothing there has a name like it"):
        read_path(tmp_path / "数据" / "train", DataRecipe())


def test_folders_and_files_that_hold_nothing_readable(tmp_path):
    with pytest.raises(DataError, match="is an empty folder, expected images or texts"):
        read_path(tmp_path, DataRecipe())
    write(tmp_path / "a" / "model.bin")
    with pytest.raises(DataError, match=r"holds 1 files \('model\.bin', …\), but no image, \.txt, table or IDX"):
        read_path(tmp_path / "a", DataRecipe())
    with pytest.raises(DataError, match=r"ends in '\.bin', expected a folder, a table"):
        read_path(tmp_path / "a" / "model.bin", DataRecipe())
    write(tmp_path / "b" / "x.csv", CSV)
    write(tmp_path / "b" / "y.csv", CSV)
    with pytest.raises(DataError, match=r"holds several tables: 'x\.csv', 'y\.csv'\. Name one with data\.path"):
        read_path(tmp_path / "b", DataRecipe())


def test_parts_that_do_not_fit():
    def part(task, label):
        return Raw(task=task, table=pa.table({"label": label}))

    with pytest.raises(DataError, match="different kinds"):
        join([part("a", ["x"]), part("b", ["x"])])
    with pytest.raises(DataError, match="do not fit together"):
        join([part("a", ["x"]), part("a", [["x"]])])


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt"])
def test_a_pickle_under_any_name_is_refused_and_not_run(tmp_path, suffix):
    bomb = b"\x80\x04" + b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
    path = tmp_path / "a" / f"x{suffix}"
    path.parent.mkdir()
    path.write_bytes(bomb)
    with pytest.raises(DataError):
        raw = read_path(path.parent, DataRecipe())
        assert raw.table.num_rows == 0 and "pickle" in json.dumps([row.reason for row in raw.set_aside])
        raise DataError("set aside")
    assert not (tmp_path / "ran").exists()


def test_links_out_of_the_folder_and_pipes_are_set_aside(tmp_path):
    outside = write(tmp_path / "outside.csv", CSV)
    folder = tmp_path / "data"
    write(folder / "rows.csv", CSV)
    (folder / "linked.csv").symlink_to(outside)
    (folder / "within.jsonl").symlink_to(folder / "nothing.jsonl")
    os.mkfifo(folder / "pipe.csv")
    os.mkfifo(folder / "train-images-idx3-ubyte")
    raw = read_path(folder, DataRecipe())
    assert raw.table["text"].to_pylist() == ["good", "bad"]
    assert {(Path(row.origin).name, row.reason) for row in raw.set_aside} == {
        ("linked.csv", "a link that leads outside the folder"),
        ("within.jsonl", "a link to nothing"),
        ("pipe.csv", "not a regular file"),
        ("train-images-idx3-ubyte", "not a regular file"),
    }
    (folder / "rows.csv").unlink()
    with pytest.raises(DataError, match=r"holds nothing that can be read; the first of 4 files set aside: '.*linked\.csv', a link that"):
        read_path(folder, DataRecipe())


def test_a_path_that_was_given_may_be_a_link_but_no_pipe(tmp_path):
    write(tmp_path / "elsewhere" / "rows.csv", CSV)
    (tmp_path / "data").mkdir()
    link = tmp_path / "data" / "link.csv"
    link.symlink_to(tmp_path / "elsewhere" / "rows.csv")
    assert read_path(link, DataRecipe()).table.num_rows == 2
    for name in ("pipe.csv", "train-images-idx3-ubyte"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(DataError, match=rf"{name}' is not a regular file \(a pipe or a device\), expected a file or a folder"):
            read_path(tmp_path / name, DataRecipe())


TMX = (
    '<tmx><header srclang="en"/><body><tu><tuv xml:lang="en"><seg>snow</seg></tuv><tuv xml:lang="zh"><seg>雪</seg></tuv></tu></body></tmx>'
)
ENDINGS = {
    "记忆.tmx": (TMX, "translation"),
    "a.po": ('msgid "snow"\nmsgstr "雪"\n', "translation"),
    "a.conll": ("李 B-PER\n明 I-PER\n\n雪 O\n", "token-classification"),
    "a.conllu": ("1\tsnow\t_\tNOUN\n\n1\tice\t_\tNOUN\n", "token-classification"),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_task_that_the_ending_tells(tmp_path, name):
    content, task = ENDINGS[name]
    path = write(tmp_path / "d" / name, content)
    for place in (path, path.parent):
        raw = read_path(place, DataRecipe())
        assert raw.task == task and raw.table.num_rows >= 1
        assert f"task: {task} (guessed from the files' endings; set data.task)" in raw.notes
    assert read_recipe(DataRecipe(train=str(path), test=str(path))).task == task


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("a.txt", None, r"ends in '\.txt', which does not say what .* expected data\.task\. Use: data\.task=causal-lm"),
        ("a.en", None, r"ends in '\.en', as one side of a parallel text does, expected data\.task for it\. Use: data\.task=translation"),
        ("a.txt", "chat", r"ends in '\.txt', expected a table for data\.task='chat': \.csv.*Convert it, for example to JSONL"),
        ("a.txt", "text-classification", r"ends in '\.txt', expected a folder, a table"),
    ],
)
def test_advice_for_files_of_other_tasks(tmp_path, name, task, message):
    with pytest.raises(DataError, match=message):
        read_path(write(tmp_path / name, "x"), DataRecipe(task=task))


def test_the_split_that_is_given_apart_is_named(tmp_path):
    train, test = write(tmp_path / "a.csv", CSV), write(tmp_path / "b.csv", "words,label\nx,pos\n")
    with pytest.raises(DataError, match=r"^data\.test='.*b\.csv': .*no column looks like the text"):
        read_recipe(DataRecipe(train=str(train), test=str(test)))
