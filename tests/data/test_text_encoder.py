"""Encoded batches against the tokenizer called plainly; padding by length; empty texts."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from frostline.data.dataset import Schema
from frostline.data.preprocess import TextPreprocess
from frostline.data.text_encoder import encode_texts, text_encoder
from frostline.errors import DataError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "好"]
TEXTS = ["a b 好 a b", "a", "", "[PAD] b", "b b b", "好 未知 a"]


def tokenizer_of(special=True, **tokens):
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if special:
        inner.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, **({"pad_token": "[PAD]", "unk_token": "[UNK]"} | tokens))


def table_of(labels=None, kind=None):
    return pa.table({"text": TEXTS, "label": pa.array(labels or [0, 1, 0, 1, 0, 1], kind or pa.int32())})


SCHEMA = Schema(task="text-classification", labels=("neg", "pos"))


@pytest.mark.parametrize("longest", [4, 5, 64])
def test_the_same_as_the_tokenizer_called_plainly(longest):
    tokenizer = tokenizer_of()
    encode, lengths, truncated = text_encoder(table_of(), SCHEMA, TextPreprocess(tokenizer=tokenizer, max_length=longest))
    rows = np.array([3, 0, 4])
    batch = encode(rows, 0)
    expected = tokenizer([TEXTS[row] for row in rows], truncation=True, max_length=longest, padding=True, return_tensors="pt")
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(batch.inputs[name], expected[name])
    assert set(batch.inputs) == {"input_ids", "attention_mask"}
    assert batch.rows.tolist() == [3, 0, 4] and batch.rows.dtype == torch.int64
    assert batch.labels.tolist() == [1, 0, 0] and batch.labels.dtype == torch.int64
    plain = [len(tokenizer(text)["input_ids"]) for text in TEXTS]
    assert lengths.tolist() == [min(length, longest) for length in plain]
    assert truncated == pytest.approx(sum(length > longest for length in plain) / len(plain))


def test_prediction_shares_the_code_and_rows_do_not_depend_on_batch_mates():
    preprocess = TextPreprocess(tokenizer=tokenizer_of(), inputs=("input_ids", "attention_mask", "token_type_ids"))
    encode, lengths, _ = text_encoder(table_of(), SCHEMA, preprocess)
    together = encode(np.arange(6), None)
    for name, values in encode_texts(TEXTS, preprocess).items():
        assert torch.equal(values, together.inputs[name])
    assert not together.inputs["token_type_ids"].any() and together.inputs["attention_mask"].sum(1).tolist() == lengths.tolist()
    alone = encode(np.array([3]), None).inputs["input_ids"][0]
    assert torch.equal(together.inputs["input_ids"][3, : len(alone)], alone)


def test_a_text_that_holds_the_pad_token_is_not_cut():
    batch = encode_texts(["[PAD] b", "a a a a a"], TextPreprocess(tokenizer=tokenizer_of()))
    assert batch["attention_mask"][0].tolist() == [1, 1, 1, 1, 0, 0, 0]
    assert batch["input_ids"][0].tolist() == [2, 0, 5, 3, 0, 0, 0]


@pytest.mark.parametrize(("tokens", "stand_in"), [({}, 1), ({"unk_token": None}, 0), ({"unk_token": None, "pad_token": None}, 0)])
def test_an_empty_text_without_special_tokens_becomes_one_token(tokens, stand_in):
    batch = encode_texts(["", " ", "a b"], TextPreprocess(tokenizer=tokenizer_of(special=False, **tokens)))
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 0], [1, 1]] and batch["input_ids"][:, 0].tolist() == [stand_in, stand_in, 4]


def test_labels_of_other_targets():
    preprocess = TextPreprocess(tokenizer=tokenizer_of())
    several = text_encoder(
        table_of([[0], [1], [], [0, 1], [1], [0]], pa.list_(pa.int32())),
        Schema(task="text-classification", target="multi-label", labels=("a", "b")),
        preprocess,
    )[0]
    assert several(np.array([3, 2, 1]), 0).labels.tolist() == [[1, 1], [0, 0], [0, 1]]
    numbers = text_encoder(table_of([0.5, 1, 2, 3, 4, 5], pa.float64()), Schema(task="text-classification", target="number"), preprocess)[0]
    labels = numbers(np.array([1, 0]), 0).labels
    assert labels.tolist() == [[1.0], [0.5]] and labels.dtype == torch.float32


def test_what_a_text_cannot_give():
    with pytest.raises(DataError, match="expected at least one"):
        encode_texts([], TextPreprocess(tokenizer=tokenizer_of()))
    with pytest.raises(DataError, match="the model wants the input 'pixel_values'"):
        encode_texts(["a"], TextPreprocess(tokenizer=tokenizer_of(), inputs=("pixel_values",)))
