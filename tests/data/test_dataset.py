"""The prepared dataset: the same after a round trip, a fingerprint of its content, and nothing believed that a file says."""

from __future__ import annotations

import dataclasses
import json

import pyarrow as pa
import pytest
import torch

import frostline as fl
from frostline.data.dataset import Dataset, Schema, labels_tensor, load_dataset
from frostline.data.report import DataReport
from frostline.errors import DataError, RunError


def texts_of(rows, target="class", labels=("好", "坏"), **recipe):
    kind = {"class": pa.int32(), "multi-label": pa.list_(pa.int32()), "number": pa.float64()}[target]
    ids, texts, given = zip(*[(f"id{index}", text, label) for index, (text, label) in enumerate(rows)], strict=True)
    table = pa.table({"id": list(ids), "text": list(texts), "label": pa.array(given, kind)})
    schema = Schema(task="text-classification", target=target, labels=labels)
    return Dataset(schema=schema, splits={"train": table, "test": table.slice(0, 1)}, report=DataReport(), recipe=recipe)


DATASETS = {
    "class": lambda: texts_of([("很好 a", 0), ("", 1), ('c\n"d"', 0)], val=0.2),
    "multi-label": lambda: texts_of([("a", [0, 1]), ("b", [])], "multi-label"),
    "number": lambda: texts_of([("a", 0.1), ("b", -2.0)], "number", ()),
}


@pytest.mark.parametrize("kind", DATASETS)
def test_the_same_after_a_round_trip(kind, tmp_path):
    data = DATASETS[kind]()
    data.save(tmp_path / "数据")
    again = load_dataset(tmp_path / "数据")
    assert again.schema == data.schema == again.task and again.recipe == data.recipe and len(again) == len(data)
    assert list(again.splits) == ["train", "test"] and all(again.splits[name].equals(table) for name, table in data.splits.items())
    assert again.fingerprint == data.fingerprint and str(again) == str(data)


def test_what_was_prepared_is_read_by_prepare(texts, digits, tmp_path):
    for name, data in (("texts", texts), ("digits", digits)):
        data.save(tmp_path / name)
        assert fl.prepare(str(tmp_path / name)).fingerprint == data.fingerprint


def test_the_fingerprint_is_of_the_content():
    base = DATASETS["class"]()
    train = base.splits["train"]
    others = [
        dataclasses.replace(base, splits={**base.splits, "train": train.slice(0, 2)}),
        dataclasses.replace(base, splits={**base.splits, "train": train.set_column(2, "label", pa.array([0, 1, 1], pa.int32()))}),
        dataclasses.replace(base, splits={**base.splits, "train": train.set_column(0, "id", pa.array(["id0", "id1", "idx"]))}),
        dataclasses.replace(base, splits={"validation": train, "test": base.splits["test"]}),
        dataclasses.replace(base, schema=dataclasses.replace(base.schema, labels=("坏", "好"))),
    ]
    assert len({data.fingerprint for data in [base, *others]}) == 6
    assert dataclasses.replace(base, recipe={"val": 0.5}).fingerprint == base.fingerprint


def test_outputs_and_labels():
    cases = {"class": ("a", "b"), "multi-label": ("a",), "number": ()}
    assert [Schema(task="text-classification", target=target, labels=names).outputs for target, names in cases.items()] == [2, 1, 1]
    several = DATASETS["multi-label"]()
    assert torch.equal(labels_tensor(several.splits["train"], several.schema), torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    numbers = DATASETS["number"]()
    assert torch.equal(labels_tensor(numbers.splits["train"], numbers.schema), torch.tensor([[0.1], [-2.0]]))
    classes = DATASETS["class"]()
    assert labels_tensor(classes.splits["train"], classes.schema).tolist() == [0, 1, 0]


def test_a_full_disk_leaves_no_half_file(tmp_path, monkeypatch):
    from frostline.data import dataset

    def full(path, content):
        raise RunError(f"{str(path)!r} could not be written: No space left on device")

    monkeypatch.setattr(dataset, "write_atomically", full)
    with pytest.raises(RunError, match=r"train\.arrow' could not be written"):
        DATASETS["class"]().save(tmp_path)
    assert list(tmp_path.iterdir()) == []


class TestWhatAFileSays:
    """Damage and lies in dataset.json and in the tables are one DataError, which says what and what to do."""

    @pytest.fixture
    def folder(self, tmp_path):
        DATASETS["class"]().save(tmp_path / "data")
        return tmp_path / "data"

    def refused(self, folder, message):
        with pytest.raises(DataError, match=message) as error:
            load_dataset(folder)
        assert len(str(error.value)) < 1500

    def change(self, folder, path, value):
        content = json.loads((folder / "dataset.json").read_text())
        place = content
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        (folder / "dataset.json").write_text(json.dumps(content))

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            (["schema", "task"], "os.system", "schema.task is 'os.system', expected one of image-classification, text-classification"),
            (["schema", "target"], 7, "schema.target is 7"),
            (["schema", "labels"], ["a"], "expected at least 2 different names"),
            (["schema", "labels"], ["a", "a"], "expected at least 2 different names"),
            (["schema", "labels"], [1, 2], "expected at least 2 different names"),
            (["schema", "labels"], None, "not a readable prepared dataset"),
            (["schema"], [], "not a readable prepared dataset"),
            (["splits"], ["../train"], r"split '\.\./train' is unknown, expected one of train, validation, test"),
            (["splits"], ["validation"], r"not a readable prepared dataset .*validation\.arrow"),
            (["schema", "target"], "number", "column 'label' is int32, expected double"),
            (["schema", "task"], "image-classification", "column 'path' is None, expected string"),
        ],
    )
    def test_dataset_json(self, folder, path, value, message):
        self.change(folder, path, value)
        self.refused(folder, message)

    def test_labels_beyond_the_classes(self, folder):
        for labels in ([0, 1, 2], [0, -1, 1]):
            self.write(folder, labels)
            self.refused(folder, r"train\.arrow: labels run from -?\d to \d, expected 0 to 1")

    def write(self, folder, labels):
        data = DATASETS["class"]()
        table = data.splits["train"].set_column(2, "label", pa.array(labels, pa.int32()))
        dataclasses.replace(data, splits={**data.splits, "train": table}).save(folder)

    @pytest.mark.parametrize("column", ["label", "id"])
    def test_a_value_that_is_missing(self, folder, column):
        data = DATASETS["class"]()
        table, values = data.splits["train"], {"label": pa.array([0, None, 1], pa.int32()), "id": pa.array(["a", None, "b"])}
        table = table.set_column(table.column_names.index(column), column, values[column])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        (folder / "train.arrow").write_bytes(sink.getvalue())
        self.refused(folder, rf"train\.arrow: column {column!r} lacks 1 values")

    @pytest.mark.parametrize("damage", ["json", "cut", "empty", "missing", "not arrow"])
    def test_damage(self, folder, damage):
        table = folder / "train.arrow"
        match damage:
            case "json":
                (folder / "dataset.json").write_bytes((folder / "dataset.json").read_bytes()[:-20])
            case "cut":
                table.write_bytes(table.read_bytes()[:-100])
            case "empty":
                table.write_bytes(b"")
            case "missing":
                table.unlink()
            case "not arrow":
                table.write_bytes(b"\x80\x04" * 500)
        self.refused(folder, r"not a readable prepared dataset .*Prepare it again with: frostline prepare DATA --out FOLDER")

    def test_no_folder(self, tmp_path):
        self.refused(tmp_path / "nowhere", "not a readable prepared dataset")
