"""Cleaning: rows without a label or a text are set aside, labels get one spelling, and become indices.

Nothing is mended in silence: what is set aside is counted with its reason, labels that differ only in case or spaces are
named in a warning and merged only if the recipe says so. Notes that start with ``warning: `` are shown as warnings.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from frostline.data.preferences import grouped
from frostline.data.raw import Raw, SetAside
from frostline.data.tables import spell_column
from frostline.data.text_pairs import scaled
from frostline.errors import DataError
from frostline.recipe import DataRecipe

CLASSIFICATION = ("image-classification", "text-classification")
"""The tasks whose rows have a label of their own."""
WARNING = "warning: "
_MISSING = ("", "nan", "null")


def clean(raw: Raw, recipe: DataRecipe) -> tuple[Raw, tuple[str, ...]]:
    """All steps in order: ``(rows with labels as indices or numbers, class names in the order of their indices)``."""
    if raw.task not in CLASSIFICATION:  # its reader has set aside what is no row of it
        return _of_language(raw)
    raw = drop_empty_texts(raw)
    if recipe.target == "number":
        return number_labels(drop_missing_labels(raw)), ()
    raw = split_labels(raw, recipe.label_separator) if recipe.target == "multi-label" else single_labels(raw)
    raw = unify_labels(drop_missing_labels(raw), recipe.merge_labels)
    return index_labels(raw)


def _of_language(raw: Raw) -> tuple[Raw, tuple[str, ...]]:
    """What can only be told of all files together: the tags, the scale of scores, which rows have the same prompt."""
    if raw.task == "token-classification":
        return index_tags(raw)
    if raw.task in ("preference", "reward"):
        return grouped(raw), ()
    return scaled(raw) if raw.task == "embedding" else raw, ()


def single_labels(raw: Raw) -> Raw:
    """Labels as strings; a list holds one label or is an error. Raises DataError naming the row."""
    values = spell_column(raw.table["label"].to_pylist()).to_pylist()
    for row, value in enumerate(values):
        if isinstance(value, list):
            if len(value) > 1:
                raise DataError(f"{_origin(raw, row)}: the label is the list {value!r}, expected one class. Set data.target=multi-label")
            values[row] = value[0] if value else None
    return _with_labels(raw, pa.array(values, pa.string()))


def split_labels(raw: Raw, separator: str) -> Raw:
    """Several labels of a row: lists as they are, text cut at ``separator``; spaces around and repetitions go."""
    if not separator:
        raise DataError(f"data.label_separator got {separator!r}, expected at least one character, such as |")
    values: list[list[str] | None] = []
    for value in spell_column(raw.table["label"].to_pylist()).to_pylist():
        if value is None or (isinstance(value, str) and _is_missing(value)):
            values.append(None)
        else:
            parts = value if isinstance(value, list) else value.split(separator)
            values.append(list(dict.fromkeys(part.strip() for part in parts if part.strip())))
    return _with_labels(raw, pa.array(values, pa.list_(pa.string())))


def drop_missing_labels(raw: Raw) -> Raw:
    """Set aside rows whose label is null, empty or NaN. Raises DataError if that is all of them."""
    raw = _keep(raw, lambda label: not _is_missing(label), "label", "no label")
    if raw.table.num_rows == 0:
        raise DataError(
            f"no row has a label ({len(raw.set_aside)} set aside, first {_first(raw)}). Name the right column with data.label_column=NAME"
        )
    return raw


def drop_empty_texts(raw: Raw) -> Raw:
    """Set aside rows whose text is null or blank. Raises DataError if that is all of them; images pass."""
    if "text" not in raw.table.column_names:
        return raw
    raw = _keep(raw, lambda text: bool(text and text.strip()), "text", "no text")
    if raw.table.num_rows == 0:
        raise DataError(
            f"no row has a text ({len(raw.set_aside)} set aside, first {_first(raw)}). Name the right column with data.input_column=NAME"
        )
    return raw


def unify_labels(raw: Raw, merge: bool) -> Raw:
    """Warn of labels that differ only in case or spaces (' cat', 'Cat', 'cat'); with ``merge``, give them the commonest spelling."""
    column = raw.table["label"].to_pylist()
    counts = Counter(_spellings(column))
    alike: dict[str, list[str]] = defaultdict(list)
    for name in sorted(counts):
        alike[" ".join(name.split()).casefold()].append(name)
    renamed: dict[str, str] = {}
    notes = list(raw.notes)
    for names in alike.values():
        best = max(names, key=lambda name: (counts[name], name == name.strip())).strip()
        if merge:
            renamed.update({name: best for name in names if name != best})
        if len(names) > 1:
            found = ", ".join(f"{name!r} ({counts[name]} rows)" for name in names)
            done = f"merged into {best!r}" if merge else "they stay different classes; merge them with data.merge_labels=true"
            notes.append(f"{WARNING}labels that differ only in case or spaces: {found}; {done}")
        elif names[0] != names[0].strip() and not merge:
            notes.append(f"{WARNING}the label {names[0]!r} has spaces around it; remove them with data.merge_labels=true")
    if renamed:
        column = [_rename(value, renamed) for value in column]
        raw = _with_labels(raw, pa.array(column, raw.table.schema.field("label").type))
    return replace(raw, notes=notes)


def index_labels(raw: Raw) -> tuple[Raw, tuple[str, ...]]:
    """Labels → int32 indices (lists of them), classes sorted. Raises DataError where there is nothing to tell apart."""
    column = raw.table["label"].to_pylist()
    counts = Counter(_spellings(column))
    names = sort_classes(counts)
    several = pa.types.is_list(raw.table.schema.field("label").type)
    if len(names) < (1 if several else 2):
        raise DataError(
            f"all {len(column)} rows have the same label {names[0]!r}, expected at least two classes. "
            "Add rows of another class, or name another column with data.label_column=NAME"
            if names
            else f"none of the {len(column)} rows has any label, expected at least one class. Name the column with data.label_column=NAME"
        )
    rare = [name for name in names if counts[name] == 1]
    notes = [f"{WARNING}only one row each of: {_listed(rare)}; they can be trained on, but not measured"] if rare else []
    index = {name: number for number, name in enumerate(names)}
    values = [sorted(index[name] for name in value) if several else index[value] for value in column]
    labels = pa.array(values, pa.list_(pa.int32()) if several else pa.int32())
    return replace(_with_labels(raw, labels), notes=[*raw.notes, *notes]), tuple(names)


def index_tags(raw: Raw) -> tuple[Raw, tuple[str, ...]]:
    """A tag's name for each token → its index; ``O`` comes first, the others sorted."""
    column = raw.table["label"].to_pylist()
    names = sorted({tag for tags in column for tag in tags}, key=lambda tag: (tag != "O", tag))
    if len(names) < 2:
        raise DataError(
            f"all tokens of the {len(column)} rows have the same tag {names!r}, expected at least two. Name the column with "
            "data.label_column=NAME"
        )
    index = {name: number for number, name in enumerate(names)}
    return _with_labels(raw, pa.array([[index[tag] for tag in tags] for tags in column], pa.list_(pa.int32()))), tuple(names)


def number_labels(raw: Raw) -> Raw:
    """Labels → float64; what is not a finite number is set aside. Raises DataError if too little is left to learn."""
    values = [_number(value) for value in spell_column(raw.table["label"].to_pylist()).to_pylist()]
    raw = _keep(_with_labels(raw, pa.array(values, pa.float64())), lambda value: value is not None, "label", "the label is not a number")
    distinct = pc.unique(raw.table["label"]).to_pylist()
    if len(distinct) < 2:
        found = f"all are {distinct[0]!r}" if distinct else f"none of the {len(values)} labels is one"
        raise DataError(
            f"data.target=number expects different numbers as labels, but {found}. Set data.target=class, or data.label_column=NAME"
        )
    return raw


def sort_classes(names: Iterable[str]) -> list[str]:
    """Alphabetically; by value if all are numbers.

    >>> sort_classes(["10", "9", "1"]), sort_classes(["b", "a"])
    (['1', '9', '10'], ['a', 'b'])
    """
    found = sorted(names)
    numbers = [_number(name) for name in found]
    if any(number is None for number in numbers):
        return found
    return [name for _, name in sorted(zip(numbers, found, strict=True))]  # type: ignore[type-var]


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _is_missing(label: Any) -> bool:
    if isinstance(label, float):
        return math.isnan(label)
    return label is None or (isinstance(label, str) and label.strip().casefold() in _MISSING)


def _spellings(column: list[Any]) -> Iterable[str]:
    return (name for value in column for name in (value if isinstance(value, list) else [value]))


def _rename(value: Any, renamed: dict[str, str]) -> Any:
    if isinstance(value, list):
        return list(dict.fromkeys(renamed.get(name, name) for name in value))
    return renamed.get(value, value)


def _keep(raw: Raw, good: Callable[[Any], bool], column: str, reason: str) -> Raw:
    keep = [good(value) for value in raw.table[column].to_pylist()]
    if all(keep):
        return raw
    origins = [origin for origin, kept in zip(raw.table["origin"].to_pylist(), keep, strict=True) if not kept]
    aside = [SetAside(origin=origin, reason=reason) for origin in origins]
    return replace(raw, table=raw.table.filter(pa.array(keep)), set_aside=[*raw.set_aside, *aside])


def _with_labels(raw: Raw, labels: pa.Array) -> Raw:
    return replace(raw, table=raw.table.set_column(raw.table.column_names.index("label"), "label", labels))


def _origin(raw: Raw, row: int) -> str:
    return raw.table["origin"][row].as_py()


def _first(raw: Raw) -> str:
    return raw.set_aside[0].origin if raw.set_aside else "none"


def _listed(names: list[str], most: int = 10) -> str:
    return ", ".join(repr(name) for name in names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
