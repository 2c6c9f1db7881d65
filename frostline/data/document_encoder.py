"""Documents to blocks of tokens for causal language modelling.

All documents of a split are laid end to end, in the order of its table, each followed by the tokenizer's end token (and begun
by its begin token, if it gives texts one): the stream t_0 t_1 … t_n starts with a separator too, so that the first document's
first token is predicted from something. Block k holds the inputs t_p and the labels t_{p+1} of max_length positions p, so
every token but the first separator is a label exactly once, also the first token of a block: the block before ends on it.
Nothing is cut away and nothing is padded but the last block. Attention may look across a separator within a block, as in the
training of GPT-2 and GPT-3 (Brown et al., "Language models are few-shot learners", 2020, section 2.4: the end token is there for
the model to learn that what stands before it says nothing about what follows).

Bits per byte need the bytes that a block's labels stand for. A token stands for the characters from where the token before it
ends to where it ends itself, and the last one for the rest of the document, so that the bytes of a document's tokens add up to
the document's, whatever a normaliser drops or how many tokens one character takes. Separators stand for nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from frostline.data.loader import Encoded
from frostline.data.preprocess import TextPreprocess
from frostline.data.token_rows import TokenRows
from frostline.errors import DataError
from frostline.recipe import DataRecipe

_TEXTS_AT_ONCE = 500


def encoder(table: pa.Table, preprocess: TextPreprocess, recipe: DataRecipe) -> Encoded:
    """The blocks of a split. ``kept`` gives for each block the document of its first label."""
    tokenizer = preprocess.tokenizer
    parts, empty = _documents(table["text"].to_pylist(), tokenizer)
    if not parts:
        raise DataError(f"none of the {table.num_rows} documents gives a token, expected text. Check data.input_column")
    before, behind, warnings = separators(tokenizer)
    if empty:
        warnings.append(f"{len(empty)} documents give no token and are left out, e.g. row {empty[0] + 1} of the split")
    stream, sizes, owners = _end_to_end(parts, before, behind)
    if len(stream) < 2:
        raise DataError(f"the {table.num_rows} documents give one token in all, expected at least two. Add text")
    starts = np.append(np.arange(0, len(stream) - 1, preprocess.max_length), len(stream) - 1)
    rows = TokenRows(ids=stream[:-1], labels=stream[1:], offsets=starts, kept=owners[starts[:-1] + 1], warnings=warnings)
    return replace(rows.encoded(preprocess), row_labels=np.add.reduceat(sizes[1:], starts[:-1]))


def separators(tokenizer: Any) -> tuple[list[int], list[int], list[str]]:
    """What stands before and behind a document, and warnings where there is nothing."""
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    before = [begin] if begin is not None and begin in tokenizer("")["input_ids"] else []
    if end is None:
        end = tokenizer.sep_token_id
    if end is not None:
        return before, [end], []
    if before:
        return before, [], ["the tokenizer has no end token: documents are parted by its begin token alone, and generation will not stop"]
    return [], [], ["the tokenizer has no end token: documents are laid end to end with nothing between them"]


def _documents(texts: list[str], tokenizer: Any) -> tuple[list[tuple[int, np.ndarray, np.ndarray]], list[int]]:
    """``(row, ids, bytes of each token)`` of the documents that give tokens, and the rows that give none."""
    found, empty = [], []
    for first in range(0, len(texts), _TEXTS_AT_ONCE):
        some = texts[first : first + _TEXTS_AT_ONCE]
        made = tokenizer(some, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
        for row, (text, ids, offsets) in enumerate(zip(some, made["input_ids"], made["offset_mapping"], strict=True), first):
            if ids:
                found.append((row, np.asarray(ids, np.int32), token_bytes(text, np.asarray(offsets, np.int64)[:, 1])))
            else:
                empty.append(row)
    return found, empty


def token_bytes(text: str, ends: np.ndarray) -> np.ndarray:
    """int64 (tokens,): UTF-8 bytes that each token stands for, from where the tokens end in the text; they add up to the text's.

    >>> token_bytes("a 好!", np.array([1, 3, 3, 4])).tolist()
    [1, 4, 0, 1]
    """
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    until = np.concatenate([[0], np.cumsum(1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF))])  # bytes before each character
    reached = np.maximum.accumulate(ends)
    reached[-1] = len(text)
    return np.diff(until[reached], prepend=0)


def _end_to_end(
    parts: list[tuple[int, np.ndarray, np.ndarray]], before: list[int], behind: list[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The stream's ids (int32), the bytes of each token, and the row that it belongs to (both int64)."""
    first = [] if before else behind
    ids: list[np.ndarray] = [np.asarray(first, np.int32)]
    sizes: list[np.ndarray] = [np.zeros(len(first), np.int64)]
    owners: list[np.ndarray] = [np.full(len(first), parts[0][0])]
    head, tail = np.asarray(before, np.int32), np.asarray(behind, np.int32)
    for row, tokens, lengths in parts:
        ids += [head, tokens, tail]
        sizes += [np.zeros(len(head), np.int64), lengths, np.zeros(len(tail), np.int64)]
        owners.append(np.full(len(head) + len(tokens) + len(tail), row))
    return np.concatenate(ids), np.concatenate(sizes), np.concatenate(owners)
