"""Raw: rows as a source gives them, before labels become indices and rows are divided."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """A row or file that cannot be used, and why."""

    origin: str
    """Where it stands: a file's path, or file:line."""
    reason: str


@dataclass(kw_only=True)
class Raw:
    """One table of all rows.

    Columns: ``id`` string (content hash), ``origin`` string, the input (``text``; or ``path``; or ``pixels, height, width,
    channels``; or what dataset.COLUMNS says of the task), ``label`` for classification (string for a class, list<string> for
    several labels, float64 for a number; null where missing) and for token classification (list<string>, a tag a token), and,
    where known, ``split`` (train, validation, test) and ``group`` string.
    """

    task: str
    table: pa.Table
    set_aside: list[SetAside] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was guessed (column names, encoding, layout), for people."""
