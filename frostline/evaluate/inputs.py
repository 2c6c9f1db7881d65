"""What is to be predicted, as items: from files, folders, tables, texts and arrays, each with a name and a source to be encoded.

A table's column is the one that was asked for, else the run's own, else the only one, else what training would take for the task's
input (data/columns.py), with a note. Rows of conversations, tagged tokens and translations are read in all the forms in which their
task learns from them; what stands there as the answer is left out, but for a reward model, which judges it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from frostline.data.columns import Role, choose_column, find_column, split_joined
from frostline.data.conversation_formats import Message, Unreadable, read_row
from frostline.data.dataset import Schema
from frostline.data.encodings import read_text
from frostline.data.images import pillow_to_rgb
from frostline.data.parallel_text import source_column, with_translations
from frostline.data.tables import TABLE_SUFFIXES, Table, read_table, spell_column
from frostline.data.tag_encoder import joined
from frostline.errors import DataError
from frostline.evaluate.answers import Asked
from frostline.progress import say_nothing
from frostline.recipe import DataRecipe

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")

_ROLES: dict[str, tuple[Role, ...]] = {
    "image-classification": ("image",),
    "text-classification": ("text",),
    "token-classification": ("tokens", "document"),
    "causal-lm": ("document",),
    "embedding": ("first", "text"),
    "chat": ("prompt",),
    "preference": ("prompt",),
    "reward": ("answer",),
}
"""What a task's input may be among the roles of columns, the likeliest first; translation has rules of its own."""
_TURNS = ("messages", "conversations", "instruction", "prompt")
"""Columns by which a table of conversations is known, each a format of its own."""
_BESIDE = ("tools", "system", "input", "history")
"""Columns that belong to such a format."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One row to predict."""

    name: str
    """What the result calls it: the path, the text, or ``array 3``."""
    source: Any
    """What is encoded: an image's path or pixels, a text, the words of one, or a conversation."""
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
    max_new_tokens: int | None = None
    """The most tokens that a language model writes to one input; 256 when not given."""
    say: Callable[[str], None] = say_nothing
    """Where notes of what was guessed go."""


def read_items(inputs: Any, schema: Schema, how: Reading) -> list[Item]:
    """The items of one input or a list of them, in order. Raises DataError where nothing of an input can be read."""
    return [item for one in _listed(inputs) for item in _expand(one, schema, how)]


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
        return _from_table(path, schema.task, how)
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


def _with_flags(message: str) -> str:
    """What the stages of data say of a recipe's keys, by the names that prediction has for them."""
    for key, flag in (("data.input_column", "--column"), ("data.encoding", "--encoding")):
        message = message.replace(f"{key}=", f"{flag} ").replace(key, flag)
    return message


# -- Tables -----------------------------------------------------------------------------------------------------------


def _from_table(path: Path, task: str, how: Reading) -> list[Item]:
    try:
        table = read_table(path, how.encoding)
        read = _conversations if task in ("chat", "preference") else _judged if task == "reward" else _plain
        items, notes = read(table, path, task, how)
    except DataError as error:
        raise DataError(_with_flags(str(error))) from error
    for note in [*table.notes, *notes]:
        how.say(_with_flags(note))
    return items + [Item(name=row.origin, source=None, error=row.reason) for row in table.set_aside]


def _choose(names: list[str], task: str, how: Reading, where: str) -> tuple[str, list[str]]:
    """The column that was asked for, else the run's own, else the only one, else a guess with its note."""
    if how.column is None:
        usual = _usual(names, task, how)
        if usual is not None:
            return usual, []
        if len(names) == 1:
            return names[0], []
    if task not in _ROLES:
        return source_column(names, how.column, where)
    role = next((role for role in _ROLES[task] if find_column(names, role)), _ROLES[task][0])
    return choose_column(names, role, how.column, where)


def _usual(names: list[str], task: str, how: Reading) -> str | None:
    usual = how.usual_column
    if usual is None:
        return None
    parts = split_joined(names, usual) if task == "text-classification" else [usual]
    return usual if all(part in names for part in parts) else None


def _plain(table: Table, path: Path, task: str, how: Reading) -> tuple[list[Item], list[str]]:
    """Rows whose input is one column, or title and body."""
    columns, notes = with_translations(table.table) if task not in _ROLES else (table.table, [])
    column, more = _choose(columns.column_names, task, how, str(path))
    parts = [spell_column(columns[name].to_pylist()).to_pylist() for name in split_joined(columns.column_names, column)]
    rows = zip(zip(*parts, strict=True), table.origins, strict=True)
    return [_item(cells, origin, path, task) for cells, origin in rows], [*notes, *more]


def _item(cells: Sequence[str | list[str] | None], origin: str, path: Path, task: str) -> Item:
    """A row of one cell, or of several texts that belong together; a list is read as in training."""
    (cell, *others) = cells
    if isinstance(cell, list) and task == "token-classification":
        return Item(name=joined(cell)[0], source=cell)
    if isinstance(cell, list) and task in ("embedding", "image-classification"):
        return Item(name=origin, source=None, error=f"{origin}: got a list of {len(cell)}, expected one text. Give each a row of its own")
    space = " " if task == "text-classification" else "\n"
    texts = [space.join(cell) if isinstance(cell, list) else cell for cell in (cell, *others) if cell]
    text = " ".join(texts)
    return _named_image(text, path.parent, origin) if task == "image-classification" else Item(name=text, source=text)


def _named_image(name: str, folder: Path, origin: str) -> Item:
    """An image that a table names; as in training, only below the table's own folder."""
    path = folder / name
    if not name or not _exists(path):
        return Item(name=name or origin, source=None, error=f"{origin}: {name!r} does not exist below {str(folder)!r}")
    if not path.resolve().is_relative_to(folder.resolve()):
        return Item(name=name, source=None, error=f"{origin}: {name!r} lies outside {str(folder)!r}")
    return Item(name=str(path), source=str(path))


# -- Conversations ----------------------------------------------------------------------------------------------------


def _conversations(table: Table, path: Path, task: str, how: Reading) -> tuple[list[Item], list[str]]:
    """Conversations that are to be gone on with: all that stands before the last answer."""
    names = table.table.column_names
    spelled = {name.casefold(): name for name in reversed(names)}
    notes: list[str] = []
    column = next((spelled[kind] for kind in _TURNS if kind in spelled), None)
    if how.column is not None or column is None or _usual(names, task, how) is not None:
        if column is None and task == "preference" and how.column is None and "chosen" in names:
            column = "chosen"  # without a column of prompts its conversations hold them
        else:
            column, notes = _choose(names, task, how, str(path))
    kind = column.casefold() if column.casefold() in _TURNS else ""
    used = {kind: column, **{name: spelled[name] for name in _BESIDE if name in spelled}}
    columns = {name: table.table[place].to_pylist() for name, place in used.items()}
    rows = [{name: values[row] for name, values in columns.items()} for row in range(len(table.origins))]
    return [_asked(fields, kind, origin) for fields, origin in zip(rows, table.origins, strict=True)], notes


def _asked(fields: dict[str, Any], kind: str, origin: str) -> Item:
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        if kind == "":  # any column: a text, or a conversation
            beside: dict[str, Any] = {name: given[name] for name in ("tools", "system") if name in given}
            messages, tools = read_row({**beside, "messages": _turns(fields[""], "user")}, "messages")
        else:
            messages, tools = read_row({kind: None, **given, "output": "", "completion": ""}, kind)
    except Unreadable as reason:
        return Item(name=origin, source=None, error=f"{origin}: {reason}")
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        return Item(name=origin, source=None, error=f"{origin}: no turn to answer")
    return Item(name=str(messages[-1]["content"] or ""), source=Asked(messages=messages, tools=tools))


def _turns(value: Any, role: str) -> list[Message]:
    """The messages of a list, however a table spells it; a text is one of ``role``. Raises Unreadable."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str) and not value[0].lstrip().startswith("{"):
        (value,) = value  # a text in a column that has lists elsewhere
    if value is None or isinstance(value, str):
        try:
            if value is not None and value.lstrip().startswith("[{"):
                return read_row({"messages": value}, "messages")[0]
        except Unreadable:
            pass
        return [{"role": role, "content": value or ""}]
    return read_row({"messages": value}, "messages")[0]


def _judged(table: Table, path: Path, task: str, how: Reading) -> tuple[list[Item], list[str]]:
    """Whole conversations, or answers with the prompts before them: what a reward is given for. The run's own column is the prompt's."""
    names = table.table.column_names
    answers = [name for name in names if name != how.usual_column or name == how.column]
    column, notes = _choose(answers, task, Reading(column=how.column), str(path))
    others = [name for name in names if name != column]
    asked = how.usual_column if how.usual_column in others else find_column(others, "prompt")
    prompts = table.table[asked].to_pylist() if asked else [None] * len(table.origins)
    rows = zip(table.table[column].to_pylist(), prompts, table.origins, strict=True)
    return [_judged_item(answer, prompt, origin) for answer, prompt, origin in rows], notes


def _judged_item(answer: Any, prompt: Any, origin: str) -> Item:
    try:
        if prompt in (None, "") and isinstance(answer, str | None):
            return Item(name=answer or "", source=answer or "")
        messages = _turns(answer, "assistant")
        if prompt not in (None, "") and messages and messages[0]["role"] == "assistant":
            messages = [*_turns(prompt, "user"), *messages]
    except Unreadable as reason:
        return Item(name=origin, source=None, error=f"{origin}: {reason}")
    if not messages:
        return Item(name=origin, source=None, error=f"{origin}: an empty conversation")
    return Item(name=str(messages[-1]["content"] or ""), source=messages)
