"""Tagged tokens, from column files (CoNLL), from tables of tokens and tags, and from texts with spans.

Column files   a token and its tag on a line (other columns between), a blank line behind a sentence; lines that begin with
               -DOCSTART- are skipped. The token is in the first column and the tag in the last, or in those that
               data.input_column and data.label_column name by number (1 is the first, -1 the last). In CoNLL-U, whose comments
               and word ranges are skipped, they are the word (2) and its part of speech (4).
Tables         a list of tokens and a list of as many tags; or a text and its tags, one for each word or character
Spans          a text and its entities, ``{"start": 0, "end": 2, "label": "LOC"}`` or ``[0, 2, "LOC"]``, in characters. The text
               is divided into words, and Chinese, Japanese and Korean characters one by one; where an entity begins or ends
               inside a word, the word is divided there. Tags are written as BIO.

Tags are checked and repaired (tags.py); what cannot be used is set aside with its reason.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from frostline.data.columns import choose_column, find_column
from frostline.data.encodings import read_text
from frostline.data.places import place_fault
from frostline.data.raw import Raw, SetAside
from frostline.data.tables import Table, spell_column
from frostline.data.tags import repaired, tag_counts
from frostline.data.text_sources import SPLIT_FOLDERS, group_column, text_id
from frostline.errors import DataError
from frostline.recipe import DataRecipe

SUFFIXES = (".conll", ".conllu", ".bio", ".iob", ".iob2", ".bioes", ".bmes", ".train", ".testa", ".testb")
"""Always in columns; .txt and .tsv files are looked at."""
_SPLITS = {**SPLIT_FOLDERS, "testa": "validation", "testb": "test"}
_ENTITIES = ("entities", "spans", "entity", "label", "labels", "实体")
_KEYS = {"start": ("start", "start_offset", "begin"), "end": ("end", "end_offset"), "label": ("label", "type", "entity", "tag")}
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_MARKS = r"!-/:-@\[-`{-~\u00a1-\u00bf\u2010-\u2027\u2030-\u205e\u3000-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
_WORD = re.compile(rf"[^\s{_CJK}{_MARKS}]+|\S")  # not \w: it leaves out the vowel signs of Indian scripts
_LOOKED_AT = 200


def from_table(table: Table, recipe: DataRecipe) -> Raw:
    """Rows of a table: tokens and tags, or texts and spans."""
    names, where = table.table.column_names, table.origins[0].rpartition(":")[0] or "table"
    if spans := _span_columns(table.table, recipe):
        cells = [spell_column(table.table[name].to_pylist()).to_pylist() for name in spans]
        made = [_from_spans(text, marks) for text, marks in zip(*cells)]
        aside = [SetAside(origin=origin, reason=one) for origin, one in zip(table.origins, made) if isinstance(one, str)]
        kept = [row for row, one in enumerate(made) if not isinstance(one, str)]
        divided = [one for one in made if not isinstance(one, str)]
        tokens, tags = [one[0] for one in divided], [one[1] for one in divided]
        notes = [f"text column: {spans[0]!r}, spans: {spans[1]!r}, divided into words and single CJK characters, tags written as BIO"]
    else:
        given = recipe.input_column
        if given is None and find_column(names, "tokens") is None and (text := find_column(names, "document")):
            given = text
        token_column, notes = choose_column(names, "tokens", given, where)
        tag_column, more = choose_column(names, "tags", recipe.label_column, where)
        tokens, tags = _token_lists(table.table, token_column, tag_column)
        kept, aside, notes = list(range(len(tokens))), [], [*notes, *more]
    origins = [table.origins[row] for row in kept]
    groups = None if recipe.group_column is None else group_column(table.table, recipe.group_column, where).take(pa.array(kept, pa.int64()))
    raw = _raw(tokens, tags, origins, None if groups is None else groups.to_pylist())
    raw.set_aside, raw.notes = [*table.set_aside, *aside, *raw.set_aside], [*table.notes, *notes, *raw.notes]
    return raw


def from_path(path: Path, recipe: DataRecipe) -> Raw | None:
    """The sentences of a column file, or of a folder's column files; None where there is none."""
    if path.is_dir():
        return _from_folder(path, recipe)
    if path.is_file() and (path.suffix.lower() in SUFFIXES or (path.suffix.lower() in (".txt", ".tsv") and _in_columns(path, recipe))):
        return _from_columns(path, recipe)
    return None


# -- Column files -----------------------------------------------------------------------------------------------------


def _from_folder(folder: Path, recipe: DataRecipe) -> Raw | None:
    """All column files directly in a folder, split as their names say, if one is the training split."""
    paths = [
        path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and path.suffix.lower() in (*SUFFIXES, ".txt", ".tsv")
    ]
    aside = [SetAside(origin=str(path), reason=fault) for path in paths if (fault := place_fault(path, folder))]
    paths = [path for path in paths if not place_fault(path, folder)]
    paths = [path for path in paths if path.suffix.lower() in SUFFIXES or _in_columns(path, recipe)]
    if not paths:
        return None
    splits = {path: next((_SPLITS[part] for part in re.split(r"[-_.]", path.name.casefold()) if part in _SPLITS), None) for path in paths}
    by_name = "train" in splits.values()
    read = [path for path in paths if splits[path] or not by_name]
    parts = [_from_columns(path, recipe) for path in read]
    tables = [
        part.table.append_column("split", pa.array([splits[path]] * part.table.num_rows, pa.string())) if by_name else part.table
        for path, part in zip(read, parts)
    ]
    notes = [f"splits: {', '.join(f'{path.name} is {splits[path]}' for path in read)} (by the files' names)"] if by_name else []
    notes += [f"warning: {path.name} was not read: its name is no split" for path in paths if path not in read]
    return Raw(
        task="token-classification",
        table=pa.concat_tables(tables),
        set_aside=[*aside, *(row for part in parts for row in part.set_aside)],
        notes=list(dict.fromkeys([*(note for part in parts for note in part.notes), *notes])),
    )


def _in_columns(path: Path, recipe: DataRecipe) -> bool:
    """Whether a file's first lines all have as many columns, two or more, and blank lines or tags of entities among them."""
    try:
        lines = _lines(read_text(path, recipe.encoding)[0])[:_LOOKED_AT]
    except DataError:
        return False
    while lines and not lines[-1].strip():
        lines.pop()
    rows = [_fields(line) for line in lines if line.strip() and not line.startswith("-DOCSTART-")]
    widths = {len(row) for row in rows}
    if len(widths) != 1 or widths == {1} or find_column(rows[0], "tokens"):
        return False
    return len(rows) < len(lines) or all(re.fullmatch(r"O|[BIESMLU](-.+)?", row[-1]) for row in rows)


def _lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _fields(line: str) -> list[str]:
    """A line's columns: between tabs if it has any, so that a token may be a space; else between spaces of any kind."""
    return [field.strip(" ") or field for field in line.split("\t")] if "\t" in line.strip() else line.split()


@dataclass(frozen=True, kw_only=True)
class _Sentence:
    line: int
    rows: list[list[str]]


def _sentences(text: str, universal: bool) -> Iterator[_Sentence]:
    rows: list[list[str]] = []
    start = 1
    for number, line in enumerate([*_lines(text), ""], 1):
        if line.strip() and not line.startswith("-DOCSTART-"):
            fields = _fields(line)
            if not universal or (not line.startswith("#") and fields[0].isdigit()):
                start = start if rows else number
                rows.append(fields)
        elif rows:
            yield _Sentence(line=start, rows=rows)
            rows = []


def _from_columns(path: Path, recipe: DataRecipe) -> Raw:
    text, used = read_text(path, recipe.encoding)
    universal = path.suffix.lower() == ".conllu"
    sentences = list(_sentences(text, universal))
    if not sentences:
        raise DataError(f"{str(path)!r} holds no sentence, expected a token and its tag on each line. Check that it was written completely")
    width = Counter(len(row) for sentence in sentences for row in sentence.rows).most_common(1)[0][0]
    if width < 2:
        line = sentences[0].rows[0][0]
        raise DataError(f"{path.name}:{sentences[0].line}: {line!r} is one column, expected a token and its tag. Put a tab between them")
    token = _place(recipe.input_column, "data.input_column", 2 if universal else 1, width, path)
    tag = _place(recipe.label_column, "data.label_column", 4 if universal else -1, width, path)
    aside, good = [], []
    for sentence in sentences:
        odd = next((place for place, row in enumerate(sentence.rows) if len(row) != width), None)
        if odd is None:
            good.append(sentence)
            continue
        reason = f"line {sentence.line + odd} of its sentence has {len(sentence.rows[odd])} columns where the file has {width}"
        aside.append(SetAside(origin=f"{path.name}:{sentence.line}", reason=reason))
    raw = _raw(
        [[row[token] for row in sentence.rows] for sentence in good],
        [[row[tag] for row in sentence.rows] for sentence in good],
        [f"{path.name}:{sentence.line}" for sentence in good],
    )
    raw.set_aside = [*aside, *raw.set_aside]
    if width > 2 and not universal and (recipe.input_column is None or recipe.label_column is None):
        raw.notes.insert(0, f"columns: token {token + 1}, tag {tag + 1} of {width} (guessed; set data.input_column, data.label_column)")
    if recipe.encoding is None and not used.startswith("utf-8"):
        raw.notes.append(f"{path.name}: read as {used} (guessed; set data.encoding if the text looks wrong)")
    return raw


def _place(given: str | None, key: str, usual: int, width: int, path: Path) -> int:
    """The column's index from 0; ``given`` counts from 1, or from the end with a minus."""
    if given is not None and not re.fullmatch(r"-?[1-9]\d{0,3}", given):
        raise DataError(
            f"{path.name}: {key} got {given!r}, expected a column's number, since the columns have no names. Use: {key}={usual}"
        )
    number = usual if given is None else int(given)
    if abs(number) > width:
        raise DataError(f"{path.name}: {key} is {number}, but the lines have {width} columns. Use: {key}={-1 if number < 0 else width}")
    return number - 1 if number > 0 else width + number


# -- Tables of tokens and tags ----------------------------------------------------------------------------------------


def _token_lists(table: pa.Table, token_column: str, tag_column: str) -> tuple[list[list[str]], list[list[str]]]:
    """Tokens and tags of each row; what is one text is divided at spaces, or into characters where there are as many tags."""
    numbered = {str(number): name for number, name in enumerate(_declared_names(table, tag_column))}
    tokens, tags = [], []
    for words, marks in zip(*(spell_column(table[name].to_pylist()).to_pylist() for name in (token_column, tag_column))):
        marks = (marks or "").split() if not isinstance(marks, list) else marks
        if not isinstance(words, list):
            words = words or ""
            words = words.split() if len(words.split()) == len(marks) or len(words) != len(marks) else list(words)
        tokens.append(words)
        tags.append([numbered.get(mark, mark) for mark in marks])
    return tokens, tags


def _declared_names(table: pa.Table, column: str) -> list[str]:
    """The names of numbers in a column, where the file says them as the ``datasets`` library does; else none."""
    try:
        feature = json.loads((table.schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        feature = feature if isinstance(feature, dict) else feature[0]
        found = feature.get("feature", feature)["names"]
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, RecursionError):
        return []
    return found if isinstance(found, list) and all(isinstance(name, str) for name in found) else []


# -- Spans ------------------------------------------------------------------------------------------------------------


def _span_columns(table: pa.Table, recipe: DataRecipe) -> tuple[str, str] | None:
    """The columns of texts and of their spans, if the first spans that are given can be read as such."""
    names = table.column_names
    text = recipe.input_column or find_column(names, "document")
    marks = recipe.label_column or next((name for wanted in _ENTITIES for name in names if name.casefold() == wanted), None)
    if text is None or marks is None or not {text, marks} <= set(names):
        return None
    for values in spell_column(table[marks].to_pylist()).to_pylist():
        if isinstance(values, list) and values:
            return (text, marks) if values[0].startswith(("{", "[")) and not isinstance(_json(values[0]), str) else None
    return None


def _span(spelled: str) -> tuple[int, int, str] | str:
    """``(start, end, label)``, or why it is none."""
    value = _json(spelled)
    if isinstance(value, dict):
        found = [next((value[key] for key in keys if value.get(key) is not None), None) for keys in _KEYS.values()]
    else:
        found = value if isinstance(value, list) and len(value) == 3 else [None] * 3
    whole = [number for number in found[:2] if isinstance(number, int) and not isinstance(number, bool)]
    if len(whole) < 2 or not isinstance(found[2], str) or not found[2].strip():
        return f"{spelled[:60]!r} lacks a start, an end or a label"
    return whole[0], whole[1], found[2].strip()


def _json(spelled: str) -> Any:
    """What a cell of nested values holds; the text itself where it is no JSON."""
    try:
        return json.loads(spelled)
    except (ValueError, RecursionError):
        return spelled


def _from_spans(text: str | list[str] | None, spelled: list[str] | None) -> tuple[list[str], list[str]] | str:
    """``(tokens, tags)`` of a text, or why its spans cannot be used."""
    if not isinstance(text, str) or not text.strip():
        return "no text"
    spans = []
    for one in spelled or []:
        span = _span(one)
        if isinstance(span, str):
            return span
        start, end, label = span
        if not 0 <= start < end <= len(text):
            return f"the span {start} to {end} ({label}) lies outside the text of {len(text)} characters, or is empty"
        if not text[start:end].strip():
            return f"the span {start} to {end} ({label}) covers no text"
        spans.append(span)
    spans.sort()
    for (_, before, label), (start, _, other) in itertools.pairwise(spans):
        if start < before:
            return f"the spans of {label} and {other} overlap at {start}"
    places = divide(text, [border for start, end, _ in spans for border in (start, end)])
    tags = ["O"] * len(places)
    for start, end, label in spans:
        inside = [number for number, (first, _) in enumerate(places) if start <= first < end]
        for number in inside:
            tags[number] = f"{'B' if number == inside[0] else 'I'}-{label}"
    return [text[first:last] for first, last in places], tags


def divide(text: str, borders: Sequence[int] = ()) -> list[tuple[int, int]]:
    """Where the words of a text stand, CJK characters one by one, and no word across a border.

    >>> [("iPhone在北京")[start:end] for start, end in divide("iPhone在北京", [1])]
    ['i', 'Phone', '在', '北', '京']
    """
    cuts = sorted(set(borders))
    places: list[tuple[int, int]] = []
    for match in _WORD.finditer(text):
        inside = [cut for cut in cuts if match.start() < cut < match.end()] if cuts else []
        points = [match.start(), *inside, match.end()]
        places += itertools.pairwise(points)
    return places


# -- Rows -------------------------------------------------------------------------------------------------------------


def _raw(tokens: list[list[str]], tags: list[list[str]], origins: list[str], groups: list[str | None] | None = None) -> Raw:
    kept, aside = tag_counts(tags, tokens, origins)
    if not kept:
        raise DataError(
            f"no row has a tag for each token ({len(aside)} set aside, first {aside[0].origin}: {aside[0].reason}). "
            "Name the columns with data.input_column=NAME data.label_column=NAME"
            if aside
            else "no row could be read, since the lines differ in their number of columns. Put one separator between columns"
        )
    tags, notes = repaired([tags[row] for row in kept], [origins[row] for row in kept])
    tokens = [tokens[row] for row in kept]
    columns = {
        "id": pa.array([text_id("\x1f".join(words)) for words in tokens], pa.string()),
        "origin": pa.array([origins[row] for row in kept], pa.string()),
        "tokens": pa.array(tokens, pa.list_(pa.string())),
        "label": pa.array(tags, pa.list_(pa.string())),
    }
    if groups is not None:
        columns["group"] = pa.array([groups[row] for row in kept], pa.string())
    return Raw(task="token-classification", table=pa.table(columns), set_aside=aside, notes=notes)
