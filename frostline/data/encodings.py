"""Bytes to text: UTF-8 (with and without a byte order mark), UTF-16, GB18030 and Big5, told apart by decoding.

A file is UTF-16 if it starts with a byte order mark or if its NUL bytes stand almost all on the same side of the pairs; it is
UTF-8 if it decodes as UTF-8, which other encodings' text almost never does; and GB18030 (which contains GBK and GB2312) if it
decodes as that. GB18030 accepts much, Big5 nearly always: where a file decodes as both, it is the one that gives more of the
commonest Chinese characters. A guess that is not UTF-8 is told to the user.
"""

from __future__ import annotations

import codecs
import contextlib
from pathlib import Path

from frostline.errors import DataError

_COMMON = frozenset(
    "的一是不了在人有我他這这個个們们中來来上大為为和國国地到以說说時时要就出會会可也你對对生能而子那得於于著着下自之年過过發发後后"
    "作里裡用道行所然家種种事成方多經经麼么去法學学如都同現现當当沒没動动面起看定天分還还進进好小部其些主樣样理心她本前開开但因只從从"
)
"""About a hundred of the commonest characters of Chinese texts, as they are written on either side."""
_FEWEST_COMMON = 0.1

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
        text = content.decode("gb18030")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name!r}: byte {first} ({content[first : first + 1]!r}) is not UTF-8, and byte {error.start} is not GB18030 either. "
            "Name the encoding, for example data.encoding=latin-1"
        ) from error
    with contextlib.suppress(UnicodeDecodeError):
        traditional = content.decode("big5")
        if _share_of_common(traditional) > max(_FEWEST_COMMON, 2 * _share_of_common(text)):
            return traditional, "big5"
    return text, "gb18030"


def _share_of_common(text: str) -> float:
    """Of the characters beyond ASCII, how many are among the most common of Chinese."""
    beyond = [character for character in text if not character.isascii()]
    return sum(character in _COMMON for character in beyond) / max(1, len(beyond))


def _utf16_side(content: bytes) -> str | None:
    """UTF-16 without a byte order mark: every ASCII character (a comma, a line end) leaves a NUL on the same side of its pair."""
    sample = content[:65_536]
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    if len(content) % 2 or max(even, odd) == 0 or min(even, odd) * 4 > max(even, odd):
        return None
    return "utf-16-le" if odd > even else "utf-16-be"
