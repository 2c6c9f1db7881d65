"""Tagged tokens to batches: each word's tag stands at its first sub-token, the word's other ones count nothing (-100).

The words go to the model's own tokenizer one by one (Devlin et al., "BERT", 2019, section 5.3). A tokenizer that takes a space
before a word into its token (byte-level BPE, as of GPT-2 and RoBERTa) gets words with that space, as they stood in the texts
that its model was trained on; between Chinese characters there is none.

What has no sub-token to stand at is counted and told: words behind max_length, words that the tokenizer drops (of control
characters, say). They are neither learned nor measured.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from frostline.data.loader import Encoded
from frostline.data.preprocess import TextPreprocess
from frostline.data.token_rows import IGNORED, TokenRows, token_rows
from frostline.data.too_long import settle
from frostline.errors import DataError
from frostline.recipe import DataRecipe

_TEXTS_AT_ONCE = 1000
_UNSPACED = re.compile("[\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\uff65\U00020000-\U0003ffff]")


def encoder(table: pa.Table, preprocess: TextPreprocess, recipe: DataRecipe) -> Encoded:
    """The batches of a split."""
    words, tags = table["tokens"].to_pylist(), table["label"].to_pylist()
    ids, firsts, cut = tokenized(words, preprocess)
    lost = [sum(place is None for place in row) for row in firsts]
    kept, warnings = settle(cut, len(words), preprocess.max_length, recipe.too_long, "row")
    behind = [row for row in kept if row in cut and firsts[row][-1] is None]
    if behind:
        count = sum(_behind(firsts[row]) for row in behind)
        warnings.append(f"{count} tokens of {len(behind)} rows stand behind max_length and are neither learned nor measured")
    dropped = sum(lost[row] for row in kept) - sum(_behind(firsts[row]) for row in behind)
    if dropped:
        warnings.append(f"{dropped} tokens give nothing in the model's vocabulary and are neither learned nor measured")
    empty = [row for row in kept if lost[row] == len(firsts[row])]
    if empty:
        warnings.append(f"{len(empty)} rows without a token that can be learned are left out, e.g. row {empty[0] + 1} of the split")
        kept = [row for row in kept if lost[row] < len(firsts[row])]
    if not kept:
        raise DataError(f"none of the {len(words)} rows has a token that can be learned. Check data.input_column and data.max_length")
    labels = []
    for row in kept:
        labels.append([IGNORED] * len(ids[row]))
        for place, tag in zip(firsts[row], tags[row], strict=True):
            if place is not None:
                labels[-1][place] = tag
    made = token_rows([ids[row] for row in kept], labels, kept, len(cut & set(kept)), warnings)
    return made.encoded(preprocess)


def encode_words(words: Sequence[Sequence[str]], preprocess: TextPreprocess) -> tuple[dict[str, Any], list[list[int | None]]]:
    """``(inputs, places)`` for prediction: ``places[row][i]`` is the position of word i's tag, None where it has none."""
    ids, firsts, _ = tokenized(words, preprocess)
    made: TokenRows = token_rows(ids, [[IGNORED] * len(row) for row in ids], list(range(len(ids))), 0, [])
    return made.encoded(preprocess).encode(np.arange(len(ids)), None).inputs, firsts


def tokenized(words: Sequence[Sequence[str]], preprocess: TextPreprocess) -> tuple[list[list[int]], list[list[int | None]], set[int]]:
    """``(ids, position of each word's first sub-token or None, rows that were cut)``."""
    tokenizer = preprocess.tokenizer
    spaced = _takes_spaces(tokenizer)
    ids: list[list[int]] = []
    firsts: list[list[int | None]] = []
    cut: set[int] = set()
    for start in range(0, len(words), _TEXTS_AT_ONCE):
        some = [_with_spaces(row) if spaced else list(row) for row in words[start : start + _TEXTS_AT_ONCE]]
        made = tokenizer(some, is_split_into_words=True, truncation=True, max_length=preprocess.max_length, padding=False)
        for row, (own, encoding) in enumerate(zip(made["input_ids"], made.encodings, strict=True), start):
            places: list[int | None] = [None] * len(words[row])
            for place, word in reversed(list(enumerate(encoding.word_ids))):
                if word is not None:
                    places[word] = place
            ids.append(own or [tokenizer.pad_token_id or 0])
            firsts.append(places)
            if encoding.overflowing:
                cut.add(row)
    return ids, firsts, cut


def joined(words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """The words as one text, with spaces where they are usual, and where each of them stands in it.

    >>> joined(["李", "明", "in", "York"])
    ('李明in York', [(0, 1), (1, 2), (2, 4), (5, 9)])
    """
    text = ""
    places: list[tuple[int, int]] = []
    for word, spaced in zip(words, _with_spaces(words), strict=True):
        text += spaced
        places.append((len(text) - len(word), len(text)))
    return text, places


def _behind(places: list[int | None]) -> int:
    """How many words stand behind the last one that has a place."""
    return next((count for count, place in enumerate(reversed(places)) if place is not None), len(places))


def _takes_spaces(tokenizer: Any) -> bool:
    """Whether a word in a text is another token than the same word alone, and the same one with a space before it."""

    def ids(text: str | list[str]) -> list[int]:
        return tokenizer(text, is_split_into_words=isinstance(text, list), add_special_tokens=False)["input_ids"]

    return ids("a a") != ids(["a", "a"]) and ids("a a") == ids(["a", " a"])


def _with_spaces(words: Sequence[str]) -> list[str]:
    """Each word but the first with the space that parts it from the one before, where that is usual."""
    return [
        word
        if place == 0 or not word or _UNSPACED.match(word) or (words[place - 1] and _UNSPACED.match(words[place - 1][-1]))
        else f" {word}"
        for place, word in enumerate(words)
    ]
