"""Two or three sequences a row, side by side; labels are scores, or say which texts are equal."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from frostline.data.dataset import Schema
from frostline.data.embedding_encoder import encoder
from frostline.data.encode import split_source
from frostline.data.preprocess import TextPreprocess
from frostline.errors import DataError
from frostline.models.tokenizer import train_tokenizer
from frostline.recipe import DataRecipe

FIRST, SECOND, THIRD = ["雪", "冰冰冰", "火"], ["snow", "ice", "snow"], ["fire", "雪", "ice"]


@pytest.fixture(scope="module")
def preprocess():
    return TextPreprocess(tokenizer=train_tokenizer([*FIRST, *SECOND, *THIRD], "char", 60), max_length=30)


def table(negative=(None,) * 3, score=(None,) * 3):
    return pa.table(
        {
            "id": ["1", "2", "3"],
            "first": FIRST,
            "second": SECOND,
            "negative": pa.array(negative, pa.string()),
            "score": pa.array(score, pa.float64()),
        }
    )


@pytest.mark.parametrize(("negative", "several"), [((None,) * 3, 2), (THIRD, 3)])
def test_sequences_stand_side_by_side(negative, several, preprocess):
    made = encoder(table(negative), preprocess, DataRecipe())
    batch = made.encode(np.array([2, 0]), None)
    texts = [text for row in (2, 0) for text in (FIRST, SECOND, THIRD)[:several] for text in [text[row]]]
    expected = preprocess.tokenizer(texts, padding=True, return_tensors="pt")
    for name in preprocess.inputs:
        assert torch.equal(batch.inputs[name], expected[name])
    assert batch.rows.tolist() == [2, 0] and batch.labels.shape == (2, several)
    assert made.lengths[0] == sum(len(preprocess.tokenizer(text)["input_ids"]) for text in texts[several:])


def test_equal_texts_share_a_number(preprocess):
    labels = encoder(table(THIRD), preprocess, DataRecipe()).encode(np.arange(3), None).labels
    assert labels[0, 1] == labels[2, 1] and labels[0, 0] == labels[1, 2] and labels[1, 1] == labels[2, 2]
    assert len(labels.unique()) == 6


def test_scores_are_the_labels(preprocess):
    schema = Schema(task="embedding", target="none")
    source = split_source(table(score=(0.0, 0.5, 1.0)), schema, preprocess)
    assert source.labels.tolist() == [0, 0.5, 1] and source.labels.dtype == torch.float32
    assert source.encode(np.array([1]), None).labels.tolist() == [0.5]


def test_long_texts(preprocess):
    short = TextPreprocess(tokenizer=preprocess.tokenizer, max_length=4)
    made = encoder(table(), short, DataRecipe())
    assert made.truncated == 2 and made.warnings[0].startswith("2 of 3 rows are longer than max_length=4 and are cut")
    dropped = encoder(table(), short, DataRecipe(too_long="drop"))
    assert dropped.kept.tolist() == [1] and len(dropped.row_labels) == 1
    with pytest.raises(DataError, match="all 3 rows are longer than max_length=1"):
        encoder(table(), TextPreprocess(tokenizer=preprocess.tokenizer, max_length=1), DataRecipe(too_long="drop"))


def test_rows_of_two_kinds_are_refused(preprocess):
    with pytest.raises(DataError, match="1 of 3 rows have no negative, the others have one"):
        encoder(table(("x", None, "y")), preprocess, DataRecipe())
