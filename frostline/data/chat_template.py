"""The one path from a conversation to token ids: training, evaluation, prediction and serving all come through here (law 5).

A conversation is rendered by the tokenizer's own chat template (Jinja, in the sandbox of transformers) and the *text* is
tokenized, without adding anything: the template writes the begin token itself, if there is one. Which characters the model has
to learn is known from the turns' places (chat_spans.py); if the template marks answers itself with ``{% generation %}``, its
marks count, less the spaces behind an end token. A token is trained if it lies wholly inside an answer; one that crosses the
border (part header, part answer) is not, as the model will never have to write it behind the header.

A tokenizer without a template gets ChatML (OpenAI, 2023) by :func:`with_template`. The template is set on the tokenizer, so it
is saved with the model.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from frostline.data.chat_spans import Message, Place, Refused, Template, Tools, Unproven, locator, prompt_text
from frostline.errors import DataError

TrainOn = Literal["assistant", "last", "all"]

_TEXTS_AT_ONCE = 500
_A_LETTER = "A"
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PROBE: list[Message] = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
_CHATML = (
    "{{% for message in messages %}}{{{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + {end} + '\\n' }}}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{ '<|im_start|>assistant\\n' }}}}{{% endif %}}"
)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Tokens ``start`` to ``end`` of a conversation, header and end token included."""

    role: str
    start: int
    end: int
    closing: int | None = None
    """Of an assistant's turn that is trained: the index of its last trained token, if that belongs to the end of the turn."""


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A conversation as the model sees it."""

    text: str
    ids: list[int]
    trained: list[bool]
    """For each token, whether it is learned (not shifted)."""
    turns: list[Turn]
    asked: bool = True
    """Whether answers stand just behind what generation is asked with (DeepSeek-R1's prompts end in a <think> of their own)."""


def render(messages: Sequence[Message], tools: Tools, tokenizer: Any, *, train_on: TrainOn = "assistant") -> Rendered:
    """One conversation. Raises DataError where the template refuses it. For many, :func:`render_all` is faster."""
    (result,) = render_all([(messages, tools)], tokenizer, train_on=train_on)
    if isinstance(result, str):
        raise DataError(f"the chat template cannot render the conversation {_short(messages)}: {result}. Mend the conversation")
    return result


def render_all(
    conversations: Iterable[tuple[Sequence[Message], Tools]], tokenizer: Any, *, train_on: TrainOn = "assistant"
) -> list[Rendered | str]:
    """Each conversation (messages, tools) rendered, or why the template refuses it.

    Raises DataError where the answers' places cannot be proven, since then no row of this template can be trusted.
    """
    locate = locator(_template(tokenizer))
    located: list[tuple[str, list[Place]] | str] = []
    for messages, tools in conversations:
        try:
            text, places = locate(messages, tools)
            located.append((text, _as_declared(text, places, messages, tools, tokenizer)))
        except Refused as refusal:
            located.append(str(refusal))
        except Unproven as failure:
            raise DataError(
                f"the tokenizer's chat template {failure}, so what is to be trained cannot be told, e.g. in the conversation "
                f"{_short(messages)}. Mark the answers in the template with {{% generation %}}, or set tokenizer.chat_template to another"
            ) from failure
    texts = [one[0] for one in located if not isinstance(one, str)]
    encodings = iter(_encoded(texts, tokenizer))
    return [one if isinstance(one, str) else _rendered(*one, *next(encodings), train_on) for one in located]


def prompt_ids(messages: Sequence[Message], tools: Tools, tokenizer: Any) -> list[int]:
    """The ids that ask for the next answer: what stands before that answer's trained tokens in training, token for token."""
    try:
        text = prompt_text(messages, tools, _template(tokenizer))
    except Refused as refusal:
        raise DataError(
            f"the chat template cannot render the conversation {_short(messages)}: {refusal}. Mend the conversation"
        ) from refusal
    # GPT-2's rule cuts line breaks before a letter otherwise than at the end of a text, so a letter stands behind them here too
    ((ids, extents),) = _encoded([text + _A_LETTER], tokenizer)
    before = int(np.searchsorted(extents[:, 1], len(text), side="right"))
    if before and extents[before - 1, 1] == len(text):
        return ids[:before]
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def stop_tokens(tokenizer: Any) -> list[int]:
    """The ids that end an answer: the tokenizer's end token, and the one that the template puts behind an answer."""
    found = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    if tokenizer.chat_template is not None:
        found += [tokenizer.convert_tokens_to_ids(token) for token in _endings(tokenizer)]
    return list(dict.fromkeys(found))


def with_template(tokenizer: Any) -> list[str]:
    """Give a tokenizer without a chat template ChatML, and return the warning that says so; nothing is done to others.

    A turn ends in <|im_end|> if that is one of the tokenizer's tokens, else in its end token: generation stops at one token.
    """
    if tokenizer.chat_template is not None:
        return []
    ends_in = "<|im_end|>"
    if ends_in not in tokenizer.added_tokens_encoder and tokenizer.eos_token is not None:
        ends_in = tokenizer.eos_token
    tokenizer.chat_template = _CHATML.format(end=json.dumps(ends_in, ensure_ascii=False))
    end = "" if ends_in == "<|im_end|>" else f", with {ends_in!r} at the end of a turn"
    return [f"the chat template was missing and ChatML was chosen{end}; it is saved with the model"]


# -- The template -----------------------------------------------------------------------------------------------------


def _template(tokenizer: Any) -> Template:
    if tokenizer.chat_template is None:
        raise DataError(
            "the tokenizer has no chat template (chat_template is None), expected one. Set tokenizer.chat_template, "
            "or call frostline.data.chat_template.with_template(tokenizer)"
        )
    if not tokenizer.is_fast:
        raise DataError(
            f"the tokenizer is a {type(tokenizer).__name__}, which does not tell where its tokens stand in the text, expected a fast one. "
            "Load it with: transformers.AutoTokenizer.from_pretrained(FOLDER)"
        )
    template = Template(render=functools.partial(_render, tokenizer), added=functools.partial(_added, tokenizer))
    return replace(template, endings=frozenset(_endings(tokenizer)) | ({tokenizer.eos_token} - {None}))


def _endings(tokenizer: Any) -> list[str]:
    """The token (none or one) that the template puts behind a plain answer."""
    template = Template(render=functools.partial(_render, tokenizer), added=functools.partial(_added, tokenizer))
    try:
        text, places = locator(template)(_PROBE, None)
    except (Refused, Unproven):  # then it says so of the data's own conversations, or does well with them
        return []
    answer = places[-1].answer
    assert answer is not None, "the probe's last turn is an assistant's"
    return [token for token, end in _added(tokenizer, text[: answer[1]]) if end == answer[1]]


def _render(tokenizer: Any, messages: Sequence[Message], tools: Tools, ask: bool) -> str:
    """Arguments of calls are objects; templates that paste them as text (DeepSeek's) get them as JSON."""
    from jinja2 import TemplateError

    refusals = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
    try:
        return tokenizer.apply_chat_template(list(messages), tools=tools, tokenize=False, add_generation_prompt=ask)
    except refusals as error:
        if isinstance(error, TypeError) and any(message.get("tool_calls") for message in messages):
            try:
                spelled = [_with_spelled_arguments(message) for message in messages]
                return tokenizer.apply_chat_template(spelled, tools=tools, tokenize=False, add_generation_prompt=ask)
            except refusals:
                pass
        raise Refused(f"{' '.join(str(error).split()) or type(error).__name__}") from error


def _with_spelled_arguments(message: Message) -> Message:
    calls = copy.deepcopy(message.get("tool_calls") or [])
    for call in calls:
        if not isinstance(call["function"]["arguments"], str):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return {**message, "tool_calls": calls} if calls else message


def _added(tokenizer: Any, text: str) -> list[tuple[str, int]]:
    if not text.strip():
        return []
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    names = tokenizer.added_tokens_decoder
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [(names[token].content, end) for token, (_, end) in pairs if token in names and names[token].content.strip()]


def _as_declared(text: str, places: list[Place], messages: Sequence[Message], tools: Tools, tokenizer: Any) -> list[Place]:
    """The places with the answers that ``{% generation %}`` marks, if the template marks one for each assistant's turn."""
    source = tokenizer.get_chat_template(None, tools)
    if not _GENERATION.search(source):
        return places
    from transformers.utils.chat_template_utils import render_jinja_template

    made: Any = render_jinja_template(
        conversations=[[{key: value for key, value in message.items() if value is not None} for message in messages]],
        tools=tools,  # type: ignore[arg-type]  # functions are allowed too
        chat_template=source,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    (shown,), (spans,) = made
    if shown != text or len(spans) != sum(place.answer is not None for place in places):
        return places
    declared = iter(sorted(spans))
    return [_declare(place, next(declared), text) if place.answer else place for place in places]


def _declare(place: Place, span: tuple[int, int], text: str) -> Place:
    assert place.answer is not None, "only an answer is declared"
    stop = place.answer[1]
    end = stop if stop < span[1] and text[stop : span[1]].isspace() else span[1]
    return replace(place, answer=(span[0], end), closed=place.closed and end >= stop)


# -- Tokens -----------------------------------------------------------------------------------------------------------


def _encoded(texts: list[str], tokenizer: Any) -> Iterable[tuple[list[int], np.ndarray]]:
    """Of each text its ids and their places, int64 (tokens, 2)."""
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        encoded = tokenizer(texts[start : start + _TEXTS_AT_ONCE], add_special_tokens=False, return_offsets_mapping=True)
        for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            yield ids, _extents(np.asarray(offsets, dtype=np.int64).reshape(-1, 2))


def _extents(offsets: np.ndarray) -> np.ndarray:
    """A token of spaces alone may be given as an empty place at its end (trimmed offsets): it begins where the one before ends."""
    before = np.concatenate([[0], offsets[:-1, 1]])
    starts = np.where(offsets[:, 0] == offsets[:, 1], np.minimum(before, offsets[:, 0]), offsets[:, 0])
    return np.stack([starts, offsets[:, 1]], axis=1)


def _rendered(text: str, places: list[Place], ids: list[int], extents: np.ndarray, train_on: TrainOn) -> Rendered:
    answers = [place.answer for place in places if place.answer]
    spans = {"assistant": answers, "last": answers[-1:], "all": [(0, len(text))]}[train_on]
    trained = np.zeros(len(ids), dtype=bool)
    for start, end in spans:
        trained |= (extents[:, 0] >= start) & (extents[:, 1] <= end)
    turns: list[Turn] = []
    for place in places:
        first = turns[-1].end if turns else 0
        stop = len(ids) if place is places[-1] else max(first, int(np.searchsorted(extents[:, 0], place.end)))
        turns.append(Turn(role=place.role, start=first, end=stop, closing=_closing(place, first, trained, extents)))
    return Rendered(text=text, ids=ids, trained=trained.tolist(), turns=turns, asked=all(place.asked for place in places))


def _closing(place: Place, first: int, trained: np.ndarray, extents: np.ndarray) -> int | None:
    if place.answer is None or not place.closed:
        return None
    last = int(np.searchsorted(extents[:, 1], place.answer[1], side="right")) - 1
    return last if last >= first and trained[last] else None


def _short(messages: Sequence[Message]) -> str:
    text = json.dumps(list(messages), ensure_ascii=False, default=str)
    return f"{text[:100]}{'…' if len(text) > 100 else ''}"
