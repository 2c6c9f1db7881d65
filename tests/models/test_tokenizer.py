from __future__ import annotations

import json

import pytest

from frostline.errors import ModelError
from frostline.models.tokenizer import train_tokenizer

TEXTS = ["This film isn't good.", "这部电影非常好看,我喜欢", "这部电影非常难看！", "非常 good", "Это хорошо"] * 4


KINDS = ["word", "char", "bpe", "wordpiece", "unigram"]


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_chinese_and_length(kind: str) -> None:
    tokenizer = train_tokenizer(TEXTS, kind, 400)
    assert [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id] == [0, 1, 2]
    assert len(tokenizer) <= 400
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == 2
        assert kind == "unigram" or not {0, 1} & set(ids[1:]), "unigram keeps characters by their weight"
    assert tokenizer("")["input_ids"] == [2]
    assert len(tokenizer("非常" * 50, truncation=True, max_length=7)["input_ids"]) == 7


def test_words() -> None:
    tokenizer = train_tokenizer(TEXTS, "word", 400)
    assert tokenizer.tokenize("THIS isn't 好看！ゲーム") == ["this", "isn", "'", "t", "好", "看", "!", "[UNK]"]
    assert tokenizer.tokenize("Хорошо") == ["хорошо"]


def test_characters() -> None:
    tokenizer = train_tokenizer(TEXTS, "char", 400)
    assert tokenizer.tokenize("  Go\n\nod 看") == ["g", "o", " ", "o", "d", " ", "看"]


def test_bytes_know_every_text_and_merge_chinese_words() -> None:
    tokenizer = train_tokenizer(TEXTS, "bpe", 400)
    assert "[UNK]" not in tokenizer.tokenize("😀 never seen — 龘")
    assert tokenizer.decode(tokenizer("龘 seen Ａ")["input_ids"], skip_special_tokens=True).strip() == "龘 seen A"
    assert len(tokenizer.tokenize("非常")) < len("非常".encode())


@pytest.mark.parametrize("kind", KINDS)
def test_a_function_of_the_texts(kind: str) -> None:
    first, *others = (json.loads(train_tokenizer(iter(TEXTS), kind, 300).backend_tokenizer.to_str()) for _ in range(4))
    assert all(other == first for other in others)


@pytest.mark.parametrize("kind", KINDS)
def test_a_causal_tokenizer_adds_nothing_and_knows_the_template(kind: str) -> None:
    tokenizer = train_tokenizer(TEXTS, kind, 400, "causal", chat=True)
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token, tokenizer.bos_token) == (0, 1, "<|im_end|>", None)
    assert tokenizer("")["input_ids"] == []
    ids = tokenizer("<|im_start|>非常<|im_end|>")["input_ids"]
    assert (ids[0], ids[-1]) == (3, 4)
    assert train_tokenizer(TEXTS, kind, 400, "causal").eos_token == "<|endoftext|>"


@pytest.mark.parametrize("kind", KINDS)
def test_a_seq2seq_text_ends(kind: str) -> None:
    tokenizer = train_tokenizer(TEXTS, kind, 400, "seq2seq")
    ids = tokenizer("非常 good")["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id == 3
    assert tokenizer.bos_token_id == 2
    assert tokenizer("")["input_ids"] == [3]
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == "非常good"


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_text_that_is_written_is_the_text_that_was_read(kind: str) -> None:
    texts = ["Ａ  film,\n\tGood! 好", *TEXTS]
    tokenizer = train_tokenizer(texts, kind, 400, "causal")
    for text in texts:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_pieces_of_words() -> None:
    tokenizer = train_tokenizer(["planning plan plan planned 计划 计划"] * 4, "wordpiece", 60)
    assert tokenizer.tokenize("Plan planning 计划") == ["plan", "planning", "计", "划"]
    assert tokenizer.tokenize("planp")[:2] == ["plan", "##p"]
    assert len(train_tokenizer(TEXTS, "wordpiece", 12)) == 12


def test_pieces_that_make_the_text_likely() -> None:
    tokenizer = train_tokenizer(["非常好 非常好 非常坏 好 坏"] * 9, "unigram", 20)
    assert tokenizer.tokenize("非常好")[-2:] in (["▁非常", "好"], ["非常", "好"]) or "▁非常好" in tokenizer.tokenize("非常好")


def test_the_most_frequent_words_stay() -> None:
    tokenizer = train_tokenizer(["a a a b b c"], "word", 5)
    assert set(tokenizer.get_vocab()) == {"[PAD]", "[UNK]", "[CLS]", "a", "b"}


def test_bad_arguments() -> None:
    with pytest.raises(ModelError, match=r"model.tokenizer got 'words', expected one of word, char, bpe, wordpiece, unigram"):
        train_tokenizer(TEXTS, "words", 400)
    with pytest.raises(ModelError, match=r"model.vocabulary got 100, expected at least 259 for 'bpe'"):
        train_tokenizer(TEXTS, "bpe", 100)
    with pytest.raises(
        ModelError, match=r"model.tokenizer got 'unigram' with model.vocabulary 5, which the training rows cannot fill or fit"
    ):
        train_tokenizer(TEXTS, "unigram", 5)
    with pytest.raises(ModelError, match=r"the training split holds no text"):
        train_tokenizer(["", "  "], "word", 100)
