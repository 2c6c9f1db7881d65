"""Documents for causal language modelling: plain text, Markdown and source files, or one column of a table.

A file is one document, unless it is large: then it is a book or a corpus, and as one document it would lie in one split whole.
It is divided at paragraph borders (else at line ends, else at the end of a sentence) into documents of some thousand characters.
So is a file that is all the data there is, into smaller ones where it is small, since rows can be held out only where there are
several. A note says what was divided.

A folder's files are split as their names or top folders say (``train.txt valid.txt test.txt``; ``train/ val/ test/``).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from frostline.data.columns import choose_column
from frostline.data.encodings import read_text
from frostline.data.places import place_fault
from frostline.data.raw import Raw, SetAside
from frostline.data.split import refuse_lost
from frostline.data.tables import TABLE_SUFFIXES, Table, spell_column
from frostline.data.text_sources import SPLIT_FOLDERS, group_column, text_id
from frostline.errors import DataError
from frostline.recipe import DataRecipe

_ENDINGS = (
    "txt text md markdown rst tex org adoc html htm xml css py pyi js jsx mjs ts tsx c h cc cpp cxx hpp cu java kt scala go rs rb php "
    "swift m r jl lua pl sh bash sql hs ml ex erl clj lisp el zig nim dart cs vue"
)
SUFFIXES = frozenset(f".{ending}" for ending in _ENDINGS.split())
"""Of the files in a folder, those that are documents."""
_ABOUT = ("readme", "license", "licence", "changelog", "notice", "dataset_card")
"""Names of files that tell of a table beside them."""
_WHOLE = 20_000
"""Characters up to which a file in a folder stays one document."""
_PIECE = 4_000
"""Characters of a document that is cut from a larger file, about."""
_SMALLEST_PIECE = 400
_PIECES_OF_ALL = 20
"""A file that is all the data becomes about so many documents, if it is too small for pieces of the usual size."""
_SENTENCE_END = re.compile(r"[。！？.!?][”’\"']?\s*")


def from_table(table: Table, recipe: DataRecipe) -> Raw:
    """Each row of a table is a document, in the column that the recipe names, or a guessed one."""
    names = table.table.column_names
    where = table.origins[0].rpartition(":")[0] or "table"
    column, notes = choose_column(names, "document", recipe.input_column, where)
    texts = spell_column(table.table[column].to_pylist()).to_pylist()
    documents = ["\n".join(text) if isinstance(text, list) else text or "" for text in texts]
    groups = None if recipe.group_column is None else group_column(table.table, recipe.group_column, where).to_pylist()
    raw = _raw(documents, table.origins, {"group": groups})
    raw.set_aside, raw.notes = [*table.set_aside, *raw.set_aside], [*table.notes, *notes]
    return raw


def from_path(path: Path, recipe: DataRecipe) -> Raw | None:
    """The documents of one file or of a folder's files; None for a table, or a folder without documents."""
    if path.is_file() and path.suffix.lower() not in TABLE_SUFFIXES:
        return _from_files([path], path.parent, [], recipe)
    if not path.is_dir():
        return None
    files, aside = _document_files(path)
    tables = [name for name in sorted(os.listdir(path)) if Path(name).suffix.lower() in TABLE_SUFFIXES and not name.startswith(".")]
    about_tables = all(file.stem.casefold() in _ABOUT for file in files) or any(_split_of(name) for name in tables)
    if not files or (tables and about_tables):
        return None
    raw = _from_files(files, path, aside, recipe)
    if tables:
        raw.notes.append(f"warning: {len(tables)} tables beside the documents were not read, e.g. {tables[0]!r}; give one with data.path")
    return raw


def pieces(text: str, size: int) -> Iterator[tuple[int, str]]:
    """``(place, text)`` of the documents of about ``size`` characters that a text is divided into; joined they are the text.

    >>> [piece for _, piece in pieces("one two\\n\\nthree four\\n\\nfive", 14)]
    ['one two\\n\\n', 'three four\\n\\n', 'five']
    """
    start = 0
    while len(text) - start > size:
        end = _border(text, start, start + size)
        yield start, text[start:end]
        start = end
    if start < len(text):
        yield start, text[start:]


def _border(text: str, start: int, stop: int) -> int:
    """The last place to cut at in the second half of the range: a blank line, else a line end, else a sentence's end, else its end."""
    middle = (start + stop) // 2
    for mark in ("\n\n", "\n"):
        if (found := text.rfind(mark, middle, stop)) >= 0:
            return found + len(mark)
    ends = [match.end() for match in _SENTENCE_END.finditer(text, middle, stop)]
    return ends[-1] if ends else stop


def _from_files(files: list[Path], folder: Path, aside: list[SetAside], recipe: DataRecipe) -> Raw:
    splits = _splits(files, folder)
    texts: list[str] = []
    origins: list[str] = []
    given: list[str | None] = []
    encodings: Counter[str] = Counter()
    divided: dict[str, int] = {}
    for path in files:
        try:
            content, used = read_text(path, recipe.encoding)
        except DataError as error:
            if len(files) == 1:
                raise
            aside.append(SetAside(origin=str(path), reason=str(error).removeprefix(repr(str(path))).lstrip(": ").split(". ")[0]))
            continue
        encodings[used] += 1
        found = list(_documents(path, content.replace("\r\n", "\n").replace("\r", "\n"), alone=len(files) == 1 or path in splits))
        if len(found) > 1:
            divided[path.name] = len(found)
        origins += [origin for origin, _ in found]
        texts += [text for _, text in found]
        given += [splits.get(path)] * len(found)
    if not texts:
        raise DataError(f"{str(folder)!r} holds no document that can be read ({aside[0].reason}). Save the files as UTF-8 text")
    raw = _raw(texts, origins, {"split": given if splits else None})
    if splits:
        refuse_lost([*map(str, splits)], [*splits.values()], raw.table["split"].to_pylist(), [*aside, *raw.set_aside])
    raw.set_aside = [*aside, *raw.set_aside]
    raw.notes = [*_notes(files, divided, splits), *_encoding_notes(encodings, recipe)]
    return raw


def _documents(path: Path, content: str, alone: bool) -> Iterator[tuple[str, str]]:
    """``(origin, text)`` of a file's documents; ``alone``: it is all there is of its split."""
    size = _PIECE
    if alone:
        size = min(_PIECE, max(_SMALLEST_PIECE, len(content) // _PIECES_OF_ALL))
    if len(content) <= (size if alone else _WHOLE):
        yield str(path), content
        return
    line, counted = 1, 0
    for start, text in pieces(content, size):
        line, counted = line + content.count("\n", counted, start), start
        yield f"{path}:{line}", text


def _raw(texts: list[str], origins: list[str], more: dict[str, list[str | None] | None]) -> Raw:
    """Rows of the texts that are not blank, without the line ends around them; ``more``: other columns, where known."""
    kept = [row for row, text in enumerate(texts) if text.strip()]
    aside = [SetAside(origin=origin, reason="no text") for origin, text in zip(origins, texts) if not text.strip()]
    if not kept:
        raise DataError(f"no row has a text ({len(aside)} set aside, first {aside[0].origin}). Name the column with data.input_column=NAME")
    bare = [texts[row].strip("\n") for row in kept]
    columns = {"id": [text_id(text) for text in bare], "origin": [origins[row] for row in kept], "text": bare}
    columns.update({name: [values[row] for row in kept] for name, values in more.items() if values is not None})  # type: ignore[misc]
    return Raw(task="causal-lm", table=pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}), set_aside=aside)


def _document_files(folder: Path) -> tuple[list[Path], list[SetAside]]:
    """Files that are documents, in a fixed order; hidden names skipped, links out and pipes set aside."""
    found, aside = [], []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in sorted(names):
            path = Path(place, name)
            if name.startswith(".") or path.suffix.lower() not in SUFFIXES:
                continue
            if fault := place_fault(path, folder):
                aside.append(SetAside(origin=str(path), reason=fault))
            else:
                found.append(path)
    return found, aside


def _split_of(name: str) -> str | None:
    """The split that a table's name says, as in ``train-00000-of-00002.parquet``."""
    return SPLIT_FOLDERS.get(re.split(r"[-_.]", name)[0].casefold())


def _splits(files: list[Path], folder: Path) -> dict[Path, str]:
    """The split of each file, if every file is named after one, or lies in a folder that is, and one is the training split."""
    tops = {path: path.relative_to(folder).parts for path in files}
    named = {path: parts[0] if len(parts) > 1 else path.stem for path, parts in tops.items()}
    splits = {path: SPLIT_FOLDERS[name.casefold()] for path, name in named.items() if name.casefold() in SPLIT_FOLDERS}
    return splits if len(files) > 1 and len(splits) == len(files) and "train" in splits.values() else {}


def _notes(files: list[Path], divided: dict[str, int], splits: dict[Path, str]) -> list[str]:
    notes = [f"documents: {len(files)} files"] if len(files) > 1 else []
    if splits:
        notes.append("splits: as the files' or folders' names give them")
    if divided:
        first, count = next(iter(divided.items()))
        others = f", and {len(divided) - 1} other large files likewise" if len(divided) > 1 else ""
        notes.append(f"{first} was divided at paragraph borders into {count} documents{others}")
    return notes


def _encoding_notes(encodings: Counter[str], recipe: DataRecipe) -> list[str]:
    if recipe.encoding is not None:
        return []
    odd = {name: count for name, count in sorted(encodings.items()) if not name.startswith("utf-8")}
    return [f"{count} files read as {name} (guessed; set data.encoding)" for name, count in odd.items()]
