"""What kind of data stands at a path (or was handed over in Python), and the reader for it.

A folder is read as what most of its files are: IDX files, tables (one, or one per split), images, or texts. The recipe's
task decides where both images and texts would do. What was decided is in the notes.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from frostline.data import conversations, documents, parallel_text, preferences, tagged_text, text_pairs, text_sources, translation_files
from frostline.data.clean import CLASSIFICATION
from frostline.data.columns import find_column
from frostline.data.places import place_fault
from frostline.data.raw import Raw, SetAside
from frostline.data.tables import TABLE_SUFFIXES, Table, read_table, spell_column
from frostline.data.text_sources import SPLIT_FOLDERS
from frostline.errors import DataError
from frostline.recipe import DataRecipe

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_IDX = re.compile(r"idx[13]-ubyte(\.gz)?$")
_BESIDE_IMAGES = ("metadata", "labels", "annotations", "index")
_SHARD = re.compile(r"[-_.]\d+-of-\d+$")
_BY_ENDING = {
    **dict.fromkeys(translation_files.SUFFIXES, "translation"),
    **dict.fromkeys((".conll", ".conllu", ".bio", ".iob", ".iob2", ".bioes", ".bmes"), "token-classification"),
}
"""Endings that say what is to be learned."""


def read_recipe(recipe: DataRecipe, *, progress: bool = True) -> Raw:
    """All rows that a recipe names: ``path``, or ``train``, ``validation`` and ``test`` given apart.

    ``progress``: show a bar while many images are read, on a terminal.
    """
    apart = {name: value for name in ("train", "validation", "test") if (value := getattr(recipe, name)) is not None}
    if recipe.path is None and "train" not in apart:
        raise DataError(
            "no data was given, expected a file or a folder. Set data.path=PATH, or data.train=PATH with data.validation and data.test"
        )
    if recipe.path is not None and "train" in apart:
        raise DataError(f"data.path={recipe.path!r} and data.train={recipe.train!r} both name the training rows. Set only one of them")
    parts = [read_path(Path(recipe.path), recipe, progress=progress)] if recipe.path is not None else []
    parts += [_read_apart(name, value, recipe, progress) for name, value in apart.items()]
    return join(parts)


def _read_apart(name: str, value: str, recipe: DataRecipe, progress: bool) -> Raw:
    """One split that is given apart."""
    try:
        return _in_split(read_path(Path(value), recipe, progress=progress), name)
    except DataError as error:
        raise DataError(f"data.{name}={value!r}: {error}") from error


def read_path(path: Path, recipe: DataRecipe, *, progress: bool = True) -> Raw:
    """The rows of one file or folder."""
    if not path.exists():
        raise DataError(_missing_path(path))
    if recipe.task is None and path.is_file() and (task := _BY_ENDING.get(path.suffix.lower())):
        return _guessed(path, task, recipe, progress)
    if (read := _path_reader(recipe.task)) and (raw := read(path, recipe)) is not None:
        return raw
    if path.is_dir():
        return _read_folder(path, recipe, progress)
    if not path.is_file():  # opening a pipe would wait for ever
        raise DataError(f"{str(path)!r} is not a regular file (a pipe or a device), expected a file or a folder. Save its rows as a file")
    if _IDX.search(path.name):
        from frostline.data import image_sources

        return image_sources.from_idx(path, recipe)
    if path.suffix.lower() in TABLE_SUFFIXES:
        return _read_table(path, recipe, progress)
    raise DataError(_no_reader(path, recipe.task))


def _guessed(path: Path, task: str, recipe: DataRecipe, progress: bool) -> Raw:
    raw = read_path(path, replace(recipe, task=task), progress=progress)  # type: ignore[arg-type]
    raw.notes.append(f"task: {task} (guessed from the files' endings; set data.task)")
    return raw


def read_object(source: Any, recipe: DataRecipe, class_names: Sequence[str] | None = None) -> Raw:
    """Rows from Python: ``(images, labels)`` or ``(texts, labels)``, ``[(text, label), …]``, ``{column: values}``, torch Dataset."""
    from torch.utils.data import Dataset as TorchDataset

    if isinstance(source, TorchDataset):
        from frostline.data import image_sources

        return image_sources.from_torch_dataset(source)
    if isinstance(source, dict):
        return _from_columns(source, recipe)
    if isinstance(source, list) and source and all(isinstance(row, dict) for row in source):
        names = dict.fromkeys(name for row in source for name in row)
        return _from_columns({name: [row.get(name) for row in source] for name in names}, recipe)
    if isinstance(source, tuple) and len(source) == 2:
        inputs, labels = source
        if len(inputs) != len(labels):
            raise DataError(f"got {len(inputs)} inputs and {len(labels)} labels, expected as many of one as of the other")
        if len(inputs) and isinstance(inputs[0], str):
            return _from_columns({"text": list(inputs), "label": list(labels)}, recipe)
        from frostline.data import image_sources

        return image_sources.from_arrays(inputs, labels, class_names)
    if isinstance(source, list) and source and all(isinstance(row, list | tuple) and len(row) == 2 for row in source):
        return _from_columns({"text": [text for text, _ in source], "label": [label for _, label in source]}, recipe)
    raise DataError(
        f"the data is {_described(source)}, expected a path, (images, labels), (texts, labels), [(text, label), …], "
        '{"text": [...], "label": [...]}, [{"messages": [...]}, …] or a torch Dataset'
    )


def join(parts: Sequence[Raw]) -> Raw:
    """Several sources as one. Raises DataError where they hold different things."""
    if len(parts) == 1:
        return parts[0]
    tasks = sorted({part.task for part in parts})
    if len(tasks) > 1:
        raise DataError(f"the splits are of different kinds ({' and '.join(tasks)}), expected the same. Set data.task")
    try:
        table = pa.concat_tables([part.table for part in parts], promote_options="default")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(
            f"the splits do not fit together: {' '.join(str(error).split())}. Give them the same columns and kinds of labels"
        ) from error
    return Raw(
        task=tasks[0],
        table=table,
        set_aside=[row for part in parts for row in part.set_aside],
        notes=list(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def _in_split(raw: Raw, name: str) -> Raw:
    table = raw.table.drop_columns(["split"]) if "split" in raw.table.column_names else raw.table
    raw.table = table.append_column("split", pa.array([name] * table.num_rows, pa.string()))
    return raw


def _from_columns(columns: dict[str, Any], recipe: DataRecipe) -> Raw:
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise DataError(f"got columns of lengths {lengths!r}, expected the same length, at least 1")
    table = pa.table({str(name): spell_column(list(values)) for name, values in columns.items()})
    task = recipe.task or _table_task(table, recipe)
    read = _table_reader("text-classification" if task == "image-classification" else task)  # images in memory are arrays
    return read(Table(table=table, origins=[f"row:{row}" for row in range(table.num_rows)]), recipe)


# -- Folders ----------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Contents:
    """What a folder holds."""

    images: int = 0
    texts: int = 0
    tables: list[Path] = field(default_factory=list)
    """Directly in the folder."""
    idx: bool = False
    tasks: set[str] = field(default_factory=set)
    """What the endings of files directly in the folder say."""
    others: list[str] = field(default_factory=list)
    aside: list[SetAside] = field(default_factory=list)
    """Tables and IDX files that are links out of the folder, or pipes."""


def _look(folder: Path) -> _Contents:
    found = _Contents()
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in sorted(files):
            suffix = Path(name).suffix.lower()
            if name.startswith("."):
                continue
            readable = Path(place) == folder and (_IDX.search(name) or suffix in TABLE_SUFFIXES)
            if readable and (fault := place_fault(Path(place, name), folder)):
                found.aside.append(SetAside(origin=str(Path(place, name)), reason=fault))
            elif readable and _IDX.search(name):
                found.idx = True
            elif suffix in IMAGE_SUFFIXES:
                found.images += 1
            elif suffix == ".txt":
                found.texts += 1
            elif readable:
                found.tables.append(Path(place, name))
            else:
                found.tasks |= {_BY_ENDING[suffix]} if Path(place) == folder and suffix in _BY_ENDING else set()
                found.others.append(os.path.relpath(Path(place, name), folder))
    return found


def _read_folder(folder: Path, recipe: DataRecipe, progress: bool) -> Raw:
    found = _look(folder)
    raw = _read_found(folder, found, recipe, progress)
    known = {row.origin for row in raw.set_aside}
    raw.set_aside = [*raw.set_aside, *(row for row in found.aside if row.origin not in known)]
    return raw


def _read_found(folder: Path, found: _Contents, recipe: DataRecipe, progress: bool) -> Raw:
    if found.idx:
        from frostline.data import image_sources

        return image_sources.from_idx(folder, recipe)
    if recipe.task is None and not found.images and not found.tables and len(found.tasks) == 1:
        return _guessed(folder, min(found.tasks), recipe, progress)
    tables = [path for path in found.tables if not found.images or _split_of(path) or path.stem.casefold() in _BESIDE_IMAGES]
    if tables and not (found.images and recipe.task == "text-classification"):
        return _read_tables(folder, tables, recipe, progress)
    if recipe.task not in (None, *CLASSIFICATION):
        raise DataError(
            f"{str(folder)!r} holds no table that can be read for data.task={recipe.task!r}, expected one of {', '.join(TABLE_SUFFIXES)}. "
            "Give the file itself"
        )
    wanted = {"image-classification": found.images, "text-classification": found.texts}
    task: str = recipe.task or max(wanted, key=lambda name: wanted[name])
    if not wanted[task]:
        raise DataError(_nothing_to_read(folder, found, recipe.task))
    if task == "text-classification":
        raw = text_sources.from_folder(folder, recipe)
    else:
        from frostline.data import image_sources

        raw = image_sources.from_folder(folder, recipe, progress=progress)
    if recipe.task is None and found.images and found.texts:
        raw.notes.append(f"task: {task} (guessed from {found.images} images and {found.texts} .txt files; set data.task)")
    return raw


def _nothing_to_read(folder: Path, found: _Contents, task: str | None) -> str:
    if found.images or found.texts:
        kind = f"{found.images} images and no .txt files" if found.images else f"{found.texts} .txt files and no images"
        return f"{str(folder)!r} holds {kind}, which does not fit data.task={task!r}. Leave data.task out, or give another folder"
    if found.aside:
        return (
            f"{str(folder)!r} holds nothing that can be read; the first of {len(found.aside)} files set aside: {found.aside[0].origin!r}, "
            f"{found.aside[0].reason}. Put the file itself there, or give its path"
        )
    if found.others:
        listed = ", ".join(map(repr, found.others[:3]))
        return (
            f"{str(folder)!r} holds {len(found.others)} files ({listed}, …), but no image, .txt, table or IDX file that can be read there. "
            "Give the folder of the class folders, or the table itself"
        )
    return f"{str(folder)!r} is an empty folder, expected images or texts in class folders, or a table. Check the path"


# -- Tables -----------------------------------------------------------------------------------------------------------


def _read_tables(folder: Path, tables: list[Path], recipe: DataRecipe, progress: bool) -> Raw:
    named = {path: name for path in tables if (name := _split_of(path))}
    if "train" in named.values():
        raw = join([_in_split(_read_table(path, recipe, progress), name) for path, name in named.items()])
        raw.notes.append(f"splits: {', '.join(f'{path.name} is {name}' for path, name in named.items())} (by the files' names)")
        raw.notes += [f"warning: {path.name} was not read: its name is no split" for path in tables if path not in named]
        return raw
    if len(tables) > 1:
        listed = ", ".join(repr(path.name) for path in tables)
        raise DataError(
            f"{str(folder)!r} holds several tables: {listed}. Name one with data.path, or data.train, data.validation and data.test"
        )
    return _read_table(tables[0], recipe, progress)


def _split_of(path: Path) -> str | None:
    return SPLIT_FOLDERS.get(_SHARD.sub("", path.stem).casefold())


def _read_table(path: Path, recipe: DataRecipe, progress: bool) -> Raw:
    table = read_table(path, recipe.encoding)
    task = recipe.task or _table_task(table.table, recipe)
    if task != "image-classification":
        raw = _table_reader(task)(table, recipe)
        if recipe.task is None and task != "text-classification":
            raw.notes.append(f"task: {task} (guessed from the columns; set data.task)")
        return raw
    from frostline.data import image_sources

    raw = image_sources.from_table(table.table, table.origins, path.parent, recipe, progress=progress)
    raw.set_aside, raw.notes = [*table.set_aside, *raw.set_aside], [*table.notes, *raw.notes]
    return raw


def _table_reader(task: str) -> Callable[[Table, DataRecipe], Raw]:
    """What makes a task's rows of a table's. Images have a reader of their own, which needs the table's folder."""
    readers = {
        "text-classification": text_sources,
        "token-classification": tagged_text,
        "chat": conversations,
        "causal-lm": documents,
        "preference": preferences,
        "reward": preferences,
        "translation": parallel_text,
        "summarisation": parallel_text,
        "embedding": text_pairs,
    }
    return readers[task].from_table


def _path_reader(task: str | None) -> Callable[[Path, DataRecipe], Raw | None] | None:
    """What reads the files that only this task has (CoNLL, TMX, plain documents); it gives None for a table or a folder of them."""
    readers = {
        "token-classification": tagged_text.from_path,
        "causal-lm": documents.from_path,
        "translation": parallel_text.from_path,
        "summarisation": parallel_text.from_path,
    }
    return readers.get(task or "")


def _table_task(table: pa.Table, recipe: DataRecipe) -> str:
    """Chat and preferences by their columns. Images, if the input column's values (the first hundred that are not empty)
    mostly end as image files do."""
    names, label = table.column_names, recipe.label_column or "label"
    if {"chosen", "rejected"} <= set(names) or {"prompt", "completion", label} <= set(names):  # as chat, bad answers would be learned too
        return "preference"
    if recipe.label_column is None and conversations.looks_like_chat(names):
        return "chat"
    column = recipe.input_column or find_column(names, "image")
    if column is None or column not in names:  # a name that is wrong is the text reader's to refuse
        return "text-classification"
    values = [str(value) for value in table[column].slice(0, 1000).to_pylist() if value][:100]
    images = sum(value.lower().endswith(IMAGE_SUFFIXES) for value in values)
    return "image-classification" if images * 2 > len(values) else "text-classification"


# -- Messages ---------------------------------------------------------------------------------------------------------


def _missing_path(path: Path) -> str:
    parent = next(place for place in path.absolute().parents if place.exists())
    below = path.absolute().relative_to(parent).parts[0]
    there = sorted(os.listdir(parent)) if parent.is_dir() else []
    close = difflib.get_close_matches(below, there, 3, 0.5)
    names = f"close names there: {', '.join(map(repr, close))}" if close else "nothing there has a name like it"
    return f"{str(path)!r} does not exist, expected a file or a folder; {str(parent)!r} exists, and {names}. Check its spelling"


def _no_reader(path: Path, task: str | None) -> str:
    ending = f"{str(path)!r} is a file that ends in {path.suffix!r}"
    if task is None and path.suffix.lower() in documents.SUFFIXES:
        return (
            f"{ending}, which does not say what is to be learned from it, expected data.task. Use: data.task=causal-lm (a text to go on "
            "with), token-classification (a token and its tag a line) or translation (one side of a text, the other beside it); "
            "or give a table, or the folder that holds the class folders"
        )
    if task is None and parallel_text.is_side(path.suffix[1:]):
        return f"{ending}, as one side of a parallel text does, expected data.task for it. Use: data.task=translation"
    if task not in (None, *CLASSIFICATION):
        return f"{ending}, expected a table for data.task={task!r}: {', '.join(TABLE_SUFFIXES)}. Convert it, for example to JSONL"
    return (
        f"{ending}, expected a folder, a table ({', '.join(TABLE_SUFFIXES)}) or an IDX file. "
        "Give the folder that holds the class folders, or convert the file, for example to CSV"
    )


def _described(source: Any) -> str:
    text = repr(source)
    return f"{text[:60]}{'…' if len(text) > 60 else ''} ({type(source).__name__})"
