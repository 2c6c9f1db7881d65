"""Bytes to text: UTF-8 (with and without a byte order mark), UTF-16 and GB18030, told apart by decoding exactly.

No statistics are involved: a file is UTF-16 if it starts with a byte order mark or if its NUL bytes stand almost all on the
same side of the pairs; it is UTF-8 if it decodes as UTF-8, which other encodings' text almost never does; and GB18030 (which
contains GBK and GB2312) if it decodes as that. A guess that is not UTF-8 is told to the user, since GB18030 accepts much.
"""

from __future__ import annotations

import codecs
from pathlib import Path

from frostline.errors import DataError

_BINARY = {
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"PK\x03\x04": "a zip archive (or an .xlsx, .npz or .pth file)",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"\x7fELF": "a program (ELF)",
    b"\x1f\x8b": "a gzip archive",
    b"\x93NUMPY": "a numpy array",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"SQLite format 3": "an SQLite database",
    b"PAR1": "a Parquet file",
}


def read_text(path: Path, encoding: str | None) -> tuple[str, str]:
    """The text of a file and the name of the encoding that it was read with. Raises DataError with the file's name.

    Line ends are kept as they are; a byte order mark is removed.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror or error}. Check the path and its permissions") from error
    return decode(content, encoding, str(path))


def decode(content: bytes, encoding: str | None, name: str) -> tuple[str, str]:
    """``(text, encoding)`` of bytes that are called ``name`` in messages.

    >>> decode("好".encode("gb18030"), None, "x.txt")
    ('好', 'gb18030')
    """
    for magic, kind in _BINARY.items():
        if content.startswith(magic):
            raise DataError(
                f"{name!r} starts with {content[: len(magic)]!r} and is {kind}, expected text. Export the rows as CSV, JSONL or .parquet"
            )
    text, used = _decode_as(content, encoding, name) if encoding else _detect(content, name)
    if "\0" in text:
        raise DataError(
            f"{name!r}, read as {used}, holds a NUL character at position {text.index(chr(0))}, expected text. "
            "Name the encoding if it is another one, for example data.encoding=utf-16"
        )
    return text.removeprefix("\ufeff"), used


def _decode_as(content: bytes, encoding: str, name: str) -> tuple[str, str]:
    try:
        return content.decode(encoding), encoding
    except UnicodeError as error:
        where = getattr(error, "start", 0)
        raise DataError(
            f"{name!r}: byte {where} ({content[where : where + 1]!r}) is not {encoding!r}, which data.encoding asks for. "
            "Set data.encoding to the file's own encoding, or leave it out to have it detected"
        ) from error
    except LookupError as error:
        raise DataError(
            f"data.encoding got {encoding!r}, expected a text encoding that Python knows, such as utf-8, gb18030 or latin-1"
        ) from error


def _detect(content: bytes, name: str) -> tuple[str, str]:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _decode_as(content, "utf-16", name)
    if content.startswith(codecs.BOM_UTF8):
        return _decode_as(content, "utf-8-sig", name)
    if side := _utf16_side(content):
        return _decode_as(content, side, name)
    try:
        return content.decode("utf-8"), "utf-8"
    except UnicodeDecodeError as error:
        first = error.start
    try:
        return content.decode("gb18030"), "gb18030"
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name!r}: byte {first} ({content[first : first + 1]!r}) is not UTF-8, and byte {error.start} is not GB18030 either. "
            "Name the encoding, for example data.encoding=latin-1"
        ) from error


def _utf16_side(content: bytes) -> str | None:
    """UTF-16 without a byte order mark: every ASCII character (a comma, a line end) leaves a NUL on the same side of its pair."""
    sample = content[:65_536]
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    if len(content) % 2 or max(even, odd) == 0 or min(even, odd) * 4 > max(even, odd):
        return None
    return "utf-16-le" if odd > even else "utf-16-be"
