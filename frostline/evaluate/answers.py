"""What a language model writes: answers to a person's texts, and to rows of a split beside what was expected.

A prompt goes through the same template as in training (law 5), and writing ends at the tokens that end an answer there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from frostline.data.chat_spans import Message
from frostline.data.chat_template import prompt_ids, stop_tokens, with_template
from frostline.data.document_encoder import separators
from frostline.data.loader import spread
from frostline.data.parallel_encoder import source_ids
from frostline.data.preprocess import TextPreprocess
from frostline.errors import MissingPackage
from frostline.models.generate import generate
from frostline.models.model import Model
from frostline.recipe import DataRecipe
from frostline.tasks.text_metrics import text_metrics

WRITING = ("chat", "causal-lm", "preference", "translation", "summarisation")
"""The tasks whose models write text."""
_COMPARED = {
    "chat": ("exact_match", "rougeL", "bleu"),
    "translation": ("bleu", "chrf", "exact_match"),
    "summarisation": ("rouge1", "rouge2", "rougeL"),
}
"""Tasks whose rows hold what is to be written, and the metrics that compare it."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A conversation that is to be gone on with, and the tools that may be called in it."""

    messages: list[Message]
    tools: list[Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt, and what a row of data answers it with."""

    shown: str
    ids: list[int]
    expected: str


def answer(model: Model, texts: Sequence[str | Asked], *, max_new_tokens: int = 256, recipe: DataRecipe | None = None) -> list[str]:
    """What the model writes to each text or conversation, greedily: an answer, a translation, or how the text goes on."""
    return _written(model, [_asked(model, text, recipe or DataRecipe()) for text in texts], max_new_tokens)


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a model wrote to rows of a split; empty for tasks whose rows hold nothing to compare it with."""

    examples: list[dict[str, str]] = field(default_factory=list)
    """``{input, expected, given}``."""
    metrics: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def compare_written(model: Model, table: pa.Table, recipe: DataRecipe, *, rows: int = 50) -> Written:
    """The model's own answers to rows spread over the table, written greedily, beside what they hold.

    An answer may be half as long again as the longest that is expected.
    """
    task = model.card.schema.task
    if task not in _COMPARED or rows < 1:
        return Written()
    chosen = table.take(spread(table.num_rows, rows))
    questions = [question for row in chosen.to_pylist() if (question := _question(model, row, recipe)) is not None]
    if not questions:
        return Written()
    expected = [question.expected for question in questions]
    longest = max(map(len, _preprocess(model).tokenizer(expected, add_special_tokens=False)["input_ids"]))
    given = _written(model, [question.ids for question in questions], longest + longest // 2 + 8)
    metrics: dict[str, float] = {}
    notes = [f"{', '.join(_COMPARED[task])}: of {len(given)} rows that the model answered itself, greedily"]
    for name in _COMPARED[task]:
        try:
            metrics.update(text_metrics(given, expected, [name]))
        except MissingPackage as missing:
            notes.append(str(missing))
    examples = [{"input": q.shown, "expected": q.expected, "given": text} for q, text in zip(questions, given, strict=True)]
    return Written(examples=examples, metrics=metrics, notes=notes)


def _written(model: Model, prompts: list[list[int]], max_new_tokens: int) -> list[str]:
    tokenizer = _preprocess(model).tokenizer
    written = generate(model, prompts, max_new_tokens=max_new_tokens, stop=stop_tokens(tokenizer))
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in written]


def _asked(model: Model, text: str | Asked, recipe: DataRecipe) -> list[int]:
    preprocess, task = _preprocess(model), model.card.schema.task
    if isinstance(text, Asked) or task in ("chat", "preference"):
        asked = text if isinstance(text, Asked) else Asked(messages=[{"role": "user", "content": text}])
        with_template(preprocess.tokenizer)
        return prompt_ids(asked.messages, asked.tools, preprocess.tokenizer)
    if task == "causal-lm":
        before, behind, _ = separators(preprocess.tokenizer)
        return [*before, *preprocess.tokenizer(text, add_special_tokens=False)["input_ids"]] or behind
    return source_ids(text, preprocess, recipe)


def _question(model: Model, row: dict[str, Any], recipe: DataRecipe) -> Question | None:
    """The row's prompt: of a chat, all that stands before the last answer. None where there is no answer, or no room for one."""
    preprocess = _preprocess(model)
    if model.card.schema.task != "chat":
        return Question(shown=row["source"], ids=source_ids(row["source"], preprocess, recipe), expected=row["target"])
    messages = json.loads(row["messages"])
    last = max((at for at, message in enumerate(messages) if message["role"] == "assistant" and message.get("content")), default=0)
    if last == 0:
        return None
    tools = json.loads(row["tools"]) if row["tools"] else None
    ids = prompt_ids(messages[:last], tools, preprocess.tokenizer)
    if len(ids) >= preprocess.max_length:
        return None
    return Question(shown=str(messages[last - 1].get("content") or ""), ids=ids, expected=messages[last]["content"].strip())


def _preprocess(model: Model) -> TextPreprocess:
    preprocess = model.card.preprocess
    assert isinstance(preprocess, TextPreprocess), "only language models write"
    return preprocess
