"""Blocks hold every token as a label once, and the bytes of their labels add up to the documents'."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline.data.dataset import Schema
from frostline.data.document_encoder import encoder, token_bytes
from frostline.data.encode import split_source
from frostline.data.preprocess import TextPreprocess
from frostline.errors import DataError
from frostline.models.tokenizer import train_tokenizer
from frostline.recipe import DataRecipe

TEXTS = ["The snow fell all night.", "雪下了一整夜。😀 emoji", "  spaces\n\nand lines ", "é e\u0301 ﬁ"] * 3
KINDS = ["bpe", "word", "char", "wordpiece", "unigram"]


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: train_tokenizer(TEXTS * 5, kind, 400 if kind == "bpe" else 90, "causal") for kind in KINDS}


def blocks(texts, tokenizer, length):
    return encoder(pa.table({"text": texts}), TextPreprocess(tokenizer=tokenizer, max_length=length), DataRecipe())


def stream(made):
    batch = made.encode(np.arange(len(made.kept)), None)
    real = batch.inputs["attention_mask"].bool()
    return batch.inputs["input_ids"][real].tolist(), batch.labels[real].tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 7, 10_000])
def test_every_token_is_a_label_once_and_bytes_add_up(kind, length, tokenizers):
    tokenizer = tokenizers[kind]
    made = blocks(TEXTS, tokenizer, length)
    inputs, labels = stream(made)
    end = tokenizer.eos_token_id
    expected = [end] + [token for text in TEXTS for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], end]]
    assert [inputs[0], *labels] == expected and inputs == expected[:-1]
    assert made.lengths[:-1].tolist() == [length] * (len(made.kept) - 1) and made.lengths.sum() == len(expected) - 1
    assert made.row_labels.sum() == sum(len(text.encode()) for text in TEXTS) and made.truncated == 0 and not made.warnings


def test_bytes_of_one_token_blocks_are_the_tokens(tokenizers):
    made = blocks(["ab 好😀"], tokenizers["char"], 1)
    assert made.row_labels.tolist() == [1, 1, 1, 3, 4, 0]  # the end token stands for nothing


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=4), length=st.integers(1, 20), kind=st.sampled_from(KINDS))
def test_bytes_of_any_text(texts, length, kind, tokenizers):
    tokenizer = tokenizers[kind]
    heard = [text for text in texts if tokenizer(text, add_special_tokens=False)["input_ids"]]
    if heard:
        assert blocks(texts, tokenizer, length).row_labels.sum() == sum(len(text.encode()) for text in heard)


def test_token_bytes_of_a_dropped_end():
    assert token_bytes("好 x  ", np.array([1, 1, 3])).tolist() == [3, 0, 4]


def test_kept_is_the_document_of_the_first_label(tokenizers):
    tokenizer = tokenizers["char"]
    made = blocks(["abc", "de", "f"], tokenizer, 3)  # e|abc e|de e|f e → labels abc, ede, efe … of three
    assert made.kept.tolist() == [0, 0, 1]
    assert blocks(["abc", "de", "f"], tokenizer, 4).kept.tolist() == [0, 1, 2]


def test_a_begin_token_that_the_tokenizer_adds_comes_first(tokenizers):
    from tokenizers.processors import TemplateProcessing

    tokenizer = train_tokenizer(TEXTS, "char", 80, "seq2seq")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 2)])
    inputs, labels = stream(blocks(["a", "b"], tokenizer, 50))
    a, b = tokenizer.convert_tokens_to_ids(["a", "b"])
    assert [inputs[0], *labels] == [2, a, 3, 2, b, 3]


def test_without_an_end_token_a_warning_says_so():
    tokenizer = train_tokenizer(TEXTS, "char", 80)
    tokenizer.sep_token = None
    made = blocks(["ab", "\ufeff" * 0 + "c"], tokenizer, 50)
    assert made.warnings == ["the tokenizer has no end token: documents are laid end to end with nothing between them"]
    assert len(stream(made)[1]) == 2 and made.row_labels.sum() == 2  # the very first token is predicted from nothing


def test_documents_without_tokens_are_counted(tokenizers):
    made = blocks(["\x01", "雪", "\x02"], tokenizers["wordpiece"], 5)
    assert made.kept.tolist() == [1] and made.warnings == ["2 documents give no token and are left out, e.g. row 1 of the split"]
    with pytest.raises(DataError, match="none of the 1 documents gives a token, expected text"):
        blocks(["\x01"], tokenizers["wordpiece"], 5)


def test_the_source_knows_the_bytes(tokenizers):
    table = pa.table({"id": ["1", "2"], "text": ["雪下了", "snow"]})
    preprocess = TextPreprocess(tokenizer=tokenizers["bpe"], max_length=3)
    source = split_source(table, Schema(task="causal-lm", target="none"), preprocess)
    assert source.labels.sum() == 13 and len(source.labels) == source.rows == len(source.lengths)
    batch = source.encode(np.array([1, 0]), 0)
    assert torch.equal(batch.inputs["input_ids"][:, 1:][batch.labels[:, 1:] != -100], batch.labels[:, :-1][batch.labels[:, 1:] != -100])
