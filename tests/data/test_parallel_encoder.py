"""Encoder-decoders read both sides apart; decoders a conversation whose answer alone is learned."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from frostline.data.parallel_encoder import encoder, request, source_ids
from frostline.data.preprocess import TextPreprocess, with_prompt
from frostline.errors import DataError, RecipeError
from frostline.models.tokenizer import train_tokenizer
from frostline.recipe import DataRecipe

TABLE = pa.table({"id": ["1", "2"], "source": ["snow and ice", "rain"], "target": ["雪和冰", "雨"], "origin": ["x:1", "x:2"]})
TEXTS = ["Translate Summarise 翻译总结: snow and ice rain 雪和冰雨\nuserassistant"] * 2
BOTH = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")
RECIPE = DataRecipe(task="translation")


@pytest.fixture(scope="module")
def sides():
    tokenizer = train_tokenizer(TEXTS, "char", 90, "seq2seq")
    return TextPreprocess(tokenizer=tokenizer, max_length=64, inputs=BOTH, start=tokenizer.bos_token_id)


@pytest.fixture(scope="module")
def chat():
    return TextPreprocess(tokenizer=train_tokenizer(TEXTS, "char", 90, "causal", chat=True), max_length=128)


def spelled(tokenizer, ids):
    return "".join(token if token.startswith(("[", "<")) else tokenizer.decode([tokenizer.convert_tokens_to_ids(token)])
                   for token in tokenizer.convert_ids_to_tokens([int(i) for i in ids]))  # fmt: skip


def test_an_encoder_decoder_gets_both_sides(sides):
    made = encoder(TABLE, sides, RECIPE)
    batch, tokenizer = made.encode(np.array([0, 1]), None), sides.tokenizer
    assert tuple(batch.inputs) == BOTH and batch.labels.shape == batch.inputs["decoder_input_ids"].shape
    assert spelled(tokenizer, batch.inputs["input_ids"][1]) == "rain[EOS]" + "[PAD]" * 8
    assert spelled(tokenizer, batch.inputs["decoder_input_ids"][0]) == "[BOS]雪和冰"
    assert spelled(tokenizer, batch.labels[0]) == "雪和冰[EOS]"
    assert batch.labels[1].tolist()[2:] == [-100, -100] and batch.inputs["decoder_attention_mask"].sum(1).tolist() == [4, 2]
    assert batch.inputs["attention_mask"].sum(1).tolist() == [13, 5] and made.lengths.tolist() == [17, 7]
    assert torch.equal(
        batch.labels[:, :-1][batch.labels[:, 1:] != -100], batch.inputs["decoder_input_ids"][:, 1:][batch.labels[:, 1:] != -100]
    )
    assert source_ids("rain", sides, RECIPE) == batch.inputs["input_ids"][1, :5].tolist() and made.warnings == []


def test_long_sides_are_cut_and_still_end(sides):
    short = TextPreprocess(tokenizer=sides.tokenizer, max_length=3, inputs=BOTH, start=2)
    made = encoder(TABLE, short, RECIPE)
    assert spelled(sides.tokenizer, made.encode(np.array([0]), None).labels[0]) == "雪和[EOS]"
    assert made.truncated == 2 and made.warnings == ["2 of 2 pairs are longer than max_length=3 and are cut, e.g. row 1 of the split"]
    short = TextPreprocess(tokenizer=sides.tokenizer, max_length=6, inputs=BOTH, start=2)
    assert encoder(TABLE, short, DataRecipe(too_long="drop")).kept.tolist() == [1]
    with pytest.raises(DataError, match="1 of 2 pairs are longer than max_length=6"):
        encoder(TABLE, short, DataRecipe(too_long="refuse"))
    with pytest.raises(DataError, match="all 2 pairs are longer than max_length=1"):
        encoder(TABLE, TextPreprocess(tokenizer=sides.tokenizer, max_length=1, inputs=BOTH, start=2), DataRecipe(too_long="drop"))


def test_a_target_that_leaves_the_end_token_no_room_is_counted():
    """Of a tokenizer that puts no end token behind a text, so that it is put there afterwards."""
    tokenizer = train_tokenizer(TEXTS, "char", 90, "causal")
    preprocess = TextPreprocess(tokenizer=tokenizer, max_length=4, inputs=BOTH, start=tokenizer.eos_token_id)
    table = pa.table({"source": ["ice", "ice", "ice"], "target": ["雪和冰", "雪和冰雨", "雪和冰雨雪"]})
    made = encoder(table, preprocess, RECIPE)
    labels = made.encode(np.array([0, 1, 2]), None).labels
    assert [spelled(tokenizer, row) for row in labels] == ["雪和冰<|endoftext|>"] * 3
    assert made.truncated == 2 and made.warnings == ["2 of 3 pairs are longer than max_length=4 and are cut, e.g. row 2 of the split"]


def test_the_request_that_a_model_was_trained_with_is_its_own(chat, sides):
    for preprocess in (chat, sides):
        own = with_prompt(preprocess, "ice {source}")
        assert source_ids("rain", own, RECIPE) == source_ids("rain", preprocess, DataRecipe(task="translation", prompt="ice {source}"))
        other = DataRecipe(task="translation", prompt="snow {source}")
        assert source_ids("rain", own, other) == source_ids("rain", preprocess, other)
        batch = encoder(TABLE, own, RECIPE).encode(np.array([1]), None)
        assert "ice rain" in preprocess.tokenizer.decode(batch.inputs["input_ids"][0])


def test_a_decoder_learns_the_target_only(chat):
    made = encoder(TABLE, chat, RECIPE)
    batch, tokenizer = made.encode(np.array([0]), None), chat.tokenizer
    labels = batch.labels[0]
    assert spelled(tokenizer, labels[labels != -100]) == "雪和冰<|im_end|>"
    ids = batch.inputs["input_ids"][0]
    assert spelled(tokenizer, ids) == (
        "<|im_start|>user\nTranslate 翻译:\nsnow and ice<|im_end|>\n<|im_start|>assistant\n雪和冰<|im_end|>\n"
    )
    prompt = source_ids("snow and ice", chat, RECIPE)
    assert ids[: len(prompt)].tolist() == prompt and labels[len(prompt) - 1] == ids[len(prompt)] != -100
    assert (labels[: len(prompt) - 1] == -100).all()


def test_the_request_can_be_given(chat, sides):
    recipe = DataRecipe(task="summarisation", prompt="总结：{source}！")
    assert "总结:snow" not in spelled(chat.tokenizer, source_ids("snow", chat, recipe))
    assert request("snow", recipe) == "总结：snow！" and request("snow", RECIPE) == "snow"
    assert request("{source}", recipe) == "总结：{source}！"
    made = encoder(TABLE, chat, DataRecipe(task="summarisation"))
    assert "Summarise 总结:\nrain" in spelled(chat.tokenizer, made.encode(np.array([1]), None).inputs["input_ids"][0])
    assert source_ids("rain", sides, DataRecipe(prompt="ice {source}")) == source_ids("ice rain", sides, RECIPE)
    with pytest.raises(RecipeError, match=r"data\.prompt got 'Translate:', expected \{source\} in it"):
        encoder(TABLE, chat, DataRecipe(prompt="Translate:"))


def test_a_long_source_is_cut_so_that_the_target_is_whole(chat):
    table = pa.table({"source": ["rain " * 40, "rain"], "target": ["雪和冰", "雨"]})
    made = encoder(table, TextPreprocess(tokenizer=chat.tokenizer, max_length=70), RECIPE)
    batch = made.encode(np.array([0]), None)
    assert spelled(chat.tokenizer, batch.labels[0][batch.labels[0] != -100]) == "雪和冰<|im_end|>"
    assert batch.inputs["input_ids"].shape[1] <= 70 and made.truncated == 1 and made.kept.tolist() == [0, 1]
    assert made.warnings == ["1 of 2 sources were cut so that the target fits in as well, e.g. row 1 of the split"]
    assert len(source_ids("rain " * 40, TextPreprocess(tokenizer=chat.tokenizer, max_length=70), RECIPE)) <= 53


def test_a_decoder_without_a_template_gets_one():
    tokenizer = train_tokenizer(TEXTS, "char", 90, "causal")
    made = encoder(TABLE, TextPreprocess(tokenizer=tokenizer, max_length=128), RECIPE)
    assert "the chat template was missing" in made.warnings[0] and len(made.kept) == 2
