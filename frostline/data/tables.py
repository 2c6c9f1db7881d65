"""Tables: CSV, TSV, JSON lines, a JSON list, and Parquet, each row with the place where it stands.

CSV follows RFC 4180 (quotes doubled inside quotes, line breaks kept inside quotes). It is scanned here rather than by a
library because three things must be right at once: line numbers, fields of any length, and what a broken quote takes with
it. A row that does not parse is set aside *alone*: reading goes on at the very next line, not where the quote happens to close.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from frostline.data.encodings import read_text
from frostline.data.raw import SetAside
from frostline.errors import DataError

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")

_LINE_END = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows as a file holds them. From CSV and JSON every column is string or list<string>; Parquet keeps its types."""

    table: pa.Table
    origins: list[str]
    """Where each row stands: ``reviews.csv:12``."""
    set_aside: list[SetAside] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_table(path: Path, encoding: str | None = None) -> Table:
    """Read a table by its suffix. Raises DataError where nothing can be read; single broken rows are set aside."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _read_parquet(path)
    if suffix not in TABLE_SUFFIXES:
        raise DataError(
            f"{str(path)!r} ends in {path.suffix!r}, expected a table: {', '.join(TABLE_SUFFIXES)}. Convert it, for example to CSV"
        )
    text, used = read_text(path, encoding)
    if not text.strip():
        raise DataError(f"{str(path)!r} is empty, expected a table with a header and rows. Check that it was written completely")
    read = _read_delimited if suffix in (".csv", ".tsv") else _read_json
    result = read(text, path)
    if encoding is None and used not in ("utf-8", "utf-8-sig"):
        result.notes.append(f"{path.name}: read as {used} (guessed; set data.encoding if the text looks wrong)")
    return result


def spell_column(values: list[Any]) -> pa.Array:
    """Python values as a string column (a list<string> column if any value is a list); null and NaN become null.

    >>> spell_column([1, 2.0, None, "x"]).to_pylist()
    ['1', '2', None, 'x']
    """
    if any(isinstance(value, list | tuple) for value in values):
        rows: list[Any] = [_spell_list(value) for value in values]
        kind = pa.list_(pa.string())
    else:
        rows, kind = [_spell(value) for value in values], pa.string()
    try:
        return pa.array(rows, kind)
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair, which no encoding can write
        return pa.array([_mend(row) for row in rows], kind)


def _spell(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _spell_list(value: Any) -> list[str] | None:
    items = value if isinstance(value, list | tuple) else [value]
    spelled = [text for item in items if (text := _spell(item)) is not None]
    return None if value is None or (spelled == [] and items) else spelled


def _mend(row: Any) -> Any:
    if isinstance(row, list):
        return [_mend(item) for item in row]
    return row if row is None else row.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _check_names(names: list[str], where: str) -> list[str]:
    """Names without spaces around them; nameless columns (an index that pandas wrote) get a number."""
    names = [name.strip() or f"column_{position}" for position, name in enumerate(names, 1)]
    for position, name in enumerate(names):
        first = names.index(name)
        if first != position:
            raise DataError(
                f"{where}: columns {first + 1} and {position + 1} are both named {name!r}, expected different names. Rename one of them"
            )
    return names


# -- CSV and TSV ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Record:
    line: int
    fields: list[str]
    broken: str | None = None


class _Unterminated(Exception):
    """A quote that was still open at the end of the file, and how many lines it covers."""


def _read_delimited(text: str, path: Path) -> Table:
    delimiter = _delimiter(text, path)
    records = _records(text, delimiter, path)
    header = next(records)
    if header.broken:
        raise DataError(f"{path.name}:{header.line}: the header has {header.broken}, expected column names. Mend that line")
    names = _check_names(header.fields, f"{path.name}:{header.line}")
    rows, origins, aside = [], [], []
    for record in records:
        origin = f"{path.name}:{record.line}"
        reason = record.broken
        if reason is None and len(record.fields) != len(names):
            reason = f"{len(record.fields)} fields where the header has {len(names)} (a separator inside a field needs quotes)"
        if reason:
            aside.append(SetAside(origin=origin, reason=reason))
        else:
            rows.append(record.fields)
            origins.append(origin)
    if not rows:
        why = f"; {aside[0].origin} has {aside[0].reason}" if aside else ""
        raise DataError(f"{str(path)!r} has the header {names!r} but no readable rows{why}. Check the file's quotes and separator")
    columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
    guessed = path.suffix.lower() == ".csv" and delimiter != ","
    notes = [f"{path.name}: separator {delimiter!r} (guessed)"] if guessed else []
    return Table(table=pa.table(columns, names=names), origins=origins, set_aside=aside, notes=notes)


def _delimiter(text: str, path: Path) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    header = re.sub(r'"[^"]*"', "", _LINE_END.split(text.lstrip(), maxsplit=1)[0])
    return max(",;\t", key=header.count)  # of equals the first: the comma


def _records(text: str, delimiter: str, path: Path) -> Iterator[_Record]:
    """Each record with the line that it starts on. Blank lines are skipped."""
    read_quoted = _quoted_reader(delimiter)
    position, line = 0, 1
    while position < len(text):
        end = _LINE_END.search(text, position)
        stop, following = (end.start(), end.end()) if end else (len(text), len(text))
        content = text[position:stop]
        if '"' not in content:
            if content.strip(" ") or (content and delimiter == "\t"):
                yield _Record(line, content.split(delimiter))
            position, line = following, line + 1
            continue
        try:
            fields, after = read_quoted(text, position)
        except ValueError as error:  # this line alone is lost: the next one is read afresh
            yield _Record(line, [], str(error))
            position, line = following, line + 1
            continue
        except _Unterminated:
            if _LINE_END.search(text.rstrip("\r\n"), position):
                raise DataError(
                    f"{path.name}:{line}: a quote opens on this line and is never closed, so all lines after it would be one field. "
                    'Close the quote, or double it (""), or remove it'
                ) from None
            yield _Record(line, [], "a quote that is never closed")
            return
        yield _Record(line, fields)
        line += _count_lines(text, position, after)
        position = after


def _count_lines(text: str, start: int, stop: int) -> int:
    return text.count("\n", start, stop) + text.count("\r", start, stop) - text.count("\r\n", start, stop)


def _quoted_reader(delimiter: str) -> Callable[[str, int], tuple[list[str], int]]:
    """A function (text, start) → (fields, position after the record), for records that hold a quote somewhere."""
    quoted = re.compile(r'"([^"]*(?:""[^"]*)*)"')
    plain = re.compile(rf"[^{re.escape(delimiter)}\r\n]*")

    def read(text: str, position: int) -> tuple[list[str], int]:
        fields = []
        while True:
            if text.startswith('"', position):
                match = quoted.match(text, position)
                if match is None:
                    raise _Unterminated
                fields.append(match[1].replace('""', '"'))
            else:
                match = plain.match(text, position)
                assert match is not None, "the pattern of a plain field matches the empty text"
                fields.append(match[0])
            position = match.end()
            if text.startswith(delimiter, position):
                position += 1
                continue
            end = _LINE_END.match(text, position)
            if end is None and position < len(text):
                raise ValueError(f"broken quoting: {text[position : position + 12]!r} follows a closing quote")
            return fields, end.end() if end else position

    return read


# -- JSON -------------------------------------------------------------------------------------------------------------


def _read_json(text: str, path: Path) -> Table:
    whole = path.suffix.lower() == ".json" and text.lstrip().startswith("[")
    items = _list_items(text, path) if whole else _line_items(text, path)
    rows, origins, aside = [], [], []
    for line, item, reason in items:
        if reason is None and not isinstance(item, dict):
            reason = f"{json.dumps(item, ensure_ascii=False)[:40]} is not an object with named values"
        if reason:
            aside.append(SetAside(origin=f"{path.name}:{line}", reason=reason))
        else:
            rows.append(item)
            origins.append(f"{path.name}:{line}")
    if not rows:
        why = f"{aside[0].origin}: {aside[0].reason}" if aside else "the list is empty"
        raise DataError(f'{str(path)!r} has no readable rows ({why}), expected one object a line, as in {{"text": "good", "label": "pos"}}')
    keys = list(dict.fromkeys(key for row in rows for key in row))
    names = _check_names([_mend(key) for key in keys], path.name)
    columns = [spell_column([row.get(key) for row in rows]) for key in keys]
    return Table(table=pa.table(columns, names=names), origins=origins, set_aside=aside)


def _line_items(text: str, path: Path) -> Iterator[tuple[int, Any, str | None]]:
    for line, content in enumerate(_LINE_END.split(text), 1):
        if not content.strip():
            continue
        try:
            yield line, json.loads(content), None
        except json.JSONDecodeError as error:
            yield line, None, f"malformed JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
        except (ValueError, RecursionError) as error:
            yield line, None, f"malformed JSON: {error}"


def _list_items(text: str, path: Path) -> Iterator[tuple[int, Any, str | None]]:
    """The items of one JSON list, each with its line. A malformed list has no place to go on from, so it is an error."""
    decoder = json.JSONDecoder()
    space = re.compile(r"\s*")
    position, line, counted = text.index("[") + 1, 1, 0
    position = space.match(text, position).end()  # type: ignore[union-attr]
    while not text.startswith("]", position):
        line, counted = line + _count_lines(text, counted, position), position
        try:
            item, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            message = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(
                f"{path.name}:{line}: malformed JSON in the item that starts here: {message}. Mend it, or write one object a line (.jsonl)"
            ) from error
        yield line, item, None
        position = space.match(text, position).end()  # type: ignore[union-attr]
        if text.startswith(",", position):
            position = space.match(text, position + 1).end()  # type: ignore[union-attr]
        elif not text.startswith("]", position):
            raise DataError(
                f"{path.name}: malformed JSON: got {text[position : position + 12]!r} after the item on line {line}, expected a comma or ]"
            )


# -- Parquet ----------------------------------------------------------------------------------------------------------


def _read_parquet(path: Path) -> Table:
    try:
        with pq.ParquetFile(path) as file:
            _check_names(list(file.schema_arrow.names), path.name)
            table = file.read()
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{str(path)!r} is not a readable Parquet file: {reason}. Write it again, for example with pandas.DataFrame.to_parquet"
        ) from error
    if table.num_rows == 0:
        raise DataError(f"{str(path)!r} has the columns {table.column_names!r} but no rows. Check that it was written completely")
    return Table(table=table, origins=[f"{path.name}:{row}" for row in range(1, table.num_rows + 1)])
