"""Rows of token ids, of different lengths, kept flat; and the batches that are cut from them.

``labels[i]`` is what position i is to give, -100 where it counts nothing: for a language model the *next* token, shifted here
and nowhere else; for a tagger the tag of token i itself. Padding goes by length and never looks for an id (law 5).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from frostline.data.loader import Batch, Encoded
from frostline.data.preprocess import TextPreprocess

IGNORED = -100
"""The label of a position that counts nothing, as in torch."""


@dataclass(frozen=True, kw_only=True)
class TokenRows:
    """Row i is ``ids[offsets[i] : offsets[i + 1]]``."""

    ids: np.ndarray
    """int32 (all tokens,)."""
    labels: np.ndarray
    """int32 (all tokens,): what each position is to give, or -100."""
    offsets: np.ndarray
    """int64 (rows + 1,)."""
    kept: np.ndarray
    """int64 (rows,): which rows of the split's table these are; the others were dropped, and counted in ``warnings``."""
    truncated: int = 0
    """How many rows were cut."""
    warnings: list[str] = field(default_factory=list)
    """What a user must be told of the labels: cuts, missing end tokens, templates, each with a count and an example."""

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def batch(self, rows: np.ndarray, pad: int, names: tuple[str, ...] = ("input_ids", "attention_mask")) -> Batch:
        """Rows (positions in ``kept``), padded on the right to the longest: inputs and labels int64 (rows, tokens)."""
        index = np.asarray(rows, dtype=np.int64)
        lengths = self.lengths[index]
        real = np.arange(int(lengths.max(initial=0))) < lengths[:, None]  # (rows, tokens)
        places = (self.offsets[index][:, None] + np.arange(real.shape[1]))[real]
        ids, labels = np.full(real.shape, pad, np.int64), np.full(real.shape, IGNORED, np.int64)
        ids[real], labels[real] = self.ids[places], self.labels[places]
        made = {"input_ids": ids, "attention_mask": real.astype(np.int64), "token_type_ids": np.zeros_like(ids)}
        inputs = {name: torch.from_numpy(made[name]) for name in names}
        return Batch(inputs=inputs, labels=torch.from_numpy(labels), rows=torch.from_numpy(index))

    def encoded(self, preprocess: TextPreprocess) -> Encoded:
        """These rows as what a split is batched by."""
        pad = preprocess.tokenizer.pad_token_id or 0
        return Encoded(
            encode=lambda rows, epoch: self.batch(rows, pad, preprocess.inputs),
            kept=self.kept,
            lengths=self.lengths,
            truncated=self.truncated,
            warnings=self.warnings,
        )


def token_rows(ids: list[list[int]], labels: list[list[int]], kept: list[int], truncated: int, warnings: list[str]) -> TokenRows:
    """The flat form of lists."""
    lengths = np.fromiter((len(row) for row in ids), np.int64, len(ids))
    total = int(lengths.sum())
    return TokenRows(
        ids=np.fromiter((token for row in ids for token in row), np.int32, total),
        labels=np.fromiter((label for row in labels for label in row), np.int32, total),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        kept=np.asarray(kept, dtype=np.int64),
        truncated=truncated,
        warnings=warnings,
    )
