"""Cleaning: what is set aside and why, how labels are unified, and which index each class gets."""

import pyarrow as pa
import pytest

from frostline.data.clean import clean, sort_classes, split_labels
from frostline.data.raw import Raw
from frostline.errors import DataError
from frostline.recipe import DataRecipe


def raw_of(labels, texts=None, type=None):
    texts = texts or [f"text {row}" for row in range(len(labels))]
    table = pa.table(
        {
            "id": [str(row) for row in range(len(labels))],
            "origin": [f"a.csv:{row + 2}" for row in range(len(labels))],
            "text": pa.array(texts, pa.string()),
            "label": pa.array(labels, type),
        }
    )
    return Raw(task="text-classification", table=table)


def labels_of(raw):
    return raw.table["label"].to_pylist()


def test_missing_labels_and_empty_texts_are_set_aside():
    raw, classes = clean(raw_of(["a", "", None, "NaN", " ", "b", "a", "b"], ["x", "x", "x", "x", "x", " \n", None, "y"]), DataRecipe())
    assert labels_of(raw) == [0, 1] and classes == ("a", "b")
    assert [(row.origin, row.reason) for row in raw.set_aside] == [
        ("a.csv:7", "no text"),
        ("a.csv:8", "no text"),
        ("a.csv:3", "no label"),
        ("a.csv:4", "no label"),
        ("a.csv:5", "no label"),
        ("a.csv:6", "no label"),
    ]


@pytest.mark.parametrize(
    ("labels", "recipe", "message"),
    [
        (["", None], {}, r"no row has a label \(2 set aside, first a\.csv:2\)\. Name the right column with data\.label_column=NAME"),
        (["猫"] * 3, {}, r"all 3 rows have the same label '猫', expected at least two classes"),
        ([["a", "b"], ["c"]], {}, r"a\.csv:2: the label is the list \['a', 'b'\], expected one class\. Set data\.target=multi-label"),
        (["a", "b"], {"target": "number"}, r"data\.target=number .* none of the 2 labels is one"),
        (["1", "1.0"], {"target": "number"}, r"all are 1\.0"),
        ([[], []], {"target": "multi-label"}, r"none of the 2 rows has any label"),
        (["a"], {"target": "multi-label", "label_separator": ""}, r"data\.label_separator got ''"),
    ],
)
def test_what_cannot_be_learned(labels, recipe, message):
    kind = pa.list_(pa.string()) if isinstance(labels[0], list) else None
    with pytest.raises(DataError, match=message):
        clean(raw_of(labels, type=kind), DataRecipe(**recipe))


def test_all_texts_empty():
    with pytest.raises(DataError, match=r"no row has a text \(2 set aside"):
        clean(raw_of(["a", "b"], ["", None]), DataRecipe())


def test_label_variants_are_warned_of_and_merged_only_on_request():
    labels = ["cat", " cat", "Cat", "cat", "dog ", "dog "]
    raw, classes = clean(raw_of(labels), DataRecipe())
    assert classes == (" cat", "Cat", "cat", "dog ")
    assert raw.notes[0] == (
        "warning: labels that differ only in case or spaces: ' cat' (1 rows), 'Cat' (1 rows), 'cat' (2 rows); "
        "they stay different classes; merge them with data.merge_labels=true"
    )
    assert raw.notes[1] == "warning: the label 'dog ' has spaces around it; remove them with data.merge_labels=true"
    merged, classes = clean(raw_of(labels), DataRecipe(merge_labels=True))
    assert classes == ("cat", "dog") and labels_of(merged) == [0, 0, 0, 0, 1, 1]
    assert merged.notes[0].endswith("merged into 'cat'")


def test_numbers_as_class_names_sort_by_value_whatever_their_type():
    for labels in (["10", "9", "1"], [10, 9, 1], [10.0, 9.0, 1.0]):
        raw, classes = clean(raw_of(labels), DataRecipe())
        assert classes == ("1", "9", "10") and labels_of(raw) == [2, 1, 0]
        assert raw.table.schema.field("label").type == pa.int32()
    assert sort_classes(["负", "正"]) == ["正", "负"]


def test_a_class_with_one_row_is_warned_of():
    raw, _ = clean(raw_of(["a", "a", "b"]), DataRecipe())
    assert raw.notes == ["warning: only one row each of: 'b'; they can be trained on, but not measured"]


def test_several_labels():
    recipe = DataRecipe(target="multi-label")
    raw, classes = clean(raw_of(["b| a", "a|a|", None, "c"]), recipe)
    assert classes == ("a", "b", "c") and labels_of(raw) == [[0, 1], [0], [2]]
    assert raw.table.schema.field("label").type == pa.list_(pa.int32())
    lists, _ = clean(raw_of([["b", "a"], ["a"], [], None]), recipe)
    assert labels_of(lists) == [[0, 1], [0], []]
    assert split_labels(raw_of(["x;y|z"]), ";").table["label"].to_pylist() == [["x", "y|z"]]
    variants, classes = clean(raw_of(["a|A", "A", "A"]), DataRecipe(target="multi-label", merge_labels=True))
    assert classes == ("A",) and labels_of(variants) == [[0], [0], [0]]


def test_numbers():
    raw, classes = clean(raw_of(["1.5", "x", "2", "inf", None, " 3 "]), DataRecipe(target="number"))
    assert labels_of(raw) == [1.5, 2.0, 3.0] and classes == () and raw.table.schema.field("label").type == pa.float64()
    assert [row.reason for row in raw.set_aside] == ["no label", "the label is not a number", "the label is not a number"]
