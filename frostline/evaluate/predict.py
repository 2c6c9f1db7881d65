"""Prediction: from items (inputs.py: files, folders, tables, texts, arrays) to labels and probabilities, texts, entities, vectors.

A row goes through the same encoders as in training, so size, normalisation and tokens cannot differ. What cannot be read gets
a result with an ``error`` in place of a label; the other rows of its batch are predicted all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frostline.data.dataset import Schema
from frostline.data.image_encoder import encode_images
from frostline.data.preference_encoder import encode_conversations
from frostline.data.preprocess import ImagePreprocess, TextPreprocess
from frostline.data.tag_encoder import encode_words, joined
from frostline.data.tagged_text import divide
from frostline.data.text_encoder import encode_texts
from frostline.device import device_of
from frostline.errors import DataError, ModelError, RecipeError
from frostline.evaluate.answers import WRITING, answer
from frostline.evaluate.inputs import Item, Reading, read_items
from frostline.models.model import Model, evaluating, logits_of
from frostline.progress import progress
from frostline.tasks import get_task
from frostline.tasks.token_classification import named_entities

_MAX_NEW_TOKENS = 256

Encode = Callable[[list[Any]], dict[str, Tensor]]
"""Sources of rows → the network's inputs."""

Show = Callable[[list[Any]], list[dict[str, Any]]]
"""Sources of rows → what each result holds."""


def predict(
    model: Model, inputs: Any = (), *, texts: Sequence[str] | str = (), batch: int = 32, quiet: bool = False, **reading: Any
) -> list[dict[str, Any]]:
    """One dict per row, in order: ``{"input", "label", "probability", "probabilities"}``, or ``{"input", "error"}``.

    Instead of a label a language model gives its ``text``, a tagger ``entities``, a reward model a ``reward``, an embedding a ``vector``.
    ``inputs``: one or a list of paths (a file, a folder, a CSV, JSONL or Parquet), arrays (uint8), Pillow images, or texts.
    ``texts`` are taken as they are, even where a file of that name exists. ``label`` is a name, for several labels a list, or
    a number. Of several batches a bar shows the progress, unless ``quiet``. ``reading``: the fields of :class:`Reading`.
    Raises DataError where nothing of an input can be read.
    """
    schema, how = model.card.schema, Reading(**reading)
    _check_new_tokens(how, schema)
    items = read_items(inputs, schema, how)
    literal = [texts] if isinstance(texts, str) else list(texts)
    images = schema.task == "image-classification"
    if literal and images:
        raise DataError(
            f"texts: {literal[0]!r} was given to a model for {schema.task}, expected images. Give their paths instead of --text"
        )
    items += [Item(name=text, source=text) for text in literal]
    shower = _shower(model, how)
    # Texts of like length meet in one batch, so that little is padded.
    order = sorted(range(len(items)), key=lambda row: 0 if images else _length(items[row].source))
    results: dict[int, dict[str, Any]] = {}
    with progress(total=len(items), label="predict", quiet=quiet or len(items) <= batch) as bar:
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            results.update(zip(rows, _predict_some(shower, [items[row] for row in rows])))
            bar.update(len(rows))
    return [results[row] for row in range(len(items))]


def show(schema: Schema, scores: np.ndarray) -> dict[str, Any]:
    """One row's scores for a person: label, probability, probabilities."""
    return get_task(schema.task).decode(schema, scores)


def _check_new_tokens(how: Reading, schema: Schema) -> None:
    most = how.max_new_tokens
    if most is not None and schema.task not in WRITING:
        raise RecipeError(
            f"max_new_tokens (--max-new-tokens) got {most!r}, which is for models that write ({', '.join(WRITING)}), "
            f"and this one is for {schema.task!r}. Leave it out"
        )
    if most is not None and most < 1:
        raise RecipeError(f"max_new_tokens (--max-new-tokens) got {most!r}, expected 1 or more. Use: {_MAX_NEW_TOKENS}")


def _length(source: Any) -> int:
    """Characters or words of a text, by which batches are made up; of conversations nothing is known."""
    return len(source) if isinstance(source, str | list) else 0


def _encoder(model: Model, max_pixels: int) -> Encode:
    preprocess = model.card.preprocess
    if isinstance(preprocess, ImagePreprocess):
        return lambda sources: {"pixel_values": encode_images(sources, preprocess, max_pixels)}
    if model.card.schema.task == "reward":
        return lambda sources: encode_conversations(sources, preprocess)
    return lambda sources: encode_texts(sources, preprocess)


def _shower(model: Model, how: Reading) -> Show:
    """What makes the results of some sources, by the model's task."""
    schema = model.card.schema
    if schema.task in WRITING:
        data = replace(how.data, task=schema.task)
        most = how.max_new_tokens or _MAX_NEW_TOKENS
        return lambda sources: [{"text": text} for text in answer(model, sources, max_new_tokens=most, recipe=data)]
    if schema.task == "token-classification":
        return lambda sources: _tagged(model, sources)
    encode = _encoder(model, how.max_pixels)
    if schema.task == "embedding":
        return lambda sources: [{"vector": row.tolist()} for row in _scores(model, encode(sources))]
    return lambda sources: [show(schema, row) for row in _scores(model, encode(sources))]


def _tagged(model: Model, sources: list[str | list[str]]) -> list[dict[str, Any]]:
    """The entities of each text (or of its words); ``start`` and ``end`` count its characters."""
    preprocess = model.card.preprocess
    assert isinstance(preprocess, TextPreprocess), "tags are of texts"
    divided = [joined(source) if isinstance(source, list) else (source, divide(source)) for source in sources]
    texts, spans = [text for text, _ in divided], [places or [(0, 0)] for _, places in divided]
    words = [[text[start:end] for start, end in places] for text, places in zip(texts, spans, strict=True)]
    inputs, positions = encode_words(words, preprocess)
    results = []
    for text, places, own, where, tags in zip(texts, spans, words, positions, _scores(model, inputs), strict=True):
        found = named_entities(model.card.schema, own, [None if at is None else int(tags[at]) for at in where])
        ends = [(places[one["start"]][0], places[one["end"] - 1][1]) for one in found]
        named = [{**one, "text": text[start:end], "start": start, "end": end} for one, (start, end) in zip(found, ends, strict=True)]
        results.append({"entities": named})
    return results


def _predict_some(shower: Show, items: list[Item]) -> list[dict[str, Any]]:
    """The results of the items that can be read, and the others' errors. One by one only after one has failed."""
    errors = {row: item.error for row, item in enumerate(items) if item.error is not None}
    readable = [row for row in range(len(items)) if row not in errors]
    results: dict[int, dict[str, Any]] = {}
    try:
        if readable:
            results.update(zip(readable, shower([items[row].source for row in readable]), strict=True))
    except (DataError, ModelError, OSError):
        for row in readable:
            try:
                results[row] = shower([items[row].source])[0]
            except (DataError, ModelError, OSError) as error:
                errors[row] = str(error)
    return [
        {"input": item.name, "error": errors[row]} if row in errors else {"input": item.name, **results[row]}
        for row, item in enumerate(items)
    ]


def _scores(model: Model, inputs: dict[str, Tensor]) -> np.ndarray:
    schema = model.card.schema
    device = device_of(model.module)
    with evaluating(model.module), torch.inference_mode():
        logits = logits_of(model.module(**{name: tensor.to(device) for name, tensor in inputs.items()}))
        return get_task(schema.task).scores(schema, logits, None).cpu().numpy()
