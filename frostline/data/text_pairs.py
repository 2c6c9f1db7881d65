"""Texts that belong together, for embeddings: pairs, triplets, and pairs with a score.

Pairs      ``first`` and ``second``: a question and its answer, two sentences that mean the same
Triplets   also a ``negative``: a text that does not belong to the first. A list of negatives makes a row for each
Scores     how alike two texts are. From 0 to 1 they stay as they are; 0 to 5 (STS-B), 0 to 10 and 0 to 100 are divided, and noted; one
           scale for all files, since the best pair of a small test file may have 0.9 of 5

All rows of a file are of one kind. A row that lacks a part is set aside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from frostline.data.columns import choose_column, find_column
from frostline.data.raw import Raw, SetAside
from frostline.data.tables import Table, spell_column
from frostline.data.text_sources import group_column, text_id
from frostline.errors import DataError
from frostline.recipe import DataRecipe

_SCALES = (1.0, 5.0, 10.0, 100.0)

Row = tuple[str, str, str | None, float | None]


def from_table(table: Table, recipe: DataRecipe) -> Raw:
    """Rows of a table; columns as the recipe names them, or guessed and noted."""
    names, where = table.table.column_names, table.origins[0].rpartition(":")[0] or "table"
    first, notes = choose_column(names, "first", recipe.input_column, where)
    second, more = choose_column([name for name in names if name != first], "second", recipe.label_column, where)
    negative, score = (_optional(names, role, {first, second}) for role in ("negative", "score"))
    if negative and score:
        notes.append(f"warning: the column {score!r} is not read, since the rows have negatives")
        score = None
    notes += [f"{role} column: {name!r} (guessed)" for role, name in (("negative", negative), ("score", score)) if name]
    columns = [_column(table.table, name) for name in (first, second, negative, score)]
    groups: list[str | None] = [None] * len(table.origins)
    if recipe.group_column is not None:
        groups = group_column(table.table, recipe.group_column, where).to_pylist()
    made, origins, owners, aside = [], [], [], []
    for row, cells in enumerate(zip(*columns)):
        found = _rows(cells, bool(negative), bool(score))
        if isinstance(found, str):
            aside.append(SetAside(origin=table.origins[row], reason=found))
            continue
        made += found
        origins += [table.origins[row]] * len(found)
        owners += [groups[row]] * len(found)
    if not made:
        first_aside = f"{len(aside)} set aside, first {aside[0].origin}: {aside[0].reason}" if aside else "there is none"
        raise DataError(f"no row has all its texts ({first_aside}). Name the columns with data.input_column=NAME data.label_column=NAME")
    given = recipe.validation is not None or recipe.test is not None
    shared = len({row[0] for row in made}) < len(made)
    if recipe.group_column is None and shared and not given:  # else a test pair's first text would stand in training too
        owners = [text_id(row[0]) for row in made]
        notes.append("rows with the same first text stay in one split")
    raw = _raw(made, origins, None if recipe.group_column is None and (given or not shared) else owners)
    raw.set_aside, raw.notes = [*table.set_aside, *aside], [*table.notes, *notes, *more]
    return raw


def _optional(names: list[str], role: Any, taken: set[str]) -> str | None:
    return find_column([name for name in names if name not in taken], role)


def _column(table: pa.Table, name: str | None) -> list[Any]:
    return [None] * table.num_rows if name is None else spell_column(table[name].to_pylist()).to_pylist()


def _rows(cells: tuple[Any, ...], negative: bool, score: bool) -> list[Row] | str:
    """The rows that a table's row makes, or why it makes none."""
    for name, cell in zip(("first", "second"), cells):
        if isinstance(cell, list):
            return f"the {name} text is a list of {len(cell)}, expected one text"
        if not cell or not cell.strip():
            return f"no {name} text"
    first, second = cells[0].strip(), cells[1].strip()
    if negative:
        several = cells[2] if isinstance(cells[2], list) else [cells[2] or ""]
        found: list[Row] = [(first, second, text.strip(), None) for text in several if text.strip()]
        return found or "no negative text"
    if not score:
        return [(first, second, None, None)]
    try:
        number = float(cells[3])
    except (TypeError, ValueError):
        return f"the score {cells[3]!r} is not a number"
    return [(first, second, None, number)] if abs(number) < float("inf") else f"the score {cells[3]!r} is not a number"


def scaled(raw: Raw) -> Raw:
    """The rows of all files with scores from 0 to 1, and a note if that changed them. Raises DataError for scores of no known scale."""
    found = [(score, row) for row, score in enumerate(raw.table["score"].to_pylist()) if score is not None]
    if not found:
        return raw
    (low, lowest), (high, highest) = min(found), max(found)
    scale = next((scale for scale in _SCALES if high <= scale), None)
    if low < 0 or scale is None:
        first, last = (raw.table["origin"][row].as_py() for row in (lowest, highest))
        raise DataError(
            f"the scores run from {low:g} ({first}) to {high:g} ({last}), expected 0 to 1, 0 to 5, 0 to 10 or 0 to 100. Scale them"
        )
    if scale == 1:
        return raw
    columns = [raw.table[name].to_pylist() for name in ("first", "second", "negative", "score")]
    rows = [(first, second, negative, None if score is None else score / scale) for first, second, negative, score in zip(*columns)]
    changed = {"id": _ids(rows), "score": pa.array([row[3] for row in rows], pa.float64())}
    table = raw.table
    for name, values in changed.items():
        table = table.set_column(table.column_names.index(name), name, values)
    return replace(raw, table=table, notes=[*raw.notes, f"scores: {low:g} to {high:g}, divided by {scale:g}"])


def _ids(rows: Sequence[Row]) -> pa.Array:
    return pa.array([text_id("\x1f".join("" if part is None else str(part) for part in row)) for row in rows], pa.string())


def _raw(rows: list[Row], origins: list[str], groups: list[str | None] | None) -> Raw:
    columns = {
        "id": _ids(rows),
        "origin": pa.array(origins, pa.string()),
        **{name: pa.array([row[place] for row in rows], pa.string()) for place, name in enumerate(("first", "second", "negative"))},
        "score": pa.array([row[3] for row in rows], pa.float64()),
    }
    if groups is not None:
        columns["group"] = pa.array(groups, pa.string())
    return Raw(task="embedding", table=pa.table(columns))
