"""One split of a dataset, ready to be batched for a given model: the one place that joins rows and a model's preprocessing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from torch import Tensor

from frostline.data.dataset import Schema, labels_tensor
from frostline.data.loader import Encode
from frostline.data.preprocess import ImagePreprocess, TextPreprocess
from frostline.recipe import AugmentRecipe


@dataclass(kw_only=True)
class SplitSource:
    """How to make batches of one split."""

    table: pa.Table
    schema: Schema
    encode: Encode
    lengths: np.ndarray | None = None
    """Tokens of each row, for texts."""
    truncated: float | None = None
    """Share of the texts that were cut to the longest length."""

    @property
    def rows(self) -> int:
        return self.table.num_rows

    @cached_property
    def labels(self) -> Tensor:
        """The labels of all rows, as a Batch holds them."""
        return labels_tensor(self.table, self.schema)


def split_source(
    table: pa.Table,
    schema: Schema,
    preprocess: ImagePreprocess | TextPreprocess,
    *,
    max_pixels: int = 100_000_000,
    augment: AugmentRecipe | None = None,
    seed: int = 0,
) -> SplitSource:
    """The source of one split; ``augment`` for the training split only."""
    if isinstance(preprocess, ImagePreprocess):
        from frostline.data.image_encoder import image_encoder

        encode = image_encoder(table, schema, preprocess, max_pixels=max_pixels, augment=augment, seed=seed)
        return SplitSource(table=table, schema=schema, encode=encode)
    from frostline.data.text_encoder import text_encoder

    encode, lengths, truncated = text_encoder(table, schema, preprocess)
    return SplitSource(table=table, schema=schema, encode=encode, lengths=lengths, truncated=truncated)
