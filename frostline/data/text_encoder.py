"""Texts to batches of token ids.

A split is tokenized once, by the model's own tokenizer, and kept as one flat array of ids with offsets, so an epoch costs
copies only. Rows are cut to ``max_length`` (special tokens included) by the tokenizer and padded on the right to the longest
row of the batch. Padding goes by length and never looks for the pad id, so a text that holds that id is not cut (law 5).
Training and prediction share this code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from frostline.data.dataset import Schema, labels_tensor
from frostline.data.loader import Batch, Encode
from frostline.data.preprocess import TextPreprocess
from frostline.errors import DataError

_TEXTS_AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True)
class _Tokens:
    """Rows of different lengths in one array: row i is ``ids[offsets[i] : offsets[i + 1]]``."""

    ids: np.ndarray
    """int32 (all tokens,)."""
    offsets: np.ndarray
    """int64 (rows + 1,)."""
    truncated: int
    """How many rows were cut."""

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)


def text_encoder(table: pa.Table, schema: Schema, preprocess: TextPreprocess) -> tuple[Encode, np.ndarray, float]:
    """``(encode, tokens of each row, share of the rows that were cut)`` of one split's table."""
    tokens = _tokenize(table["text"].to_pylist(), preprocess)
    labels = labels_tensor(table, schema)

    def encode(rows: np.ndarray, epoch: int | None) -> Batch:
        index = torch.as_tensor(np.asarray(rows, dtype=np.int64))
        return Batch(inputs=_pad(tokens, index.numpy(), preprocess), labels=labels[index], rows=index)

    return encode, tokens.lengths, tokens.truncated / max(1, table.num_rows)


def encode_texts(texts: Sequence[str], preprocess: TextPreprocess) -> dict[str, torch.Tensor]:
    """The network's inputs for texts as they come, in one batch."""
    if not texts:
        raise DataError("encode_texts got no texts, expected at least one")
    return _pad(_tokenize(texts, preprocess), np.arange(len(texts)), preprocess)


def _tokenize(texts: Sequence[str | None], preprocess: TextPreprocess) -> _Tokens:
    parts: list[list[int]] = []
    truncated = 0
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        some = [text or "" for text in texts[start : start + _TEXTS_AT_ONCE]]
        encoded = preprocess.tokenizer(some, truncation=True, max_length=preprocess.max_length, padding=False)
        parts += [ids or _stand_in(preprocess) for ids in encoded["input_ids"]]
        truncated += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
    lengths = np.fromiter((len(part) for part in parts), np.int64, len(parts))
    ids = np.fromiter((token for part in parts for token in part), np.int32, int(lengths.sum()))
    return _Tokens(ids=ids, offsets=np.concatenate([[0], np.cumsum(lengths)]), truncated=truncated)


def _stand_in(preprocess: TextPreprocess) -> list[int]:
    """One token for a text that has none: a row without any would make attention divide by zero."""
    tokenizer = preprocess.tokenizer
    return [next((token for token in (tokenizer.unk_token_id, tokenizer.pad_token_id) if token is not None), 0)]


def _pad(tokens: _Tokens, rows: np.ndarray, preprocess: TextPreprocess) -> dict[str, torch.Tensor]:
    lengths = tokens.lengths[rows]
    width = int(lengths.max(initial=0))
    real = np.arange(width) < lengths[:, None]  # (rows, width)
    places = tokens.offsets[rows][:, None] + np.arange(width)
    pad = preprocess.tokenizer.pad_token_id
    ids = np.full((len(rows), width), pad if pad is not None else 0, np.int64)
    ids[real] = tokens.ids[places[real]]
    made = {"input_ids": ids, "attention_mask": real.astype(np.int64), "token_type_ids": np.zeros_like(ids)}
    unknown = [name for name in preprocess.inputs if name not in made]
    if unknown:
        raise DataError(
            f"the model wants the input {unknown[0]!r}, but a text gives only {', '.join(made)}. Choose another model with model.name"
        )
    return {name: torch.from_numpy(made[name]) for name in preprocess.inputs}
