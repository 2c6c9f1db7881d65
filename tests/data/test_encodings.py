"""Each encoding is told by exact decoding; what cannot be decoded is named with its byte."""

import codecs

import pytest

from frostline.data.encodings import decode, read_text
from frostline.errors import DataError

CHINESE = "文本,标签\n很好，我喜欢。,正面\n太差了！,负面\n"
ENGLISH = "text,label\ngood,pos\nbad,neg\n"


@pytest.mark.parametrize("text", [CHINESE, ENGLISH])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda text: text.encode("utf-8"), "utf-8"),
        (lambda text: text.encode("utf-8-sig"), "utf-8-sig"),
        (lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"), "utf-16"),
        (lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"), "utf-16"),
        (lambda text: text.encode("utf-16-le"), "utf-16-le"),
        (lambda text: text.encode("utf-16-be"), "utf-16-be"),
    ],
)
def test_unicode_encodings_are_found(text, make, name):
    assert decode(make(text), None, "x.csv") == (text, name)


def test_gb18030_with_four_byte_characters(tmp_path):
    text = "标签：好\n𠀀㐀"
    (tmp_path / "评论.txt").write_bytes(text.encode("gb18030"))
    assert read_text(tmp_path / "评论.txt", None) == (text, "gb18030")


def test_a_given_encoding_overrides():
    assert decode("café".encode("latin-1"), "latin-1", "x") == ("café", "latin-1")
    assert decode(codecs.BOM_UTF8 + b"a", "utf-8", "x") == ("a", "utf-8")


@pytest.mark.parametrize(
    ("content", "encoding", "message"),
    [
        (b"abc\xff\xffdef", None, r"'x\.csv': byte 3 \(b'\\xff'\) is not UTF-8.*data\.encoding=latin-1"),
        ("好".encode("gb18030"), "utf-8", r"'x\.csv': byte 0 .* is not 'utf-8', which data\.encoding asks for"),
        (b"abc", "klingon", r"data\.encoding got 'klingon', expected a text encoding"),
        (b"abc", "hex", r"data\.encoding got 'hex', expected a text encoding"),
        (b"ab\0c\0\0", None, r"NUL character at position"),
        (b"\x80\x04\x95bomb", None, r"is a Python pickle, expected text"),
        (b"PK\x03\x04rest", "latin-1", r"is a zip archive"),
        (b"\x89HDF\r\n\x1a\nrest", None, r"is an HDF5 file"),
        (b"\x7fELF", None, r"is a program"),
        (b"\xff\xfea", None, r"is not 'utf-16'"),
    ],
)
def test_what_is_no_text_is_refused(content, encoding, message):
    with pytest.raises(DataError, match=message):
        decode(content, encoding, "x.csv")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no\.txt' cannot be read: No such file"):
        read_text(tmp_path / "no.txt", None)


SIMPLIFIED = "这家店的服务态度很好，下次还会再来。价格有点贵，但是东西不错，送货也很快，总的来说比较满意。"
TRADITIONAL = "這家店的服務態度很好，下次還會再來。價格有點貴，但是東西不錯，送貨也很快，總的來說比較滿意。"


@pytest.mark.parametrize(
    ("text", "encoding", "expected"),
    [
        (SIMPLIFIED, "gbk", "gb18030"),
        (TRADITIONAL, "big5", "big5"),
        (TRADITIONAL, "gbk", "gb18030"),
        ("label,text\n好,今天天氣不錯，我們去看電影\n", "big5", "big5"),
        ("文本,标签\n今天天气不错，我们去看电影,好\n", "gbk", "gb18030"),
        ("caf\u00e9 cr\u00e8me \u00e0 la carte", "latin-1", None),
    ],
)
def test_big5_and_gb18030_by_what_they_give(text, encoding, expected, tmp_path):
    path = tmp_path / "文本.txt"
    path.write_bytes(text.encode(encoding))
    if expected is None:
        with pytest.raises(DataError, match="latin-1"):
            read_text(path, None)
    else:
        assert read_text(path, None) == (text, expected)
