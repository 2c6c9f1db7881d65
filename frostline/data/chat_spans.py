"""Where each turn of a conversation stands in the text that a chat template makes of it (law 5), for any template.

Nothing is looked for by its spelling. The template itself is asked, by *rendering variants* of the conversation:

content     message i with a mark of our own as its content; what follows the mark must be the end of the real text, so the
            content ends where that begins
header      the messages before an answer, with the generation prompt: what that gives behind the last content must stand there
            in the real text too, and the answer begins behind it
end         the messages up to and with an answer: what that gives behind the content, as far as the real text agrees (a
            template may end the whole conversation otherwise than a turn), is the turn's own end. The answer's span goes up to
            and with the first added token of it (``<|im_end|>``, ``</s>``), or to its last character that is no space

Everything is counted from the content just before, so templates may move the system turn or the tools, strip contents, drop
the reasoning of earlier answers, and refuse roles. Where the equalities do not hold, nothing is guessed: :class:`Unproven`.

Decisions. A template that does not know ``add_generation_prompt`` has the text before an answer's content as its header.
Spaces at the end of a header belong to the answer, in training and in generation alike, because tokenizers write a word and
the space before it as one token. What a template puts between header and content (Qwen3's empty reasoning) is trained: the
model has to write it. Of an answer with tool calls the span holds the calls.

Rendering variants of every row would be slow. But the skeleton of a conversation, with marks for *all* contents, is the same
for all conversations of one shape; it is measured once, and a row of that shape needs one rendering: if it is the skeleton
with contents (as they are, stripped, or as JSON) for marks, the positions carry over. Else the row is measured by itself.
"""

from __future__ import annotations

import bisect
import copy
import functools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

Message = dict[str, Any]
Tools = list[dict[str, Any]] | None

_MARK = "\ue000{}\ue001"  # private-use characters: no tokenizer is involved, and no template strips them
_MARKS = re.compile("\ue000(\\d+)\ue001")
_CALL_MARK = "frostline-marks-a-call"  # plain letters: templates write calls as JSON, which may spell others out


class Refused(Exception):
    """A template cannot render a conversation, and why."""


class Unproven(Exception):
    """The places of the answers cannot be proven for this template, and what it does."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """A chat template with its tokenizer, as functions."""

    render: Callable[[Sequence[Message], Tools, bool], str]
    """(messages, tools, whether to ask for an answer) → text. Raises Refused."""
    added: Callable[[str], list[tuple[str, int]]]
    """The tokens of a text that are in the vocabulary by name (special ones and others that are not blank), each with its end."""
    endings: frozenset[str] = frozenset()
    """Tokens that end an answer."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a turn stands: characters of the rendered text."""

    role: str
    end: int
    """Where the turn ends; it begins where the one before ends."""
    answer: tuple[int, int] | None = None
    """Of an assistant's turn: what the model has to write, its end token included."""
    closed: bool = False
    """Whether the answer has an end token (or end text) at all."""
    asked: bool = True
    """Whether the answer stands behind just what generation is asked with."""


def prompt_text(messages: Sequence[Message], tools: Tools, template: Template) -> str:
    """The text that asks for the next answer. Spaces at its end are the answer's."""
    asked = template.render(messages, tools, True) if messages else ""
    plain = template.render(messages, tools, False) if messages else ""
    if asked != plain:
        return asked.rstrip(" ")
    shown = template.render([*messages, {"role": "assistant", "content": _MARK.format(len(messages))}], tools, False)
    header, mark, _ = shown.partition(_MARK.format(len(messages)))
    return header.rstrip(" ") if mark else asked.rstrip(" ")


def locator(template: Template) -> Callable[[Sequence[Message], Tools], tuple[str, list[Place]]]:
    """A function (messages, tools) → (rendered text, a place for each message). It remembers the shapes that it has seen."""

    @functools.lru_cache(maxsize=1024)
    def skeleton(shape: str) -> tuple[str, list[Place]] | None:
        messages, tools = json.loads(shape)
        try:
            text = template.render(messages, tools, False)
            variants = [_Variant(messages=messages, shown=text)] * len(messages)
            return text, _measure(text, messages, variants, tools, template)
        except (Refused, Unproven):  # a template may want more of a content than a mark has; the row itself is measured then
            return None

    def locate(messages: Sequence[Message], tools: Tools) -> tuple[str, list[Place]]:
        text = template.render(messages, tools, False)
        if _MARKS.search(text):
            raise Refused(f"it holds {_MARKS.search(text)[0]!r}, private characters that mark contents here")  # type: ignore[index]
        marked = [_marked(message, index) for index, message in enumerate(messages)]
        known = skeleton(json.dumps([marked, tools], ensure_ascii=False))
        places = _carried_over(known[0], known[1], messages, text) if known else None
        if places is None:
            several = [[*messages[:i], marked[i], *messages[i + 1 :]] for i in range(len(messages))]
            variants = [_Variant(messages=each, shown=template.render(each, tools, False)) for each in several]
            places = _measure(text, messages, variants, tools, template)
            _check_contents(text, places, messages)
        return text, places

    return locate


# -- From the skeleton ------------------------------------------------------------------------------------------------


def _marked(message: Message, index: int) -> Message:
    """With a mark as its content; a blank one stays, since templates treat it otherwise (and give it no place)."""
    return {**message, "content": _MARK.format(index)} if (message.get("content") or "").strip() else message


def _spellings(content: str) -> list[str]:
    """What templates make of a content."""
    as_json = json.dumps(content, ensure_ascii=False)[1:-1]
    return list(dict.fromkeys((content, content.strip(), content.rstrip(), content.lstrip(), as_json)))


def _carried_over(skeleton: str, places: list[Place], messages: Sequence[Message], text: str) -> list[Place] | None:
    """The skeleton's places in the text; None if the text is not the skeleton with contents for marks."""
    marks = list(_MARKS.finditer(skeleton))
    stops = [*(mark.start() for mark in marks[1:]), len(skeleton)]
    position = marks[0].start() if marks else len(skeleton)
    if not text.startswith(skeleton[:position]):
        return None
    borders, shifts = [0], [0]
    for mark, stop in zip(marks, stops, strict=False):
        following = skeleton[mark.end() : stop]
        spellings = _spellings(messages[int(mark[1])]["content"])
        spelling = next((each for each in spellings if text.startswith(each + following, position)), None)
        if spelling is None:
            return None
        position += len(spelling)
        borders.append(mark.end())
        shifts.append(position - mark.end())
        position += len(following)
    if position != len(text):
        return None

    def moved(place: int) -> int:
        return place + shifts[bisect.bisect_right(borders, place) - 1]

    return [
        replace(place, end=moved(place.end), answer=place.answer and (moved(place.answer[0]), moved(place.answer[1]))) for place in places
    ]


# -- By variants ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Variant:
    """The conversation with (at least) the content of one message marked, and its rendering."""

    messages: Sequence[Message]
    shown: str


@dataclass(frozen=True, kw_only=True)
class _Anchor:
    """A content whose end is known: the prefix of a variant is compared with the text from there on."""

    messages: Sequence[Message]
    position: int = 0
    mark: str = ""

    def behind(self, rendered: str) -> str:
        """What a rendering of a prefix holds behind the mark."""
        if not self.mark:
            return rendered
        if rendered.count(self.mark) != 1:
            raise Unproven("renders a message otherwise when it is the last one")
        return rendered.partition(self.mark)[2]


def _measure(text: str, messages: Sequence[Message], variants: Sequence[_Variant], tools: Tools, template: Template) -> list[Place]:
    """The places in the rendering of ``messages``; ``variants[i]`` has the content of message i marked."""
    places: list[Place] = []
    before = anchor = _Anchor(messages=messages)
    for index, variant in enumerate(variants):
        before, found = anchor, _content_end(text, variant, index)
        if found is not None:
            anchor = _Anchor(messages=variant.messages, position=found, mark=_MARK.format(index))
        role, last = messages[index]["role"], index == len(variants) - 1
        if role != "assistant":
            end = len(text) if last else _end_or_content(text, anchor, index, tools, template)
            places.append(Place(role=role, end=max(end, places[-1].end if places else 0)))
            continue
        start, asked = _answer_start(text, before, index, tools, template)
        called = bool(messages[index].get("tool_calls"))
        if called:
            body, end = _calls(text, variant.messages, index, tools, template)
        else:
            body, end = start if found is None else found, len(text) if last else _turn_end(text, anchor, index, tools, template)
        stop, closed = _answer_end(text[body:end], called, template)
        places.append(Place(role=role, end=end, answer=(start, body + stop), closed=closed, asked=asked))
    return places


def _content_end(text: str, variant: _Variant, index: int) -> int | None:
    """None: the content of this message gives no place to count from."""
    mark = _MARK.format(index)
    if variant.messages[index].get("content") != mark:
        return None
    count, behind = variant.shown.count(mark), variant.shown.partition(mark)[2]
    if count == 1 and text.endswith(behind):
        return len(text) - len(behind)
    if variant.messages[index]["role"] != "assistant":
        return None
    if count == 1:
        raise Unproven("makes what follows an answer depend on the answer's content")
    raise Unproven(f"writes an answer's content {count} times")


def _turn_end(text: str, anchor: _Anchor, index: int, tools: Tools, template: Template) -> int:
    behind = anchor.behind(template.render(anchor.messages[: index + 1], tools, False))
    return anchor.position + _agreement(behind, text, anchor.position)


def _end_or_content(text: str, anchor: _Anchor, index: int, tools: Tools, template: Template) -> int:
    """Of a turn that is not trained: its border is for people, and a template may refuse to render a system turn alone."""
    try:
        return _turn_end(text, anchor, index, tools, template)
    except (Refused, Unproven):
        return anchor.position


def _answer_start(text: str, anchor: _Anchor, index: int, tools: Tools, template: Template) -> tuple[int, bool]:
    """``(where the answer begins, whether it stands behind just what generation is asked with)``."""
    asked = anchor.behind(prompt_text(anchor.messages[:index], tools, template))
    start = anchor.position + _agreement(asked, text, anchor.position)
    if start == anchor.position + len(asked):
        return start, True
    # DeepSeek-R1 asks with a <think> that answers lack: proven all the same if a plain answer's content begins on the way
    mark = _MARK.format(index)
    plain = template.render([*anchor.messages[:index], {"role": "assistant", "content": mark}], tools, False)
    header = anchor.behind(plain.partition(mark)[0])
    header = header.rstrip(" ")
    if asked.startswith(header) and text.startswith(header, anchor.position):
        return anchor.position + len(header), False
    raise Unproven(f"asks for an answer with {asked[-60:]!r}, but writes answers behind {header[-60:]!r}")


def _calls(text: str, messages: Sequence[Message], index: int, tools: Tools, template: Template) -> tuple[int, int]:
    """Where the tool calls end (but for closing brackets), and their turn: all behind the last call's arguments stays if they change."""
    calls = copy.deepcopy(messages[index]["tool_calls"])
    name = calls[-1]["function"]["name"]
    calls[-1]["function"]["arguments"] = {_CALL_MARK: _CALL_MARK}
    changed = [*messages[:index], {**messages[index], "tool_calls": calls}, *messages[index + 1 :]]
    shown, alone = template.render(changed, tools, False), template.render(changed[: index + 1], tools, False)
    if _CALL_MARK not in shown or _CALL_MARK not in alone:
        raise Refused(f"the template leaves out the call of {name!r}")
    behind = shown.rpartition(_CALL_MARK)[2]
    last = index == len(messages) - 1
    own = len(behind) if last else _agreement(alone.rpartition(_CALL_MARK)[2], behind, 0)
    return len(text) - _agreement(behind[::-1], text[::-1], 0), len(text) - len(behind) + own


def _answer_end(tail: str, calls: bool, template: Template) -> tuple[int, bool]:
    """How much of what stands behind an answer's body belongs to it, and whether that holds an end token or text."""
    added = template.added(tail)
    if calls:  # tokens of their own may close the calls before the turn is closed
        added = [(token, end) for token, end in added if token in template.endings] or added[-1:]
    if added:
        return added[0][1], True
    return len(tail.rstrip()), bool(tail.strip())


def _agreement(wanted: str, text: str, position: int) -> int:
    """How many characters of ``wanted`` stand in the text from the position on."""
    if text.startswith(wanted, position):
        return len(wanted)
    pairs = zip(wanted, text[position : position + len(wanted)], strict=False)
    return next((count for count, (a, b) in enumerate(pairs) if a != b), min(len(wanted), len(text) - position))


def _check_contents(text: str, places: list[Place], messages: Sequence[Message]) -> None:
    """The proof by reading: an answer's span holds its content, or (where reasoning is dropped) the content's last line."""
    for place, message in zip(places, messages, strict=True):
        content = (message.get("content") or "").strip()
        if not place.answer or not content:
            continue
        shown = text[slice(*place.answer)]
        if content not in shown and content.rpartition("\n")[2].strip() not in shown:
            raise Unproven(f"writes an answer that begins {content[:40]!r} as {shown[:40]!r}")
