"""Prediction: from a file, a folder, a table, a text or an array to labels and probabilities.

A row goes through the same encoders as in training, so size, normalisation and tokens cannot differ. What cannot be read gets
a result with an ``error`` in place of a label; the other rows of its batch are predicted all the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from frostline.data.columns import choose_column, split_joined
from frostline.data.dataset import Schema
from frostline.data.encodings import read_text
from frostline.data.image_encoder import encode_images
from frostline.data.images import pillow_to_rgb
from frostline.data.preference_encoder import encode_conversations
from frostline.data.preprocess import ImagePreprocess, TextPreprocess
from frostline.data.tables import TABLE_SUFFIXES, read_table, spell_column
from frostline.data.tag_encoder import encode_words
from frostline.data.tagged_text import divide
from frostline.data.text_encoder import encode_texts
from frostline.errors import DataError, ModelError
from frostline.evaluate.answers import WRITING, answer
from frostline.models.model import Model, evaluating, logits_of
from frostline.progress import say_nothing
from frostline.recipe import DataRecipe
from frostline.tasks import get_task
from frostline.tasks.token_classification import named_entities

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")

Encode = Callable[[list[Any]], dict[str, Tensor]]
"""Sources of rows → the network's inputs."""

Show = Callable[[list[Any]], list[dict[str, Any]]]
"""Sources of rows → what each result holds."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One row to predict."""

    name: str
    """What the result calls it: the path, the text, or ``array 3``."""
    source: Any
    """What is encoded: an image's path or pixels, a text."""
    error: str | None = None
    """Why it cannot be read, where that is known before decoding."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files are read."""

    column: str | None = None
    """The column of a table that is predicted; guessed and noted when not given."""
    usual_column: str | None = None
    """The column that the run was trained on: taken in place of a guess where the table has it."""
    encoding: str | None = None
    """Of tables and text files; detected when not given."""
    max_pixels: int = 100_000_000
    """Larger images are not read."""
    data: DataRecipe = field(default_factory=DataRecipe)
    """How the model's data was prepared (a translation's ``prompt``)."""
    max_new_tokens: int = 256
    """The most that a language model writes to one input."""
    say: Callable[[str], None] = say_nothing
    """Where notes of what was guessed go."""


def predict(model: Model, inputs: Any = (), *, texts: Sequence[str] | str = (), batch: int = 32, **reading: Any) -> list[dict[str, Any]]:
    """One dict per row, in order: ``{"input", "label", "probability", "probabilities"}``, or ``{"input", "error"}``.

    Instead of a label a language model gives its ``text``, a tagger ``entities``, a reward model a ``reward``, an embedding a ``vector``.
    ``inputs``: one or a list of paths (a file, a folder, a CSV, JSONL or Parquet), arrays (uint8), Pillow images, or texts.
    ``texts`` are taken as they are, even where a file of that name exists. ``label`` is a name, for several labels a list, or
    a number. ``reading``: the fields of :class:`Reading`. Raises DataError where nothing of an input can be read.
    """
    schema, how = model.card.schema, Reading(**reading)
    items = [item for one in _listed(inputs) for item in _expand(one, schema, how)]
    literal = [texts] if isinstance(texts, str) else list(texts)
    if literal and schema.task == "image-classification":
        raise DataError(
            f"texts: {literal[0]!r} was given to a model for {schema.task}, expected images. Give their paths instead of --text"
        )
    items += [Item(name=text, source=text) for text in literal]
    shower = _shower(model, how)
    # Texts of like length meet in one batch, so that little is padded.
    order = sorted(range(len(items)), key=lambda row: 0 if schema.task == "image-classification" else len(items[row].source or ""))
    results: dict[int, dict[str, Any]] = {}
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        results.update(zip(rows, _predict_some(shower, [items[row] for row in rows])))
    return [results[row] for row in range(len(items))]


def show(schema: Schema, scores: np.ndarray) -> dict[str, Any]:
    """One row's scores for a person: label, probability, probabilities."""
    return get_task(schema.task).decode(schema, scores)


def _listed(inputs: Any) -> list[Any]:
    if isinstance(inputs, np.ndarray) and inputs.ndim == 4:
        return list(inputs)
    if isinstance(inputs, str | os.PathLike | np.ndarray | Image.Image):
        return [inputs]
    return list(inputs)


def _expand(one: Any, schema: Schema, how: Reading) -> list[Item]:
    images = schema.task == "image-classification"
    if isinstance(one, Image.Image):
        return [_pixels_of(one)]
    if isinstance(one, np.ndarray):
        return [Item(name=f"array {one.shape}", source=one)]
    if not isinstance(one, str | os.PathLike):
        raise DataError(
            f'inputs: {one!r} is a {type(one).__name__}, expected a path, a text, an array or an image. Give a path: "photo.jpg"'
        )
    path = Path(one)
    # An empty line would name the current folder.
    if not str(one).strip() or not _exists(path):
        if images or isinstance(one, os.PathLike):
            advice = f"Look for it with: ls {path.parent}" if images else "Check its name, or give a text itself with --text"
            raise DataError(f"inputs: {str(one)!r} does not exist, expected a file or folder. {advice}")
        return [Item(name=str(one), source=str(one))]
    if path.is_dir():
        return _from_folder(path, images, how.encoding)
    if path.suffix.lower() in TABLE_SUFFIXES:
        return _from_table(path, images, how)
    return [Item(name=str(one), source=str(one)) if images else _text_file(path, how.encoding)]


def _exists(path: Path) -> bool:
    """Whether a text happens to name a file; a text may be longer than any name, or hold a NUL."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _pixels_of(image: Image.Image) -> Item:
    name = str(getattr(image, "filename", "") or f"image {image.size}")
    try:
        return Item(name=name, source=pillow_to_rgb(ImageOps.exif_transpose(image)))  # upright, as a file is read
    except (DataError, OSError) as error:
        return Item(name=name, source=None, error=str(error))


def _text_file(path: Path, encoding: str | None) -> Item:
    try:
        return Item(name=str(path), source=read_text(path, encoding)[0].strip())
    except DataError as error:
        return Item(name=str(path), source=None, error=_with_flags(str(error)))


def _from_folder(folder: Path, images: bool, encoding: str | None) -> list[Item]:
    suffixes = IMAGE_SUFFIXES if images else (".txt",)
    root = folder.resolve()
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in suffixes
        and path.is_file()
        and not _is_hidden(path.relative_to(folder))
        and path.resolve().is_relative_to(root)
    ]
    if not found:
        raise DataError(
            f"inputs: the folder {str(folder)!r} holds no file to predict, expected {', '.join(suffixes)}. Give another folder or a file"
        )
    return [Item(name=str(path), source=str(path)) if images else _text_file(path, encoding) for path in found]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _from_table(path: Path, images: bool, how: Reading) -> list[Item]:
    try:
        table = read_table(path, how.encoding)
        names = table.table.column_names
        column, notes = _choose(names, images, how, str(path))
    except DataError as error:
        raise DataError(_with_flags(str(error))) from error
    for note in [*table.notes, *notes]:
        how.say(_with_flags(note))
    parts = [spell_column(table.table[name].to_pylist()).to_pylist() for name in split_joined(names, column)]
    values = [" ".join(str(part) for part in row if part) for row in zip(*parts, strict=True)]
    items = [
        _named_image(value, path.parent, origin) if images else Item(name=value, source=value)
        for value, origin in zip(values, table.origins)
    ]
    return items + [Item(name=row.origin, source=None, error=row.reason) for row in table.set_aside]


def _choose(names: list[str], images: bool, how: Reading, where: str) -> tuple[str, list[str]]:
    """The column that was asked for, else the run's own, else the only one, else a guess with its note."""
    if how.column is None:
        usual = how.usual_column
        if usual is not None and all(part in names for part in ([usual] if images else split_joined(names, usual))):
            return usual, []
        if len(names) == 1:
            return names[0], []
    return choose_column(names, "image" if images else "text", how.column, where)


def _with_flags(message: str) -> str:
    """What the stages of data say of a recipe's keys, by the names that prediction has for them."""
    for key, flag in (("data.input_column", "--column"), ("data.encoding", "--encoding")):
        message = message.replace(f"{key}=", f"{flag} ").replace(key, flag)
    return message


def _named_image(name: str, folder: Path, origin: str) -> Item:
    """An image that a table names; as in training, only below the table's own folder."""
    path = folder / name
    if not name or not _exists(path):
        return Item(name=name or origin, source=None, error=f"{origin}: {name!r} does not exist below {str(folder)!r}")
    if not path.resolve().is_relative_to(folder.resolve()):
        return Item(name=name, source=None, error=f"{origin}: {name!r} lies outside {str(folder)!r}")
    return Item(name=str(path), source=str(path))


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
        return lambda sources: [{"text": text} for text in answer(model, sources, max_new_tokens=how.max_new_tokens, recipe=data)]
    if schema.task == "token-classification":
        return lambda sources: _tagged(model, sources)
    encode = _encoder(model, how.max_pixels)
    if schema.task == "embedding":
        return lambda sources: [{"vector": row.tolist()} for row in _scores(model, encode(sources))]
    return lambda sources: [show(schema, row) for row in _scores(model, encode(sources))]


def _tagged(model: Model, texts: list[str]) -> list[dict[str, Any]]:
    """The entities of each text; ``start`` and ``end`` count its characters."""
    preprocess = model.card.preprocess
    assert isinstance(preprocess, TextPreprocess), "tags are of texts"
    spans = [divide(text) or [(0, 0)] for text in texts]
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
    device = next((parameter.device for parameter in model.module.parameters()), torch.device("cpu"))
    with evaluating(model.module), torch.inference_mode():
        logits = logits_of(model.module(**{name: tensor.to(device) for name, tensor in inputs.items()}))
        return get_task(schema.task).scores(schema, logits, None).cpu().numpy()
