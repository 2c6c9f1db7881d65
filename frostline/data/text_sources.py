"""Texts and their labels from a table or a folder.

Folders are read in two layouts, both also below split folders (``train/ val/ test/``): a folder per class, each ``.txt``
file one row; or one file per class (``pos.txt``, ``neg.txt``), each line one row. The folder or file name is the label.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from frostline.data.columns import choose_column, refuse_same, split_joined
from frostline.data.encodings import read_text
from frostline.data.places import place_fault
from frostline.data.raw import Raw, SetAside
from frostline.data.tables import Table, spell_column
from frostline.errors import DataError
from frostline.recipe import DataRecipe

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_ABOUT = ("readme", "license", "licence", "changelog", "notice")
_ID_BYTES = 16


def text_id(text: str) -> str:
    """The hash (hex) that is the same for identical texts, whatever their labels."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_ID_BYTES).hexdigest()


def from_table(table: Table, recipe: DataRecipe) -> Raw:
    """Rows of a table; columns as the recipe names them, or guessed and noted."""
    names = table.table.column_names
    where = table.origins[0].rpartition(":")[0] or "table"
    text, text_notes = choose_column(names, "text", recipe.input_column, where)
    label, label_notes = choose_column(names, "label", recipe.label_column, where)
    refuse_same(text, label, where)
    parts = [spell_column(table.table[part].to_pylist()).to_pylist() for part in split_joined(names, text)]
    texts = [" ".join(part for part in row if part) for row in zip(*parts, strict=True)] if len(parts) > 1 else parts[0]
    raw = _raw([_flat(value) for value in texts], table.origins, spell_column(table.table[label].to_pylist()))
    raw.set_aside, raw.notes = list(table.set_aside), [*table.notes, *text_notes, *label_notes]
    if recipe.group_column is not None:
        raw.table = raw.table.append_column("group", group_column(table.table, recipe.group_column, where))
    return raw


def group_column(table: pa.Table, name: str, where: str) -> pa.Array:
    """The values of the recipe's group column, as strings; a blank one is missing, as it says of no two rows that they belong together."""
    if name not in table.column_names:
        listed = ", ".join(repr(column) for column in table.column_names)
        raise DataError(f"{where}: data.group_column got {name!r}, but the columns are: {listed}. Set data.group_column=NAME")
    return spell_column([None if isinstance(value, str) and not value.strip() else value for value in table[name].to_pylist()])


def from_folder(folder: Path, recipe: DataRecipe) -> Raw:
    """Rows of ``.txt`` files, in a folder per class or one file per class, below split folders or not."""
    files, aside = _text_files(folder)
    if not files:
        first = f" that can be read; the first set aside: {aside[0].origin!r}, {aside[0].reason}" if aside else ""
        raise DataError(
            f"{str(folder)!r} holds no .txt files{first}. Give the folder that holds the class folders, or a table (.csv, .jsonl)"
        )
    splits = _split_names(files, folder)
    class_folders = any(len(parts) > 1 for _, parts, _ in splits)
    texts, labels, origins, given = [], [], [], []
    encodings: Counter[str] = Counter()
    for path, parts, split in splits:
        if class_folders == (len(parts) == 1):
            aside.append(SetAside(origin=str(path), reason="stands outside the class folders"))
            continue
        if not class_folders and path.stem.casefold() in _ABOUT:
            aside.append(SetAside(origin=str(path), reason="its name is not a class"))
            continue
        try:
            content, used = read_text(path, recipe.encoding)
        except DataError as error:
            aside.append(SetAside(origin=str(path), reason=_short(str(error), path)))
            continue
        encodings[used] += 1
        for origin, text in [(str(path), content.strip())] if class_folders else _lines(path, content):
            texts.append(text)
            labels.append(parts[0] if class_folders else path.stem)
            origins.append(origin)
            given.append(split)
    raw = _raw(texts, origins, pa.array(labels, pa.string()))
    if any(given):
        raw.table = raw.table.append_column("split", pa.array(given, pa.string()))
    raw.set_aside = aside
    raw.notes = _folder_notes(class_folders, any(given), encodings, recipe)
    return raw


def _raw(texts: Sequence[str | None], origins: list[str], labels: pa.Array) -> Raw:
    ids = [text_id(text or "") for text in texts]
    columns = {
        "id": pa.array(ids, pa.string()),
        "origin": pa.array(origins, pa.string()),
        "text": pa.array(texts, pa.string()),
        "label": labels,
    }
    return Raw(task="text-classification", table=pa.table(columns))


def _flat(value: str | list[str] | None) -> str | None:
    return " ".join(value) if isinstance(value, list) else value


def _text_files(folder: Path) -> tuple[list[tuple[Path, tuple[str, ...]]], list[SetAside]]:
    """``(file, parts of its path below the folder)`` in a fixed order; hidden names skipped, links out and pipes set aside."""
    found, aside = [], []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in sorted(files):
            path = Path(place, name)
            if path.suffix.lower() != ".txt" or name.startswith("."):
                continue
            if fault := place_fault(path, folder):
                aside.append(SetAside(origin=str(path), reason=fault))
            else:
                found.append((path, path.relative_to(folder).parts))
    return found, aside


def _split_names(files: list[tuple[Path, tuple[str, ...]]], folder: Path) -> list[tuple[Path, tuple[str, ...], str | None]]:
    """``(file, parts of its path below the split folder, split)``; without split folders the parts as they are.

    A folder called train is a class (of vehicles, say) if files stand directly in it and other folders are no splits.
    """
    tops = {parts[0] for _, parts in files if len(parts) > 1}
    train = {name for name in tops if SPLIT_FOLDERS.get(name.casefold()) == "train"}
    strange = sorted(name for name in tops if name.casefold() not in SPLIT_FOLDERS)
    deeper = any(parts[0] in train and len(parts) > 2 for _, parts in files)
    if not train or (strange and not deeper):
        return [(path, parts, None) for path, parts in files]
    if strange:
        raise DataError(
            f"{str(folder)!r} holds split folders and, beside them, {', '.join(map(repr, strange))}, expected only "
            f"{', '.join(SPLIT_FOLDERS)} there. Move what is not a split elsewhere"
        )
    return [(path, parts[1:], SPLIT_FOLDERS[parts[0].casefold()]) for path, parts in files if len(parts) > 1]


def _lines(path: Path, content: str) -> Iterator[tuple[str, str]]:
    """Each line that is not blank, with its place. Only real line ends count, not the separators that str.splitlines knows."""
    for number, line in enumerate(content.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        if line.strip():
            yield f"{path}:{number}", line.strip()


def _short(message: str, path: Path) -> str:
    """What an error says beside the file's name, which the report shows anyway, and beside the advice."""
    return message.removeprefix(repr(str(path))).lstrip(": ").split(". ")[0]


def _folder_notes(class_folders: bool, split: bool, encodings: Counter[str], recipe: DataRecipe) -> list[str]:
    notes = [
        "layout: a folder per class, one row a .txt file" if class_folders else "layout: one .txt file per class, one row a line (guessed)"
    ]
    if split:
        notes.append("splits: as the folders give them")
    if recipe.encoding is None:
        notes += [
            f"{count} files read as {name} (guessed; set data.encoding)"
            for name, count in sorted(encodings.items())
            if not name.startswith("utf-8")
        ]
    return notes
