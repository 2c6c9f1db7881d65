from __future__ import annotations

import pytest

from frostline.data import chat_spans
from frostline.data.chat_spans import Refused, Template, locator, prompt_text
from frostline.data.chat_template import render_all
from tests.data.chat_tokenizers import FAMILIES, chat_tokenizer
from tests.data.test_chat_template import CALLS, FIRST, SECOND, SYSTEM, TOOL

ROWS = [(FIRST, None), (FIRST + SECOND, None), ([SYSTEM, *SECOND, *FIRST], None), (CALLS, [TOOL]), ([*FIRST, SECOND[0]], [TOOL])]


def template_of(write, added=()):
    """A template of a function (messages, ask) → text; tokens of the vocabulary: ``added``."""

    def find(text):
        return sorted(((token, text.index(token) + len(token)) for token in added if token in text), key=lambda pair: pair[1])

    return Template(render=lambda messages, tools, ask: write(messages, ask), added=find)


def chat(messages, ask):
    return "".join(f"<{m['role']}>{m['content'].strip()}<end>\n" for m in messages) + ("<assistant>" if ask else "")


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_rows_measured_by_themselves_are_as_rows_of_a_known_shape(name, monkeypatch):
    tokenizer = chat_tokenizer(name)
    by_shape = render_all(ROWS, tokenizer)
    monkeypatch.setattr(chat_spans, "_carried_over", lambda *_: None)
    assert render_all(ROWS, tokenizer) == by_shape


def test_places_of_a_template_written_by_hand():
    locate = locator(template_of(chat, ("<end>",)))
    text, places = locate(FIRST + SECOND, None)
    assert text == chat(FIRST + SECOND, False)
    assert [text[slice(*place.answer)] for place in places if place.answer] == [
        f"{message['content']}<end>" for message in (FIRST[1], SECOND[1])
    ]
    assert [text[: place.end] for place in places] == [chat((FIRST + SECOND)[: count + 1], False) for count in range(4)]


def test_one_rendering_for_a_row_of_a_known_shape():
    calls = []

    def write(messages, ask):
        calls.append(len(messages))
        return chat(messages, ask)

    locate = locator(template_of(write, ("<end>",)))
    locate(FIRST + SECOND, None)
    calls.clear()
    for content in ("另一个", " with spaces\n", "<assistant>x<end>"):
        locate([*FIRST, SECOND[0], {"role": "assistant", "content": content}], None)
    assert calls == [4, 4, 4]


def test_the_end_is_text_where_no_token_ends_a_turn():
    text, places = locator(template_of(chat))(FIRST, None)
    assert places[-1].closed and text[slice(*places[-1].answer)] == "The answer is Paris.<end>"


def test_an_end_that_only_the_whole_conversation_has_is_not_a_turns():
    def write(messages, ask):
        return "".join(f"[{m['role']}]{m['content']}\n" for m in messages) + ("[assistant]" if ask else "<eos>")

    text, places = locator(template_of(write, ("<eos>",)))(FIRST + SECOND, None)
    first, second = (place for place in places if place.answer)
    assert (text[slice(*first.answer)], first.closed) == (FIRST[1]["content"], False)
    assert (text[slice(*second.answer)], second.closed) == (f"{SECOND[1]['content']}\n<eos>", True)


def test_a_template_without_a_generation_prompt_asks_with_what_stands_before_an_answer():
    template = template_of(lambda messages, ask: "".join(f"### {m['role']}: {m['content']}\n" for m in messages))
    assert prompt_text(FIRST[:1], None, template) == "### user: What is it?\n### assistant:"


def test_a_refusal_of_the_template_passes_through():
    def write(messages, ask):
        raise Refused("no")

    with pytest.raises(Refused, match="no"):
        locator(template_of(write))(FIRST, None)
