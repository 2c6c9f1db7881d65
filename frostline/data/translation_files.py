"""Pairs of texts from the formats of translators: TMX, PO and MO.

All three are read by readers of our own, since the files may come from anywhere (law 11): a TMX whose DOCTYPE defines anything is
refused (entities that name entities can ask for more memory than there is, or for other files); Python's ``gettext`` is not used
for MO files, because it compiles the plural rule that the file holds; and the table of an MO file is checked against its size.

TMX            each ``<tu>`` holds a text in several languages; inline codes (``<bpt> <ept> <it> <ph> <ut>``) are left out
PO and MO      msgid and msgstr. Of plural forms the first goes with msgid, the last with msgid_plural. The header, messages that
               are not translated and (PO) fuzzy or obsolete ones are skipped, with a count
"""

from __future__ import annotations

import codecs
import re
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

from frostline.data.encodings import read_text
from frostline.data.raw import SetAside
from frostline.errors import DataError
from frostline.recipe import DataRecipe

SUFFIXES = (".tmx", ".po", ".mo")
_CODES = {"bpt", "ept", "it", "ph", "ut"}
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r"}
_PO_LINE = re.compile(r'(msgctxt|msgid_plural|msgid|msgstr(?:\[(\d+)\])?)?\s*"(.*)"\s*$')
_MO_LARGEST = 1 << 31


@dataclass(kw_only=True)
class Pairs:
    """Texts and their translations, with their places."""

    sources: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    languages: tuple[str, str] | None = None
    """Of the sources and of the targets, where the file says them."""

    def add(self, source: str, target: str, origin: str) -> None:
        self.sources.append(source)
        self.targets.append(target)
        self.origins.append(origin)


def read_pairs(path: Path, recipe: DataRecipe) -> Pairs:
    """The pairs of a .tmx, .po or .mo file."""
    match path.suffix.lower():
        case ".tmx":
            return _from_tmx(path, recipe)
        case ".po":
            return _from_messages(_po_messages(_declared_text(path, recipe, rb"charset=([\w-]+)"), path.name), path)
        case _:
            return _from_messages(_mo_messages(path), path)


# -- TMX --------------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Memory:
    """What a TMX file has given so far."""

    source_language: str = ""
    units: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """(line, language → text) of each unit."""
    language: str = ""
    text: list[str] | None = None
    """Of the open <seg>."""
    codes: int = 0
    """How many inline codes are open."""


def _read_tmx(path: Path, recipe: DataRecipe) -> _Memory:
    memory, parser = _Memory(), expat.ParserCreate("utf-8")

    def start(name: str, attributes: dict[str, str]) -> None:
        if name == "header":
            memory.source_language = attributes.get("srclang", "").casefold()
        elif name == "tu":
            memory.units.append((parser.CurrentLineNumber, {}))
        elif name == "tuv":
            memory.language = (attributes.get("xml:lang") or attributes.get("lang", "")).casefold()
        elif name == "seg":
            memory.text, memory.codes = [], 0
        elif name in _CODES:
            memory.codes += 1

    def end(name: str) -> None:
        if name == "seg" and memory.text is not None and memory.units:
            memory.units[-1][1].setdefault(memory.language, "".join(memory.text).strip())
            memory.text = None
        elif name in _CODES:
            memory.codes -= 1

    def characters(text: str) -> None:
        if memory.text is not None and memory.codes <= 0:
            memory.text.append(text)

    def refuse(*declared: Any) -> None:
        raise DataError(f"{path.name}: the file's DOCTYPE defines {declared[0]!r}, expected none that defines anything. Remove the DOCTYPE")

    def doctype(name: str, system: str | None, public: str | None, inside: int) -> None:
        if inside:
            refuse(name)

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, characters
    parser.StartDoctypeDeclHandler, parser.EntityDeclHandler = doctype, refuse
    try:
        parser.Parse(_declared_text(path, recipe, rb"<\?xml[^>]*encoding=[\"']([\w-]+)").encode("utf-8", "replace"), True)
    except expat.ExpatError as error:
        raise DataError(
            f"{path.name}:{error.lineno}: not readable as XML: {expat.ErrorString(error.code)}. Mend the line, or export the memory again"
        ) from error
    return memory


def _from_tmx(path: Path, recipe: DataRecipe) -> Pairs:
    memory = _read_tmx(path, recipe)
    languages = Counter(language for _, texts in memory.units for language in texts)
    if len(languages) < 2:
        raise DataError(f"{path.name}: {len(memory.units)} units in {len(languages)} languages, expected texts in two. Export it again")
    source = _language(recipe.input_column, "data.input_column", languages, path) or (
        memory.source_language if memory.source_language in languages else next(iter(languages))
    )
    others = [language for language in languages if language != source]
    target = _language(recipe.label_column, "data.label_column", languages, path) or (others[0] if len(others) == 1 else None)
    if target is None or target == source:
        raise DataError(
            f"{path.name}: the languages are {', '.join(languages)}, and the source is {source!r}. "
            f"Name the target's with data.label_column={others[0]}"
        )
    note = f"{path.name}: from {source!r} to {target!r} (set data.input_column, data.label_column)"
    pairs = Pairs(notes=[note], languages=(source, target))
    for line, texts in memory.units:
        if source in texts and target in texts:
            pairs.add(texts[source], texts[target], f"{path.name}:{line}")
        else:
            missing = source if source not in texts else target
            pairs.set_aside.append(SetAside(origin=f"{path.name}:{line}", reason=f"no text in {missing!r}"))
    return pairs


def _language(given: str | None, key: str, languages: Counter[str], path: Path) -> str | None:
    """The language that the recipe names: itself, or the only one that begins so (``zh`` for ``zh-cn``)."""
    if given is None:
        return None
    wanted = given.casefold()
    near = [language for language in languages if language == wanted] or [name for name in languages if name.startswith(wanted)]
    if len(near) != 1:
        raise DataError(
            f"{path.name}: {key} got {given!r}, but the languages are {', '.join(languages)}. Use: {key}={next(iter(languages))}"
        )
    return near[0]


# -- PO and MO --------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Message:
    origin: str
    ids: list[str] = field(default_factory=list)
    """msgid, and msgid_plural if there is one."""
    texts: list[str] = field(default_factory=list)
    fuzzy: bool = False


def _from_messages(messages: Iterator[_Message], path: Path) -> Pairs:
    pairs = Pairs()
    skipped: Counter[str] = Counter()
    for message in messages:
        if not message.ids or not message.ids[0]:
            continue  # the header
        if message.fuzzy:
            skipped["fuzzy"] += 1
        elif not any(message.texts):
            skipped["not translated"] += 1
        else:
            ends = [message.texts[0], message.texts[-1]]
            for source, target in zip(message.ids, ends):
                if target:
                    pairs.add(source, target, message.origin)
    if skipped:
        pairs.notes.append(f"{path.name}: messages left out: {', '.join(f'{count} {why}' for why, count in sorted(skipped.items()))}")
    return pairs


def _declared_text(path: Path, recipe: DataRecipe, pattern: bytes) -> str:
    """The file in the encoding that itself declares, unless the recipe names one; found out where it declares none that is known."""
    encoding = recipe.encoding
    if encoding is None:
        try:
            with open(path, "rb") as file:
                named = re.search(pattern, file.read(8192))
            encoding = codecs.lookup(named[1].decode()).name if named else None
        except (OSError, LookupError):
            encoding = None
        encoding = None if encoding is not None and encoding.startswith("utf-") else encoding  # with and without a mark
    return read_text(path, encoding)[0]


def _po_messages(text: str, name: str) -> Iterator[_Message]:
    message, fuzzy = None, False
    part: list[str] | None = None
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            fuzzy = fuzzy or (line.startswith("#,") and "fuzzy" in line)
            part = None
            continue
        found = _PO_LINE.match(line)
        if found is None or (found[1] is None and part is None):
            raise DataError(f'{name}:{number}: {line[:60]!r} is no line of a PO file, expected msgid "…" or msgstr "…". Mend that line')
        keyword, content = found[1], _ESCAPE.sub(lambda escape: _ESCAPED.get(escape[1], escape[1]), found[3])
        if keyword in ("msgctxt", "msgid") and (message is None or message.texts):
            if message is not None:
                yield message
            message, fuzzy = _Message(origin=f"{name}:{number}", fuzzy=fuzzy), False
        if keyword is not None:
            part = [] if keyword == "msgctxt" or message is None else message.ids if "id" in keyword else message.texts
            part.append("")
        assert part is not None, "a line without a keyword goes on with the one before"
        part[-1] += content
    if message is not None:
        yield message


def _mo_messages(path: Path) -> Iterator[_Message]:
    """Of a compiled catalogue: magic, revision, count, and where the tables of (length, place) of ids and texts begin."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror or error}. Check the path and its permissions") from error
    order = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}.get(content[:4])
    if order is None or len(content) < 20:
        raise DataError(f"{path.name} starts with {content[:4]!r}, expected a compiled catalogue (.mo). Compile it again with msgfmt")
    count, ids_at, texts_at = struct.unpack_from(f"{order}3I", content, 8)
    if max(ids_at, texts_at) + 8 * count > len(content) or len(content) > _MO_LARGEST:
        raise DataError(
            f"{path.name}: a table of {count} messages does not fit into its {len(content)} bytes. Compile it again with msgfmt"
        )
    charset: str | None = None
    for number in range(count):
        both = []
        for table in (ids_at, texts_at):
            length, place = struct.unpack_from(f"{order}2I", content, table + 8 * number)
            if place + length > len(content):
                raise DataError(f"{path.name}: message {number + 1} ends behind the end of the file. Compile it again with msgfmt")
            both.append(content[place : place + length])
        if not both[0]:
            named = re.search(rb"charset=([\w-]+)", both[1])
            charset = named[1].decode() if named else None
        try:
            ids, texts = (part.decode(charset or "utf-8").split("\0") for part in both)
        except (UnicodeError, LookupError) as error:
            raise DataError(
                f"{path.name}: message {number + 1} is not {charset or 'utf-8'}: {error}. Compile it again with msgfmt"
            ) from error
        ids[0] = ids[0].rpartition("\x04")[2]  # the context stands before it
        yield _Message(origin=f"{path.name}:{number + 1}", ids=ids, texts=texts)
