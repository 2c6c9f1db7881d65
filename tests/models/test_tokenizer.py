from __future__ import annotations

import json

import pytest

from frostline.errors import ModelError
from frostline.models.tokenizer import train_tokenizer

TEXTS = ["This film isn't good.", "这部电影非常好看,我喜欢", "这部电影非常难看！", "非常 good", "Это хорошо"] * 4


@pytest.mark.parametrize("kind", ["word", "char", "bpe"])
def test_special_tokens_chinese_and_length(kind: str) -> None:
    tokenizer = train_tokenizer(TEXTS, kind, 400)
    assert [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id] == [0, 1, 2]
    assert len(tokenizer) <= 400
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == 2
        assert not {0, 1} & set(ids[1:])
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


@pytest.mark.parametrize("kind", ["word", "char", "bpe"])
def test_a_function_of_the_texts(kind: str) -> None:
    first, second = (train_tokenizer(iter(TEXTS), kind, 300).backend_tokenizer.to_str() for _ in range(2))
    assert json.loads(first) == json.loads(second)


def test_the_most_frequent_words_stay() -> None:
    tokenizer = train_tokenizer(["a a a b b c"], "word", 5)
    assert set(tokenizer.get_vocab()) == {"[PAD]", "[UNK]", "[CLS]", "a", "b"}


def test_bad_arguments() -> None:
    with pytest.raises(ModelError, match=r"model.tokenizer got 'words', expected one of word, char, bpe"):
        train_tokenizer(TEXTS, "words", 400)
    with pytest.raises(ModelError, match=r"model.vocabulary got 100, expected at least 259 for 'bpe'"):
        train_tokenizer(TEXTS, "bpe", 100)
    with pytest.raises(ModelError, match=r"the training split holds no text"):
        train_tokenizer(["", "  "], "word", 100)
