"""Pairs and triplets to batches: row i's k texts (2 or 3) are the sequences k i to k i + k - 1 of the inputs.

Labels say what a loss must know beside the vectors. For pairs with scores they are the scores, float32 (rows,). Else they are
int64 (rows, k): which texts these are, by a number that equal texts share, since a text is no negative of itself: two rows of one
batch may have the same answer.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from frostline.data.loader import Batch, Encoded
from frostline.data.preprocess import TextPreprocess
from frostline.data.token_rows import IGNORED, token_rows
from frostline.data.too_long import settle
from frostline.errors import DataError
from frostline.recipe import DataRecipe

_TEXTS_AT_ONCE = 1000


def encoder(table: pa.Table, preprocess: TextPreprocess, recipe: DataRecipe) -> Encoded:
    """The batches of a split, whose rows are all pairs, all triplets, or all pairs with a score."""
    names = ["first", "second", *(["negative"] if table["negative"].null_count < table.num_rows else [])]
    scored = table["score"].null_count < table.num_rows
    for name, present in (("negative", len(names) == 3), ("score", scored)):
        if present and table[name].null_count:
            raise DataError(
                f"{table[name].null_count} of {table.num_rows} rows have no {name}, the others have one, expected rows of one kind. "
                f"Give the rows without {name} apart"
            )
    columns = [table[name].to_pylist() for name in names]
    several = len(names)
    texts = [text for row in zip(*columns, strict=True) for text in row]
    ids, cut = _tokens(texts, preprocess)
    kept, warnings = settle({place // several for place in cut}, table.num_rows, preprocess.max_length, recipe.too_long, "row")
    if not kept:
        raise DataError(f"all {table.num_rows} rows are longer than max_length={preprocess.max_length}. Use: data.too_long=cut")
    places = [several * row + part for row in kept for part in range(several)]
    flat = token_rows([ids[place] for place in places], [[IGNORED] * len(ids[place]) for place in places], places, 0, [])
    if scored:
        labels = table["score"].to_numpy().astype(np.float32)[kept]
    else:
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        labels = np.array([numbers[texts[place]] for place in places], np.int64).reshape(len(kept), several)
    pad = preprocess.tokenizer.pad_token_id or 0

    def encode(rows: np.ndarray, epoch: int | None) -> Batch:
        index = np.asarray(rows, np.int64)
        sequences = (several * index[:, None] + np.arange(several)).reshape(-1)
        inputs = flat.batch(sequences, pad, preprocess.inputs).inputs
        return Batch(inputs=inputs, labels=torch.from_numpy(labels[index]), rows=torch.from_numpy(index))

    return Encoded(
        encode=encode,
        kept=np.asarray(kept, np.int64),
        lengths=flat.lengths.reshape(len(kept), several).sum(axis=1),
        truncated=len({place // several for place in cut} & set(kept)),
        warnings=warnings,
        row_labels=labels,
    )


def _tokens(texts: list[str], preprocess: TextPreprocess) -> tuple[list[list[int]], list[int]]:
    """The ids of each text, and which were cut. A text without tokens gets one: attention over none would divide by zero."""
    tokenizer = preprocess.tokenizer
    stand_in = tokenizer.unk_token_id if tokenizer.unk_token_id is not None else tokenizer.pad_token_id or 0
    ids: list[list[int]] = []
    cut: list[int] = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        made = tokenizer(texts[start : start + _TEXTS_AT_ONCE], truncation=True, max_length=preprocess.max_length, padding=False)
        ids += [own or [stand_in] for own in made["input_ids"]]
        cut += [place for place, encoding in enumerate(made.encodings, start) if encoding.overflowing]
    return ids, cut
