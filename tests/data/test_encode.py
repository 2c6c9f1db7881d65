"""A split and a model's preprocessing become batches, for images and for texts, in any order of rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch

from frostline.data.dataset import Schema
from frostline.data.encode import split_source
from frostline.data.preprocess import ImagePreprocess, TextPreprocess
from frostline.errors import DataError
from frostline.models.tokenizer import train_tokenizer
from frostline.recipe import AugmentRecipe


@pytest.fixture
def images(digits):
    return split_source(digits.splits["train"], digits.schema, ImagePreprocess(size=8, channels="grey"))


@pytest.fixture
def words(texts):
    tokenizer = train_tokenizer(texts.splits["train"]["text"].to_pylist(), "word", 200)
    return split_source(texts.splits["train"], texts.schema, TextPreprocess(tokenizer=tokenizer, max_length=12))


def test_images(images, digits):
    table = digits.splits["train"]
    batch = images.encode(np.array([5, 0]), None)
    pixels = np.frombuffer(table["pixels"][5].as_py(), dtype=np.uint8).reshape(8, 8)
    torch.testing.assert_close(batch.inputs["pixel_values"][0, 0], torch.from_numpy(pixels.astype(np.float32)) / 255)
    assert batch.labels.tolist() == [table["label"][5].as_py(), table["label"][0].as_py()]
    assert batch.rows.tolist() == [5, 0] and batch.border is None
    assert images.rows == table.num_rows and images.lengths is None and images.truncated is None


def test_batches_are_made_for_a_device(images):
    assert images.to(torch.device("cpu")) is images
    batch = images.to(torch.device("meta")).encode(np.array([5, 0]), None)
    assert batch.inputs["pixel_values"].is_meta and batch.labels.is_meta and batch.rows.tolist() == [5, 0]
    assert not images.labels.is_meta


def test_texts(words, texts):
    batch = words.encode(np.array([3, 1, 2]), None)
    assert batch.inputs["attention_mask"].sum(1).tolist() == words.lengths[[3, 1, 2]].tolist()
    assert batch.inputs["input_ids"].shape[1] == words.lengths[[3, 1, 2]].max() <= 12
    assert words.rows == texts.splits["train"].num_rows == len(words.lengths)
    assert words.truncated == pytest.approx(np.mean([len(t.split()) > 11 for t in texts.splits["train"]["text"].to_pylist()]), abs=0.5)
    assert 0 < words.truncated < 1


@pytest.mark.parametrize("kind", ["images", "words"])
def test_a_row_does_not_depend_on_its_batch(kind, request):
    source = request.getfixturevalue(kind)
    together = source.encode(np.arange(10), 0)
    for row in (0, 7):
        alone = source.encode(np.array([row]), 0)
        for name, value in alone.inputs.items():
            shown = together.inputs[name][row : row + 1]
            assert torch.equal(shown[:, : value.shape[1]], value)
        assert torch.equal(alone.labels, together.labels[row : row + 1])
        assert torch.equal(source.labels[row : row + 1], alone.labels)


def test_augmentation_in_training_epochs_only(digits):
    augment, table = AugmentRecipe(rotation=20.0), digits.splits["train"]
    plain = split_source(table, digits.schema, ImagePreprocess(size=8))
    changed = split_source(table, digits.schema, ImagePreprocess(size=8), augment=augment, seed=1)
    rows = np.arange(4)

    def pixels(source, epoch):
        return source.encode(rows, epoch).inputs["pixel_values"]

    assert torch.equal(pixels(changed, None), pixels(plain, None))
    assert not torch.equal(pixels(changed, 0), pixels(plain, 0)) and not torch.equal(pixels(changed, 0), pixels(changed, 1))
    assert torch.equal(pixels(changed, 1), pixels(changed, 1))
    other = split_source(table, digits.schema, ImagePreprocess(size=8), augment=augment, seed=2)
    assert not torch.equal(pixels(changed, 1), pixels(other, 1))


@pytest.mark.parametrize(
    ("target", "column", "expected"),
    [
        ("class", pa.array([1, 0], pa.int32()), torch.tensor([1, 0])),
        ("multi-label", pa.array([[0, 2], []], pa.list_(pa.int32())), torch.tensor([[1.0, 0, 1], [0, 0, 0]])),
        ("number", pa.array([0.5, -2.0]), torch.tensor([[0.5], [-2.0]])),
    ],
)
def test_labels_of_each_target(words, texts, target, column, expected):
    labels = {"class": ("a", "b"), "multi-label": ("a", "b", "c"), "number": ()}[target]
    table = pa.table({"id": ["1", "2"], "text": ["好", "坏 的"], "label": column})
    schema = Schema(task="text-classification", target=target, labels=labels)
    tokenizer = train_tokenizer(["好 坏"], "char", 50)
    source = split_source(table, schema, TextPreprocess(tokenizer=tokenizer))
    assert torch.equal(source.encode(np.array([0, 1]), None).labels, expected) and torch.equal(source.labels, expected)
    assert dataclasses.replace(source).rows == 2


def test_the_split_of_which_no_row_can_be_used_is_named():
    tokenizer = train_tokenizer(["a b"], "char", 50, "causal", chat=True)
    messages = '[{"role": "user", "content": "a"}]'
    table = pa.table({"id": ["1"], "origin": ["x:1"], "messages": [messages], "tools": pa.array([None], pa.string())})
    schema, preprocess = Schema(task="chat", target="none"), TextPreprocess(tokenizer=tokenizer)
    with pytest.raises(DataError, match=r"^the validation split: none of the 1 conversations has a token to train"):
        split_source(table, schema, preprocess, name="validation")
    with pytest.raises(DataError, match=r"^none of the 1 conversations"):
        split_source(table, schema, preprocess)


def test_texts_in_a_script_that_the_tokenizer_does_not_know_are_told_of(texts):
    """In the training split alone, and not where the token for unknown words serves for something else too."""
    tokenizer = train_tokenizer(["plain english words only, and nothing else"], "word", 200)
    preprocess, table = TextPreprocess(tokenizer=tokenizer, max_length=50), texts.splits["train"]
    (warning,) = split_source(table, texts.schema, preprocess).warnings
    assert "% of the training texts' tokens are unknown to the model" in warning and tokenizer.unk_token in warning
    known = train_tokenizer(table["text"].to_pylist(), "char", 500)
    assert split_source(table, texts.schema, TextPreprocess(tokenizer=known, max_length=500)).warnings == []
    tokenizer.pad_token = tokenizer.unk_token
    assert split_source(table, texts.schema, preprocess).warnings == []
