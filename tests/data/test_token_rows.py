"""Rows of token ids become batches: padded by length, whatever the ids are, with their labels beside them."""

from __future__ import annotations

from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from frostline.data.preprocess import TextPreprocess
from frostline.data.token_rows import IGNORED, TokenRows, token_rows

PAD = 9
IDS = [[7, PAD, 3], [PAD], [5, 6, 7, PAD, PAD]]
LABELS = [[PAD, 3, IGNORED], [IGNORED], [6, 7, PAD, PAD, IGNORED]]


@pytest.fixture
def rows() -> TokenRows:
    """Three rows of six, in which the padding token stands as a token like others, also at the end."""
    return token_rows(IDS, LABELS, [0, 2, 5], 1, ["1 of 6 rows was cut"])


def preprocess(inputs: tuple[str, ...] = ("input_ids", "attention_mask"), pad: int | None = PAD) -> TextPreprocess:
    return TextPreprocess(tokenizer=SimpleNamespace(pad_token_id=pad), inputs=inputs)


def test_the_flat_form(rows: TokenRows) -> None:
    assert rows.ids.tolist() == [*chain(*IDS)] and rows.labels.tolist() == [*chain(*LABELS)]
    assert rows.offsets.tolist() == [0, 3, 4, 9] and rows.lengths.tolist() == [3, 1, 5] and rows.kept.tolist() == [0, 2, 5]
    assert (rows.ids.dtype, rows.labels.dtype, rows.offsets.dtype, rows.kept.dtype) == (np.int32, np.int32, np.int64, np.int64)


def test_padded_by_length_even_where_the_padding_token_is_a_token(rows: TokenRows) -> None:
    """Law 5: with pad = eos the end token is still seen and still trained."""
    batch = rows.batch(np.array([2, 0]), PAD)
    assert batch.inputs["input_ids"].tolist() == [IDS[2], [7, PAD, 3, PAD, PAD]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch.labels.tolist() == [LABELS[2], [PAD, 3, IGNORED, IGNORED, IGNORED]]
    assert batch.rows.tolist() == [2, 0]
    assert {tensor.dtype for tensor in (*batch.inputs.values(), batch.labels, batch.rows)} == {torch.int64}


@pytest.mark.parametrize("chosen", [[0], [1], [1, 0], [2, 1, 0], [0, 0]])
def test_a_row_is_the_same_whatever_its_batch_mates(rows: TokenRows, chosen: list[int]) -> None:
    batch = rows.batch(np.array(chosen), PAD)
    assert batch.labels.shape == (len(chosen), max(len(IDS[row]) for row in chosen))
    for place, row in enumerate(chosen):
        real = batch.inputs["attention_mask"][place].bool()
        assert batch.inputs["input_ids"][place][real].tolist() == IDS[row] and batch.labels[place][real].tolist() == LABELS[row]
        assert (batch.labels[place][~real] == IGNORED).all() and (batch.inputs["input_ids"][place][~real] == PAD).all()


def test_no_rows_at_all(rows: TokenRows) -> None:
    assert rows.batch(np.array([], dtype=np.int64), PAD).labels.shape == (0, 0)
    empty = token_rows([], [], [], 0, [])
    assert len(empty.ids) == len(empty.kept) == len(empty.lengths) == 0


def test_encoded_is_what_a_split_is_batched_by(rows: TokenRows) -> None:
    made = rows.encoded(preprocess(("input_ids", "token_type_ids")))
    assert (made.kept.tolist(), made.lengths.tolist(), made.truncated) == ([0, 2, 5], [3, 1, 5], 1)
    assert made.warnings == ["1 of 6 rows was cut"] and made.row_labels is None
    for epoch in (None, 0, 3):
        batch = made.encode(np.array([1, 0]), epoch)
        assert list(batch.inputs) == ["input_ids", "token_type_ids"] and not batch.inputs["token_type_ids"].any()
        assert batch.inputs["input_ids"].tolist() == [[PAD, PAD, PAD], IDS[0]]


def test_a_tokenizer_without_a_padding_token(rows: TokenRows) -> None:
    batch = rows.encoded(preprocess(pad=None)).encode(np.array([1, 0]), None)
    assert batch.inputs["input_ids"].tolist() == [[PAD, 0, 0], IDS[0]] and batch.inputs["attention_mask"].sum(1).tolist() == [1, 3]
