"""Which column is the text, the label, or what else a row holds: named by the recipe, or guessed from a fixed list of names.

The first name of the list that the table has wins, whatever its case, so the same header always gives the same guess; every
guess is noted with the key that overrides it. Two columns that fit the winning name equally (``Text`` and ``text``) are an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Literal

from frostline.errors import DataError

NAMES = {
    "text": ["text", "sentence", "review", "content", "comment", "title", "body", "message", "文本", "内容", "评论", "句子"],
    "label": ["label", "labels", "class", "category", "sentiment", "target", "stars", "rating", "y", "标签", "类别", "情感", "分类"],
    "image": ["path", "image", "file", "filename", "file_name", "img", "图片", "路径", "文件"],
    "document": ["text", "content", "document", "raw_content", "article", "body", "code", "文本", "内容", "文档", "正文"],
    "tokens": ["tokens", "words", "token", "词", "词语", "分词", "字"],
    "tags": ["tags", "ner_tags", "pos_tags", "labels", "tag", "label", "标签", "标注"],
    "source": ["source", "src", "document", "article", "dialogue", "text", "content", "原文", "源文", "文章", "正文", "内容"],
    "target": ["target", "tgt", "summary", "highlights", "abstract", "translation", "译文", "目标", "摘要", "总结"],
    "first": ["first", "sentence1", "query", "anchor", "question", "premise", "text1", "问题", "查询", "句子1"],
    "second": ["second", "sentence2", "positive", "answer", "hypothesis", "text2", "答案", "回答", "正例", "句子2"],
    "prompt": ["prompt", "question", "query", "instruction", "input", "text", "content", "问题", "提问", "指令", "文本", "内容"],
    "answer": ["messages", "conversations", "completion", "chosen", "rejected", "response", "answer", "output", "text", "回答", "答案"],
    "negative": ["negative", "hard_negative", "负例"],
    "score": ["score", "similarity", "similarity_score", "label", "分数", "相似度", "标签"],
}
_FLAGS = {
    "text": "data.input_column",
    "label": "data.label_column",
    "image": "data.input_column",
    "document": "data.input_column",
    "tokens": "data.input_column",
    "tags": "data.label_column",
    "source": "data.input_column",
    "target": "data.label_column",
    "first": "data.input_column",
    "second": "data.label_column",
    "prompt": "data.input_column",
    "answer": "data.input_column",
}
_WHAT = {"image": "image path", "first": "first text", "second": "second text"}

Role = Literal[
    "text", "label", "image", "document", "tokens", "tags", "source", "target", "first", "second", "prompt", "answer", "negative", "score",
]  # fmt: skip


def find_column(names: Sequence[str], role: Role) -> str | None:
    """The column that the list of names points to, or None; for a text with a title, ``title+body``.

    >>> find_column(["id", "Review", "stars"], "text")
    'Review'
    """
    candidates = _candidates(names, role)
    if role != "text" or not candidates:
        return candidates[0] if candidates else None
    title = next((name for name in candidates if name.casefold() == "title"), None)
    other = next((name for name in candidates if name != title), None)
    return f"{title}+{other}" if title and other else candidates[0]


def choose_column(names: Sequence[str], role: Role, given: str | None, where: str) -> tuple[str, list[str]]:
    """``(column, notes)``: the column that the recipe names, else the guess. Raises DataError listing the columns there are.

    A ``given`` text column may join several, as in ``title+body``.
    """
    flag = _FLAGS[role]
    if given is not None:
        missing = [part for part in _parts(names, role, given) if part not in names]
        if missing:
            raise DataError(
                f"{where}: {flag} got {given!r}, but there is no column {missing[0]!r}; the columns are: {_listed(names)}. Set {flag}=NAME"
            )
        return given, []
    found = find_column(names, role)
    if found is None:
        raise DataError(
            f"{where}: no column looks like the {_what(role)}; the columns are: {_listed(names)}. "
            f"Set {flag}=NAME (names that are recognised: {', '.join(NAMES[role])}){_nearly(names)}"
        )
    alike = [name for name in names if name.casefold() == found.casefold()]
    if len(alike) > 1:
        raise DataError(
            f"{where}: the columns {_listed(alike)} could each be the {_what(role)}; the columns are: {_listed(names)}. Set {flag}=NAME"
        )
    others = [name for name in _candidates(names, role) if name not in found.split("+")]
    also = f"; {_listed(others)} would fit too" if others else ""
    return found, [f"{_what(role)} column: {found!r} (guessed; set {flag}{also})"]


def refuse_same(given: str, label: str, where: str) -> None:
    """Raises DataError where what is learned from is the label itself."""
    if given == label:
        raise DataError(f"{where}: {given!r} is the input and the label, expected two columns. Set data.input_column or data.label_column")


def split_joined(names: Sequence[str], column: str) -> list[str]:
    """The columns that ``title+body`` stands for; a column whose own name holds a plus is itself.

    >>> split_joined(["title", "body"], "title+body")
    ['title', 'body']
    """
    return [column] if column in names else column.split("+")


def _parts(names: Sequence[str], role: Role, given: str) -> list[str]:
    return split_joined(names, given) if role == "text" else [given]


def _candidates(names: Sequence[str], role: Role) -> list[str]:
    return [name for wanted in NAMES[role] for name in names if name.casefold() == wanted]


def _nearly(names: Sequence[str]) -> str:
    """A hint where a column's name is nearly one that tells the task."""
    known = {"messages", "conversations", "chosen", "rejected", "prompt", "completion", "instruction", "output"}
    close = [(name, found[0]) for name in names if (found := get_close_matches(name.casefold(), known, n=1, cutoff=0.8))]
    return f". Did you mean {close[0][1]!r} by {close[0][0]!r}?" if close else ""


def _what(role: Role) -> str:
    return _WHAT.get(role, role)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names) or "(none)"
