"""Pairs of answers to batches: the answers' tokens are labelled and no others, whatever is cut."""

from __future__ import annotations

import numpy as np
import pytest

from frostline.data.chat_template import render
from frostline.data.preference_encoder import encode_conversations, encoder
from frostline.data.preprocess import TextPreprocess
from frostline.data.sources import read_object
from frostline.data.text_encoder import encode_texts
from frostline.data.token_rows import IGNORED
from frostline.errors import DataError
from frostline.recipe import DataRecipe
from tests.data.chat_tokenizers import chat_tokenizer

ROWS = [
    {"prompt": "What is it?", "chosen": "Paris. " * 3, "rejected": "坏"},
    {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
     "chosen": "good", "rejected": "bad"},
    {"prompt": "长" * 30, "chosen": "is", "rejected": "not"},
]  # fmt: skip


def table(rows):
    return read_object(rows, DataRecipe(task="preference")).table


def made(rows, tokenizer=None, max_length=500, **options):
    tokenizer = tokenizer or chat_tokenizer("chatml")
    return encoder(table(rows), TextPreprocess(tokenizer=tokenizer, max_length=max_length), DataRecipe(**options)), tokenizer


def learned(batch, row, tokenizer):
    """The text that a row's labels spell."""
    return tokenizer.decode([token for token in batch.labels[row].tolist() if token != IGNORED])


@pytest.mark.parametrize("family", ["chatml", "llama2", "llama3", "gemma", "zephyr"])
def test_the_labels_are_the_answers_and_their_ends(family):
    encoded, tokenizer = made(ROWS[:2], chat_tokenizer(family))
    batch = encoded.encode(np.array([0, 1]), None)
    assert batch.inputs["input_ids"].shape == batch.labels.shape and len(batch.labels) == 4 and batch.rows.tolist() == [0, 1]
    for row, answer in enumerate(["Paris. Paris. Paris.", "坏", "good", "bad"]):
        text = learned(batch, row, tokenizer)
        assert answer in text and text.strip().removeprefix(answer).strip() in ("", *tokenizer.all_special_tokens, "<end_of_turn>")
        ids, labels = batch.inputs["input_ids"][row].tolist(), batch.labels[row].tolist()
        assert all(label in (IGNORED, following) for label, following in zip(labels, ids[1:], strict=False))  # shifted
    assert encoded.kept.tolist() == [0, 1] and not encoded.truncated and not encoded.warnings
    assert encoded.lengths.tolist() == batch.inputs["attention_mask"].view(2, 2, -1).sum((1, 2)).tolist()


def test_an_answer_of_the_prompt_is_not_learned():
    encoded, tokenizer = made(ROWS[1:])
    batch = encoded.encode(np.array([0]), None)
    assert "b<|im_end|>" in tokenizer.decode(batch.inputs["input_ids"][0])
    assert [learned(batch, row, tokenizer) for row in (0, 1)] == ["good<|im_end|>", "bad<|im_end|>"]


def test_a_row_does_not_depend_on_its_batch():
    encoded, _ = made(ROWS)
    together = encoded.encode(np.array([2, 0]), None)
    alone = encoded.encode(np.array([0]), None)
    width = alone.labels.shape[1]
    assert together.labels[2:, :width].tolist() == alone.labels.tolist()
    assert together.inputs["input_ids"][2:, :width].tolist() == alone.inputs["input_ids"].tolist()
    assert not together.inputs["attention_mask"][2:, width:].any()


@pytest.mark.parametrize("family", ["chatml", "llama3"])
def test_a_long_prompt_is_cut_from_the_left_alike_in_both(family):
    tokenizer = chat_tokenizer(family)
    whole, _ = made(ROWS[2:], tokenizer)
    longest = int(whole.encode(np.array([0]), None).inputs["attention_mask"].sum(1).max())
    cut, _ = made(ROWS[2:], tokenizer, longest - 20)
    batch, plain = cut.encode(np.array([0]), None), whole.encode(np.array([0]), None)
    assert cut.truncated == 1 and "the prompts of 1 rows were cut from the left" in cut.warnings[0]
    assert [learned(batch, row, tokenizer) for row in (0, 1)] == [learned(plain, row, tokenizer) for row in (0, 1)]
    chosen, rejected = (
        ids[mask.bool()].tolist() for ids, mask in zip(batch.inputs["input_ids"], batch.inputs["attention_mask"], strict=True)
    )
    assert max(len(chosen), len(rejected)) == longest - 20
    shared = next(i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
    assert tokenizer.decode(chosen[:shared]).count("长") == tokenizer.decode(rejected[:shared]).count("长") > 0
    if family == "llama3":
        assert chosen[0] == rejected[0] == tokenizer.bos_token_id and chosen.count(chosen[0]) == 1


def test_an_answer_that_leaves_no_room_is_dropped_and_counted():
    rows = [ROWS[0], {"prompt": "p", "chosen": "Paris " * 200, "rejected": "x"}]
    encoded, _ = made(rows, max_length=100)
    assert encoded.kept.tolist() == [0]
    assert encoded.warnings == ["1 rows longer than 100 tokens (data.max_length) were dropped, e.g. row:1"]


def test_drop_and_refuse():
    encoded, _ = made(ROWS, max_length=60, too_long="drop")
    assert encoded.kept.tolist() == [0, 1] and encoded.truncated == 0 and "1 rows longer than 60" in encoded.warnings[0]
    expected = r"^row:2: the prompt and an answer have \d+ tokens, expected at most 60 \(data\.max_length\)\. Raise data\.max_length, or"
    with pytest.raises(DataError, match=expected):
        made(ROWS, max_length=60, too_long="refuse")
    preprocess = TextPreprocess(tokenizer=chat_tokenizer("chatml"), max_length=60)
    with pytest.raises(DataError, match=r"^row 3 of the split: the prompt and an answer have"):
        encoder(table(ROWS).drop_columns(["origin"]), preprocess, DataRecipe(too_long="refuse"))
    with pytest.raises(DataError, match="none of 3 rows can be learned from: 3 rows longer than 4 tokens"):
        made(ROWS, max_length=4)


def test_one_answer_has_a_token_without_a_label_beside_it():
    rows = [{"prompt": "p", "completion": "good", "label": True}, {"prompt": "p", "completion": "bad", "label": False}]
    encoded, tokenizer = made(rows)
    batch = encoded.encode(np.array([0, 1]), None)
    assert [learned(batch, row, tokenizer) for row in range(4)] == ["good<|im_end|>", "", "", "bad<|im_end|>"]
    assert batch.inputs["attention_mask"].sum(1).tolist()[1:3] == [1, 1]


def test_a_missing_template_is_chosen_and_told():
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = None
    encoded, _ = made(ROWS, tokenizer)
    assert "the chat template was missing" in encoded.warnings[0]


def test_a_row_that_the_template_refuses_is_counted():
    system = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    encoded, _ = made([{"prompt": system, "chosen": "a", "rejected": "b"}, *ROWS[:1]], chat_tokenizer("gemma"))
    assert (
        encoded.kept.tolist() == [1] and "the chat template refuses 1 rows" in encoded.warnings[0] and "e.g. row:0" in encoded.warnings[0]
    )


def test_whole_conversations_and_texts_are_encoded_as_in_training():
    tokenizer = chat_tokenizer("llama3")
    preprocess = TextPreprocess(tokenizer=tokenizer, max_length=200)
    messages = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "好"}]
    found = encode_conversations([messages, '[{"role": "user", "content": "x"}]', "just a text"], preprocess)
    ids = render(messages, None, tokenizer).ids
    assert found["input_ids"][0, : len(ids)].tolist() == ids and found["attention_mask"].sum(1)[0] == len(ids)
    plain = encode_texts(["just a text"], preprocess)["input_ids"][0].tolist()
    assert found["input_ids"][2, : len(plain)].tolist() == plain
    short = encode_conversations([messages], TextPreprocess(tokenizer=tokenizer, max_length=8))["input_ids"][0].tolist()
    assert short == [ids[0], *ids[-7:]]
    with pytest.raises(DataError, match=r"is no conversation: .* is unknown"):
        encode_conversations([[{"role": "poet", "content": "x"}]], preprocess)
