"""TMX, PO and MO give the same pairs; hostile ones are refused."""

from __future__ import annotations

import struct

import pytest

from frostline.data.translation_files import read_pairs
from frostline.errors import DataError
from frostline.recipe import DataRecipe

TMX = """<?xml version="1.0"?><!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4"><header srclang="en"/><body>
<tu><tuv xml:lang="EN"><seg>Snow &amp; <bpt i="1">&lt;b></bpt>ice<ept i="1">&lt;/b></ept></seg></tuv>
<tuv xml:lang="zh-CN"><seg>雪和冰</seg></tuv></tu>
<tu><tuv xml:lang="en"><seg>only</seg></tuv></tu>
</body></tmx>"""
PO = r"""
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\n"

#: a.c:1
msgid "Open \"file\"\n"
msgstr "打开"
"“文件”\n"

#, c-format, fuzzy
msgid "no"
msgstr "否"

msgid "empty"
msgstr ""

msgctxt "menu"
msgid "%d row"
msgid_plural "%d rows"
msgstr[0] "%d 行"
msgstr[1] "%d 行们"

#~ msgid "old"
#~ msgstr "旧"
"""
PAIRS = [('Open "file"\n', "打开“文件”\n"), ("%d row", "%d 行"), ("%d rows", "%d 行们")]


RECIPE = DataRecipe()


def read(path, content, recipe=RECIPE):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    made = read_pairs(path, recipe)
    return list(zip(made.sources, made.targets)), made


def catalogue(pairs):
    """A compiled catalogue, as msgfmt writes it."""
    pairs = sorted((a.encode(), b.encode()) for a, b in pairs)
    start, tables, data = 28 + 16 * len(pairs), [b"", b""], b""
    for side in (0, 1):
        for pair in pairs:
            tables[side] += struct.pack("<2I", len(pair[side]), start + len(data))
            data += pair[side] + b"\0"
    return struct.pack("<7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0) + tables[0] + tables[1] + data


def test_tmx(tmp_path):
    pairs, made = read(tmp_path / "a.tmx", TMX)
    assert pairs == [("Snow & ice", "雪和冰")] and made.origins == ["a.tmx:3"]
    assert [(row.origin, row.reason) for row in made.set_aside] == [("a.tmx:5", "no text in 'zh-cn'")]
    assert made.notes == ["a.tmx: from 'en' to 'zh-cn' (set data.input_column, data.label_column)"]
    assert read(tmp_path / "a.tmx", TMX, DataRecipe(input_column="zh"))[0] == [("雪和冰", "Snow & ice")]
    assert read(tmp_path / "a.tmx", TMX.encode("utf-16"))[0] == pairs


@pytest.mark.parametrize(
    "doctype",
    [
        '<!DOCTYPE tmx [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>',
        '<!DOCTYPE tmx [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
        "<!DOCTYPE tmx []>",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_doctype_that_defines_is_refused(doctype, encoding, tmp_path):
    content = f"{doctype}<tmx><body><tu><tuv xml:lang='en'><seg>&b;&x;</seg></tuv></tu></body></tmx>"
    with pytest.raises(DataError, match=r"a\.tmx: the file's DOCTYPE defines 'tmx', expected none"):
        read(tmp_path / "a.tmx", content.encode(encoding))


@pytest.mark.parametrize(
    ("content", "recipe", "message"),
    [
        ("<tmx><body>", DataRecipe(), r"a\.tmx:1: not readable as XML"),
        ("<tmx/>", DataRecipe(), r"0 units in 0 languages, expected texts in two"),
        (TMX, DataRecipe(label_column="de"), r"data\.label_column got 'de', but the languages are en, zh-cn"),
        (
            TMX.replace(">only<", ">x</seg></tuv><tuv xml:lang='fr'><seg>y<"),
            DataRecipe(),
            r"languages are en, zh-cn, fr, and the source is 'en'",
        ),
    ],
)
def test_bad_tmx(content, recipe, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.tmx", content, recipe)


def test_po(tmp_path):
    pairs, made = read(tmp_path / "zh.po", PO)
    assert pairs == PAIRS and made.origins == ["zh.po:6", "zh.po:17", "zh.po:17"]
    assert made.notes == ["zh.po: messages left out: 1 fuzzy, 1 not translated"]
    assert read(tmp_path / "zh.po", PO.replace("UTF-8", "GB18030").encode("gb18030"))[0] == PAIRS
    with pytest.raises(DataError, match=r"zh\.po:1: 'msgid open' is no line of a PO file"):
        read(tmp_path / "zh.po", 'msgid open\nmsgstr ""')


def test_mo(tmp_path):
    content = catalogue(
        [("", "charset=UTF-8\nPlural-Forms: plural=__import__('os');\n"), PAIRS[0], ("menu\x04%d row\0%d rows", "%d 行\0%d 行们")]
    )
    pairs, _ = read(tmp_path / "zh.mo", content)
    assert sorted(pairs) == sorted(PAIRS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04" + b"\0" * 30, "starts with b'PK"),
        (struct.pack("<7I", 0x950412DE, 0, 1 << 30, 28, 28, 0, 0), "a table of 1073741824 messages does not fit into its 28 bytes"),
        (struct.pack("<9I", 0x950412DE, 0, 1, 28, 28, 0, 0, 1 << 31, 4), "message 1 ends behind the end of the file"),
    ],
)
def test_a_hostile_catalogue_takes_no_memory(content, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read(tmp_path / "zh.mo", content)


def test_declared_encodings_are_believed(tmp_path):
    tmx = TMX.replace('version="1.0"', 'version="1.0" encoding="ISO-8859-1"').replace("雪和冰", "neige d'été").encode("latin-1")
    assert read(tmp_path / "a.tmx", tmx)[0] == [("Snow & ice", "neige d'été")]
    po = 'msgid ""\nmsgstr "charset=ISO-8859-1"\n\nmsgid "summer"\nmsgstr "été"\n'.encode("latin-1")
    assert read(tmp_path / "fr.po", po)[0] == [("summer", "été")]
    bad = catalogue([("", "charset=ASCII"), ("a", "雪")])
    with pytest.raises(DataError, match=r"zh\.mo: message 2 is not ASCII"):
        read(tmp_path / "zh.mo", bad)
