"""What a model writes: asked through the template that it was trained with, and compared with what rows hold."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from frostline.data.chat_template import prompt_ids
from frostline.data.parallel_encoder import source_ids
from frostline.errors import MissingPackage
from frostline.evaluate.answers import WRITING, Written, answer, compare_written
from frostline.recipe import DataRecipe
from frostline.tasks import text_metrics
from tests import small
from tests.evaluate.parrot import ANSWER, parrot

CHAT = [
    [{"role": "user", "content": "第1问"}, {"role": "assistant", "content": f"{ANSWER} "}],
    [{"role": "user", "content": "第2问"}],
    [
        {"role": "user", "content": "第3问"},
        {"role": "assistant", "content": "说"},
        {"role": "user", "content": "more"},
        {"role": "assistant", "content": "雪"},
    ],
]


def chat_table() -> pa.Table:
    return pa.table({"messages": [json.dumps(row, ensure_ascii=False) for row in CHAT], "tools": [None] * len(CHAT)})


@pytest.mark.parametrize("task", WRITING)
def test_the_answer_ends_at_the_stop_token(task: str) -> None:
    assert answer(parrot(task), ["第1问", "雪下了 more"], recipe=DataRecipe(task=task)) == [ANSWER, ANSWER]  # type: ignore[arg-type]


def test_a_chat_is_asked_as_in_training() -> None:
    model = parrot("chat")
    answer(model, ["第1问"])
    assert model.module.prompts == [prompt_ids(CHAT[0][:1], None, model.card.preprocess.tokenizer)]


def test_a_text_goes_on_as_it_is() -> None:
    model = parrot("causal-lm", chat=False)
    tokenizer = model.card.preprocess.tokenizer
    answer(model, ["雪下了", ""])
    assert sorted(model.module.prompts) == sorted([tokenizer("雪下了")["input_ids"], [tokenizer.eos_token_id]])


def test_a_translation_is_asked_for_with_the_recipes_prompt() -> None:
    model, recipe = parrot("translation"), DataRecipe(task="translation", prompt="翻译: {source}")
    answer(model, ["雪下了"], recipe=recipe)
    (prompt,) = model.module.prompts
    assert prompt == source_ids("雪下了", model.card.preprocess, recipe)
    assert "翻译: 雪下了" in model.card.preprocess.tokenizer.decode(prompt)


def test_no_more_than_was_asked_for() -> None:
    assert answer(parrot("chat"), ["第1问"], max_new_tokens=2) == [ANSWER[:2]]


def test_rows_of_a_chat_are_compared() -> None:
    model = parrot("chat")
    found = compare_written(model, chat_table(), DataRecipe())
    assert found.examples == [  # the second row has no answer
        {"input": "第1问", "expected": ANSWER, "given": ANSWER},
        {"input": "more", "expected": "雪", "given": ANSWER},
    ]
    assert set(found.metrics) == {"exact_match", "rougeL", "bleu"} and found.metrics["exact_match"] == 0.5
    assert found.notes == ["exact_match, rougeL, bleu: of 2 rows that the model answered itself, greedily"]
    assert prompt_ids(CHAT[2][:3], None, model.card.preprocess.tokenizer) in model.module.prompts  # all that stands before the answer


@pytest.mark.parametrize(
    ("task", "names"), [("translation", {"bleu", "chrf", "exact_match"}), ("summarisation", {"rouge1", "rouge2", "rougeL"})]
)
def test_rows_with_a_source_are_compared(task: str, names: set[str]) -> None:
    table = pa.table({"source": ["雪下了", "more"], "target": [ANSWER, "说"]})
    found = compare_written(parrot(task), table, DataRecipe(task=task))  # type: ignore[arg-type]
    assert [example["input"] for example in found.examples] == ["雪下了", "more"] and set(found.metrics) == names
    assert [example["expected"] for example in found.examples] == [ANSWER, "说"]


def test_without_the_package_there_is_a_note_and_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str, extra: str, purpose: str) -> Any:
        raise MissingPackage(f"{purpose} needs the package {package!r}")

    monkeypatch.setattr(text_metrics, "require", missing)
    found = compare_written(parrot("chat"), chat_table(), DataRecipe())
    assert found.metrics == {"exact_match": 0.5} and len(found.examples) == 2
    assert found.notes[1:] == [
        "the metric ROUGE needs the package 'rouge_score.rouge_scorer'",
        "the metric BLEU needs the package 'sacrebleu'",
    ]


def test_rows_are_spread_over_the_table_and_no_more_than_asked_for() -> None:
    rows = [json.dumps(row["messages"], ensure_ascii=False) for row in small.talks(9)]
    found = compare_written(parrot("chat"), pa.table({"messages": rows, "tools": [None] * 9}), DataRecipe(), rows=3)
    assert [example["input"][:2] for example in found.examples] == ["第0", "第4", "第8"]


def test_nothing_to_compare_is_nothing() -> None:
    questions = chat_table().slice(1, 1)
    for model, table, rows in ((parrot("chat"), questions, 5), (parrot("chat"), chat_table(), 0), (parrot("causal-lm"), chat_table(), 5)):
        assert compare_written(model, table, DataRecipe(), rows=rows) == Written() and not model.module.prompts
