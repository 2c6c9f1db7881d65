"""One split of a dataset, ready to be batched for a given model: the one place that joins rows and a model's preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from frostline.data.dataset import Schema, labels_tensor
from frostline.data.loader import Encode, Encoded, spread
from frostline.data.preprocess import ImagePreprocess, TextPreprocess
from frostline.device import CPU
from frostline.errors import DataError
from frostline.recipe import AugmentRecipe, DataRecipe

_ROWS, _MOST_UNKNOWN = 64, 0.2
"""Rows that are looked at for unknown tokens, and the share of these that is told of: names and rare words make a few."""


@dataclass(kw_only=True)
class SplitSource:
    """How to make batches of one split; rows, labels and lengths of the whole stay with the processor."""

    table: pa.Table
    schema: Schema
    encode: Encode
    lengths: np.ndarray | None = None
    """Tokens of each row, for texts."""
    truncated: float | None = None
    """Share of the texts that were cut to the longest length."""
    warnings: list[str] = field(default_factory=list)
    """What must be told of the labels of tokens, each with a count and an example."""
    row_labels: np.ndarray | None = None
    """What each row is measured by where it is no label of the table: of documents the bytes, of pairs of texts scores or identities."""
    views: int | None = None
    """Random views of each image that training takes in turn; None: images as they are, or changed anew in every epoch."""

    device: torch.device = CPU
    """Where its batches are."""

    @property
    def rows(self) -> int:
        return self.table.num_rows

    def to(self, device: torch.device) -> SplitSource:
        """Itself; from now on whoever makes a batch takes it there."""
        if device != self.device:
            encode, self.device = self.encode, device
            self.encode = lambda rows, epoch: encode(rows, epoch).to(device)
        return self

    @cached_property
    def labels(self) -> Tensor:
        """The labels of all rows, as a Batch holds them; for documents, whose labels are tokens, the bytes of each row."""
        if self.row_labels is not None:
            return torch.from_numpy(self.row_labels)
        return labels_tensor(self.table, self.schema)


def split_source(
    table: pa.Table,
    schema: Schema,
    preprocess: ImagePreprocess | TextPreprocess,
    *,
    recipe: DataRecipe | None = None,
    augment: AugmentRecipe | None = None,
    seed: int = 0,
    name: str | None = None,
) -> SplitSource:
    """The source of one split; ``augment`` for the training split only. ``recipe``: what else was set for data.

    ``name``: the split's, for the DataError that is raised where none of its rows can be used.
    """
    recipe = recipe or DataRecipe()
    if isinstance(preprocess, ImagePreprocess):
        from frostline.data.image_encoder import image_encoder

        encode = image_encoder(table, schema, preprocess, max_pixels=recipe.max_pixels, augment=augment, seed=seed)
        views = augment.views if augment is not None and augment.random else None
        return SplitSource(table=table, schema=schema, encode=encode, views=views)
    if schema.task == "text-classification":
        from frostline.data.text_encoder import text_encoder

        encode, lengths, truncated = text_encoder(table, schema, preprocess)
        source = SplitSource(table=table, schema=schema, encode=encode, lengths=lengths, truncated=truncated)
        source.warnings = _warnings(source, preprocess)
        return source
    try:
        made = _rows_encoder(schema.task)(table, preprocess, recipe)
    except DataError as error:
        raise DataError(f"the {name} split: {error}" if name else str(error)) from error
    if schema.task == "causal-lm":  # a document gives many blocks, and its text would be copied for each of them
        table = table.drop_columns(["text"])
    source = SplitSource(
        table=table.take(pa.array(made.kept)),
        schema=schema,
        encode=made.encode,
        lengths=made.lengths,
        truncated=made.truncated / max(1, table.num_rows),
        warnings=made.warnings,
        row_labels=made.row_labels,
    )
    source.warnings = [*made.warnings, *_warnings(source, preprocess)]
    return source


def _warnings(source: SplitSource, preprocess: TextPreprocess) -> list[str]:
    """What a user must know of a split's tokens, whatever the task: cuts, where the task does not tell of them, and unknown ones."""
    found = []
    if source.truncated and not source.warnings:
        found.append(
            f"{source.truncated:.1%} of the training texts are longer than {preprocess.max_length} tokens and are cut. "
            "Raise data.max_length if the end matters"
        )
    if (share := _unknown(source, preprocess)) > _MOST_UNKNOWN:
        found.append(
            f"{share:.0%} of the training texts' tokens are unknown to the model ({preprocess.tokenizer.unk_token}): "
            "it was not made for this language or script. Choose another with model.name"
        )
    return found


def _unknown(source: SplitSource, preprocess: TextPreprocess) -> float:
    """The share of unknown tokens in some rows; 0 where the tokenizer has no token for these alone."""
    tokenizer = preprocess.tokenizer
    others = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    if not source.rows or tokenizer.unk_token_id is None or tokenizer.unk_token_id in others:
        return 0.0
    inputs = source.encode(spread(source.rows, _ROWS), None).inputs
    real = inputs["attention_mask"].bool() if "attention_mask" in inputs else torch.ones_like(inputs["input_ids"], dtype=torch.bool)
    return float((inputs["input_ids"][real] == tokenizer.unk_token_id).float().mean())


def _rows_encoder(task: str) -> Callable[[pa.Table, TextPreprocess, DataRecipe], Encoded]:
    """What makes a task's batches of tokens; it may drop rows, and says which it kept."""
    from frostline.data import chat_encoder, document_encoder, embedding_encoder, parallel_encoder, preference_encoder, tag_encoder

    encoders = {
        "chat": chat_encoder,
        "causal-lm": document_encoder,
        "token-classification": tag_encoder,
        "translation": parallel_encoder,
        "summarisation": parallel_encoder,
        "preference": preference_encoder,
        "reward": preference_encoder,
        "embedding": embedding_encoder,
    }
    return encoders[task].encoder
