from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from frostline.data.chat_encoder import chat_rows, encoder, read_conversations
from frostline.data.chat_template import render
from frostline.data.preprocess import TextPreprocess
from frostline.data.token_rows import IGNORED
from frostline.errors import DataError
from frostline.recipe import DataRecipe
from tests.data.chat_tokenizers import chat_tokenizer, plain_tokenizer

ASK, ANSWER = {"role": "user", "content": "法国的首都？"}, {"role": "assistant", "content": "巴黎 Paris."}


def table(*conversations, tools=None):
    """A split's table of lists of messages."""
    columns = {
        "id": [str(row) for row in range(len(conversations))],
        "origin": [f"对话.jsonl:{row + 1}" for row in range(len(conversations))],
        "messages": [json.dumps(messages, ensure_ascii=False) for messages in conversations],
        "tools": pa.array([tools and json.dumps(tools)] * len(conversations), pa.string()),
    }
    return pa.table(columns)


@pytest.fixture(scope="module")
def chatml():
    return chat_tokenizer("chatml")


def test_labels_are_the_next_trained_tokens(chatml):
    rows = chat_rows(table([ASK, ANSWER], [ASK, ANSWER, ASK, ANSWER]), chatml, max_length=500)
    assert rows.kept.tolist() == [0, 1] and rows.warnings == [] and rows.truncated == 0
    for row, (start, end) in enumerate(zip(rows.offsets, rows.offsets[1:], strict=False)):
        ids, labels = rows.ids[start:end].tolist(), rows.labels[start:end].tolist()
        rendered = render([ASK, ANSWER] * (row + 1), None, chatml)
        assert ids == rendered.ids
        assert labels == [i if t else IGNORED for i, t in zip(rendered.ids[1:], rendered.trained[1:], strict=True)] + [IGNORED]
        assert chatml.decode([label for label in labels if label != IGNORED]) == f"{ANSWER['content']}<|im_end|>" * (row + 1)


def test_padding_is_the_end_token_and_the_end_token_is_trained(chatml):
    made = encoder(table([ASK, ANSWER], [ASK, ANSWER, ASK, ANSWER]), TextPreprocess(tokenizer=chatml, max_length=500), DataRecipe())
    batch = made.encode(np.array([0, 1]), 0)
    assert chatml.pad_token_id == chatml.eos_token_id
    assert (batch.labels == chatml.eos_token_id).sum(1).tolist() == [1, 2]
    assert batch.inputs["attention_mask"].sum(1).tolist() == made.lengths.tolist()
    assert (batch.labels[0, made.lengths[0] - 1 :] == IGNORED).all()


def test_an_answer_cut_by_the_limit(chatml):
    whole = render([ASK, ANSWER], None, chatml)
    limit = whole.trained.index(True) + 3
    rows = chat_rows(table([ASK, ANSWER]), chatml, max_length=limit)
    assert rows.ids.tolist() == whole.ids[:limit] and rows.truncated == 1
    assert rows.labels.tolist()[-4:] == [*whole.ids[limit - 3 : limit], IGNORED]
    assert rows.warnings == [
        f"1 of 1 conversations were cut to {limit} tokens (data.max_length), e.g. 对话.jsonl:1",
        "1 of 1 conversations never train the token that ends an answer (the template writes none there, or the cut took it), "
        "e.g. 对话.jsonl:1",
    ]


def test_a_cut_that_takes_all_trained_tokens(chatml):
    longer = [{**ASK, "content": "很长" * 50}, ANSWER]
    rows = chat_rows(table(longer, [ASK, ANSWER]), chatml, max_length=100)
    assert rows.kept.tolist() == [1]
    assert rows.warnings == [
        "1 of 2 conversations lost all their trained tokens to the cut at 100 tokens and were dropped; raise data.max_length, "
        "e.g. 对话.jsonl:1"
    ]
    with pytest.raises(DataError, match=r"none of the 1 conversations has a token to train: 1 of 1 conversations lost all"):
        chat_rows(table(longer), chatml, max_length=100)


def test_too_long_is_dropped_or_refused(chatml):
    longer = [ASK, ANSWER] * 5
    rows = chat_rows(table([ASK, ANSWER], longer), chatml, max_length=100, too_long="drop")
    assert rows.kept.tolist() == [0] and rows.truncated == 0
    assert rows.warnings == ["1 of 2 conversations are longer than 100 tokens (data.max_length) and were dropped, e.g. 对话.jsonl:2"]
    with pytest.raises(DataError, match=r"对话.jsonl:2: the conversation has \d+ tokens, expected at most 100 \(data.max_length\)"):
        chat_rows(table([ASK, ANSWER], longer), chatml, max_length=100, too_long="refuse")


def test_what_ends_with_the_user_or_has_no_answer(chatml):
    rows = chat_rows(table([ASK, ANSWER, ASK], [ASK]), chatml, max_length=500)
    assert rows.kept.tolist() == [0]
    assert rows.warnings == [
        "1 of 2 conversations have no token to train and were dropped, e.g. 对话.jsonl:2",
        "2 of 2 conversations end with another turn than the assistant's; that turn trains nothing, e.g. 对话.jsonl:1",
    ]


def test_a_role_order_that_the_template_refuses():
    rows = chat_rows(table([ASK, ANSWER], [ASK, ASK, ANSWER]), chat_tokenizer("gemma"), max_length=500)
    assert rows.kept.tolist() == [0]
    assert rows.warnings == [
        "1 of 2 conversations are refused by the chat template and were dropped, e.g. 对话.jsonl:2 "
        "(Conversation roles must alternate user/assistant/user/assistant/...)"
    ]


def test_a_begin_token_twice_and_an_end_that_is_never_written():
    tokenizer = chat_tokenizer("vicuna")
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template.replace("+ eos_token", "+ '\n'")
    rows = chat_rows(table([ASK, ANSWER]), tokenizer, max_length=500)
    assert [warning.partition(" (")[0].partition(";")[0] for warning in rows.warnings] == [
        "1 of 1 conversations never train the token that ends an answer",
        "1 of 1 conversations have the begin token twice at their start",
    ]


def test_a_template_that_is_missing_and_tools_that_it_leaves_out():
    tokenizer = plain_tokenizer("bytes", None, "</s>")
    tools = [{"type": "function", "function": {"name": "weather"}}]
    rows = chat_rows(table([ASK, ANSWER], tools=tools), tokenizer, max_length=500)
    assert rows.warnings[0].startswith("the chat template was missing and ChatML was chosen")
    assert rows.warnings[1:] == ["1 of 1 conversations have tools that the template leaves out, e.g. 对话.jsonl:1"]
    assert chat_rows(table([ASK, ANSWER]), tokenizer, max_length=500).warnings == []


def test_answers_that_are_asked_for_otherwise():
    (warning,) = chat_rows(table([ASK, ANSWER]), chat_tokenizer("deepseek"), max_length=500).warnings
    assert "do not stand behind just what generation is asked with" in warning


def test_train_on_and_too_long_come_from_the_recipe(chatml):
    rows = table([ASK, ANSWER, ASK, ANSWER])
    preprocess = TextPreprocess(tokenizer=chatml, max_length=500)
    counts = [
        int((encoder(rows, preprocess, DataRecipe(train_on=which)).encode(np.array([0]), None).labels != IGNORED).sum())
        for which in ("last", "assistant", "all")
    ]
    assert counts[1] == 2 * counts[0]
    assert counts[2] == encoder(rows, preprocess, DataRecipe()).lengths[0] - 1
    with pytest.raises(DataError, match="expected at most 10"):
        encoder(rows, TextPreprocess(tokenizer=chatml, max_length=10), DataRecipe(too_long="refuse"))


def test_conversations_are_read_back():
    tools = [{"name": "f"}]
    assert list(read_conversations(table([ASK, ANSWER], tools=tools))) == [([ASK, ANSWER], tools)]


def test_rows_without_a_place_are_counted_from_one(chatml):
    rows = table([ASK, ANSWER], [ASK, ANSWER] * 30).drop_columns(["origin"])
    with pytest.raises(DataError, match=r"^row 2 of the split: the conversation has"):
        encoder(rows, TextPreprocess(tokenizer=chatml, max_length=200), DataRecipe(too_long="refuse"))
