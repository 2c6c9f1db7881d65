"""A few rows of the training split as they reach the network, for people to look at: `frostline check` and `frostline show data`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from frostline.data.chat_encoder import read_conversations
from frostline.data.chat_template import Rendered, render_all, with_template
from frostline.data.clean import CLASSIFICATION
from frostline.data.dataset import Dataset, Schema
from frostline.data.encode import SplitSource, split_source
from frostline.data.loader import Batch, spread
from frostline.data.preprocess import ImagePreprocess, TextPreprocess
from frostline.data.show import show_rows
from frostline.data.token_rows import IGNORED, token_rows
from frostline.recipe import DataRecipe

_TOKENS_SHOWN = 40
_CHARACTERS_SHOWN = 200
_ENCODED = 200
"""Rows that are encoded for a few to be shown: of the very first, none may be usable."""


def rows_as_seen(
    preprocess: ImagePreprocess | TextPreprocess,
    data: Dataset,
    recipe: DataRecipe,
    count: int = 3,
    *,
    source: SplitSource | None = None,
    colour: bool = False,
) -> list[dict[str, Any]]:
    """Rows spread over the training split, of those that are learned.

    ``source``: the whole split, where it is encoded already; else a sample of it is encoded here. ``colour``: what a language model
    learns is shown in colour, not between ⟦ and ⟧.
    """
    table = data.splits["train"]
    if data.schema.task == "chat" and isinstance(preprocess, TextPreprocess):
        return _conversations(table.take(spread(table.num_rows, count)), preprocess, recipe, colour)
    if source is None:
        source = split_source(table.take(spread(table.num_rows, _ENCODED)), data.schema, preprocess, recipe=recipe, name="train")
    rows = spread(source.rows, count)
    batches = [source.encode(np.array([row]), None) for row in rows]
    if isinstance(preprocess, ImagePreprocess):
        return [_image(source, int(row), batch) for row, batch in zip(rows, batches, strict=True)]
    if data.schema.task in CLASSIFICATION:
        return [_text(source, int(row), batch, preprocess) for row, batch in zip(rows, batches, strict=True)]
    return [_sequences(data.schema, batch, preprocess, colour) for batch in batches]


def _conversations(table: pa.Table, preprocess: TextPreprocess, recipe: DataRecipe, colour: bool) -> list[dict[str, Any]]:
    """Conversations turn by turn, whole, even where training cuts them."""
    with_template(preprocess.tokenizer)
    rendered = render_all(read_conversations(table), preprocess.tokenizer, train_on=recipe.train_on)
    return [_conversation(row, preprocess, colour) for row in rendered]


def _conversation(row: Rendered | str, preprocess: TextPreprocess, colour: bool) -> dict[str, Any]:
    if isinstance(row, str):
        return {"refused": row}
    counts = {"tokens": len(row.ids), "trained": sum(row.trained), "max_length": preprocess.max_length}
    return {**counts, "seen": show_rows([row], preprocess.tokenizer, colour=colour).partition("\n")[2]}


def _sequences(schema: Schema, batch: Batch, preprocess: TextPreprocess, colour: bool) -> dict[str, Any]:
    """What one row gives: a sequence with labels, two of them (chosen and rejected), or texts to be compared."""
    ids = [row[mask.bool()].tolist() for row, mask in zip(batch.inputs["input_ids"], batch.inputs["attention_mask"], strict=True)]
    tokenizer = preprocess.tokenizer
    if schema.target == "tags":
        tags = [schema.labels[tag] if tag != IGNORED else "" for tag in batch.labels[0].tolist()]
        pieces = [f"{tokenizer.decode([token])}{'/' if tag else ''}{tag}" for token, tag in zip(ids[0], tags)]
        return {"tokens": len(ids[0]), "seen": " ".join(pieces)}
    if "decoder_input_ids" in batch.inputs:
        target = [label for label in batch.labels[0].tolist() if label != IGNORED]
        return {"tokens": len(ids[0]), "seen": f"{tokenizer.decode(ids[0])} → {tokenizer.decode(target)}"}
    if batch.labels.shape != batch.inputs["input_ids"].shape:
        return {"tokens": sum(map(len, ids)), "seen": " | ".join(tokenizer.decode(row) for row in ids)}
    labels = [row[: len(own)].tolist() for row, own in zip(batch.labels, ids, strict=True)]
    rows = token_rows(ids, labels, list(range(len(ids))), 0, [])
    trained = sum(label != IGNORED for row in labels for label in row)
    return {"tokens": sum(map(len, ids)), "trained": trained, "seen": show_rows(rows, tokenizer, colour=colour)}


def _text(source: SplitSource, row: int, batch: Batch, preprocess: TextPreprocess) -> dict[str, Any]:
    ids = batch.inputs["input_ids"][0].tolist()
    return {
        "label": _label(source, row),
        "text": source.table["text"][row].as_py()[:_CHARACTERS_SHOWN],
        "tokens": [preprocess.tokenizer.decode([token]) for token in ids[:_TOKENS_SHOWN]],
        "length": len(ids),
    }


def _image(source: SplitSource, row: int, batch: Batch) -> dict[str, Any]:
    pixels = batch.inputs["pixel_values"]
    return {
        "label": _label(source, row),
        "image": source.table["path"][row].as_py() if "path" in source.table.column_names else f"row {row}",
        "shape": list(pixels.shape[1:]),
        "mean": round(float(pixels.mean()), 3),
        "std": round(float(pixels.std()), 3),
    }


def _label(source: SplitSource, row: int) -> Any:
    label, names = source.table["label"][row].as_py(), source.schema.labels
    if source.schema.target == "number":
        return label
    return [names[index] for index in label] if isinstance(label, list) else names[label]
