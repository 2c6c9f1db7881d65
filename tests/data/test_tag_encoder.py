"""Each word's tag stands at its first sub-token; what has no place is counted."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from frostline.data.dataset import Schema
from frostline.data.encode import split_source
from frostline.data.preprocess import TextPreprocess
from frostline.data.tag_encoder import encode_words, encoder, joined
from frostline.errors import DataError
from frostline.models.tokenizer import train_tokenizer
from frostline.recipe import DataRecipe

WORDS = [["playing", "chess", "in", "北", "京"], ["unplayable"], ["in", "\x01", "chess"]]
TAGS = [[0, 1, 0, 2, 3], [1], [0, 2, 1]]
TABLE = pa.table({"id": ["1", "2", "3"], "tokens": WORDS, "label": pa.array(TAGS, pa.list_(pa.int32()))})


@pytest.fixture(scope="module")
def pieces():
    from tokenizers import models

    tokenizer = train_tokenizer(["a"], "wordpiece", 60)
    names = ["[PAD]", "[UNK]", "[CLS]", "play", "##ing", "chess", "in", "北", "京", "un", "##play", "##able"]
    tokenizer.backend_tokenizer.model = models.WordPiece({name: index for index, name in enumerate(names)}, unk_token="[UNK]")
    return tokenizer


def made(tokenizer, length=50, **recipe):
    return encoder(TABLE, TextPreprocess(tokenizer=tokenizer, max_length=length), DataRecipe(**recipe))


def labelled(tokenizer, encoded):
    """(token, tag) of every labelled position, row by row."""
    batch = encoded.encode(np.arange(len(encoded.kept)), None)
    return [
        [(tokenizer.convert_ids_to_tokens(int(token)), int(tag)) for token, tag in zip(ids, tags) if tag != -100]
        for ids, tags in zip(batch.inputs["input_ids"], batch.labels)
    ]


def test_the_first_sub_token_has_the_tag(pieces):
    encoded = made(pieces)
    assert labelled(pieces, encoded) == [
        [("play", 0), ("chess", 1), ("in", 0), ("北", 2), ("京", 3)], [("un", 1)], [("in", 0), ("chess", 1)]]  # fmt: skip
    assert encoded.kept.tolist() == [0, 1, 2] and encoded.truncated == 0
    assert encoded.warnings == ["1 tokens give nothing in the model's vocabulary and are neither learned nor measured"]
    whole = pieces(WORDS[0], is_split_into_words=True)["input_ids"]
    assert encoded.encode(np.array([0]), None).inputs["input_ids"][0].tolist() == whole and encoded.lengths[0] == len(whole)


def test_words_behind_the_length_are_counted(pieces):
    encoded = made(pieces, 4)  # [CLS] play ##ing chess
    assert labelled(pieces, encoded)[0] == [("play", 0), ("chess", 1)] and encoded.truncated == 1
    assert encoded.warnings[:2] == [
        "1 of 3 rows are longer than max_length=4 and are cut, e.g. row 1 of the split",
        "3 tokens of 1 rows stand behind max_length and are neither learned nor measured",
    ]
    dropped = made(pieces, 4, too_long="drop")
    assert dropped.kept.tolist() == [1, 2] and labelled(pieces, dropped)[0] == [("un", 1)]
    with pytest.raises(DataError, match=r"1 of 3 rows are longer than max_length=4"):
        made(pieces, 4, too_long="refuse")


def test_byte_level_words_have_their_spaces():
    tokenizer = train_tokenizer(["play chess in 北京 play chess"] * 9, "bpe", 300, "causal")
    batch = made(tokenizer).encode(np.array([0]), None)
    assert tokenizer.decode(batch.inputs["input_ids"][0]) == "playing chess in北京"  # none beside Chinese
    assert (batch.labels != -100).sum() == 5


def test_prediction_uses_the_same_ids(pieces):
    preprocess = TextPreprocess(tokenizer=pieces, max_length=50)
    inputs, places = encode_words(WORDS, preprocess)
    batch = made(pieces).encode(np.arange(3), None)
    assert (inputs["input_ids"] == batch.inputs["input_ids"]).all() and places[2] == [1, None, 2]
    assert [int(batch.labels[0, place]) for place in places[0]] == TAGS[0]


def test_rows_without_any_place_are_left_out(pieces):
    table = pa.table({"id": ["1", "2"], "tokens": [["\x01"], ["in"]], "label": [[0], [1]]})
    schema = Schema(task="token-classification", target="tags", labels=("O", "B-x"))
    source = split_source(table, schema, TextPreprocess(tokenizer=pieces))
    assert source.table["id"].to_pylist() == ["2"] and len(source.warnings) == 2 and source.rows == 1
    with pytest.raises(DataError, match="none of the 1 rows has a token that can be learned"):
        encoder(table.slice(0, 1), TextPreprocess(tokenizer=pieces), DataRecipe())


@pytest.mark.parametrize("words", [["李", "明", "in", "New", "York", "。"], ["a"], [], ["雪", " x", ""]])
def test_words_as_one_text(words):
    text, places = joined(words)
    assert [text[start:end] for start, end in places] == words
    assert "".join(text.split()) == "".join("".join(words).split())
