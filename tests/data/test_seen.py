"""What a user is shown of each task's rows: the texts, and which tokens are learned."""

from __future__ import annotations

from typing import Any

import pytest

import frostline as fl
from frostline.data.preprocess import TextPreprocess
from frostline.data.seen import rows_as_seen
from frostline.models.tokenizer import train_tokenizer
from frostline.recipe import DataRecipe

TEXTS = [f"问题{i}，很好。 question {i}" for i in range(12)]


def seen(task: str, rows: list[dict[str, Any]], purpose: str = "causal", **options: Any) -> list[dict[str, Any]]:
    data = fl.prepare(rows, task=task, val=0, test_share=0)
    tokenizer = train_tokenizer(TEXTS, "char", 200, purpose, chat=True)  # type: ignore[arg-type]
    return rows_as_seen(TextPreprocess(tokenizer=tokenizer, max_length=64), data, DataRecipe(**options))


def test_a_conversation_turn_by_turn() -> None:
    rows = [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": f"好{i}"}]} for i, text in enumerate(TEXTS)]
    shown = seen("chat", rows)
    assert len(shown) == 3
    for row in shown:
        assert 0 < row["trained"] < row["tokens"]
        assert "user" in row["seen"] and "⟦好" in row["seen"] and "⟦问" not in row["seen"]
    assert all(row["trained"] == row["tokens"] for row in seen("chat", rows, train_on="all"))


def test_colour_in_place_of_brackets() -> None:
    rows = [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "好"}]} for text in TEXTS]
    data = fl.prepare(rows, task="chat", val=0, test_share=0)
    tokenizer = train_tokenizer(TEXTS, "char", 200, "causal", chat=True)
    shown = rows_as_seen(TextPreprocess(tokenizer=tokenizer, max_length=64), data, DataRecipe(), colour=True)
    assert "\x1b[30;42m好" in shown[0]["seen"] and "⟦" not in shown[0]["seen"]


@pytest.mark.parametrize(
    ("task", "rows", "part"),
    [
        ("causal-lm", [{"text": text} for text in TEXTS], "⟦"),
        ("preference", [{"prompt": text, "chosen": "好", "rejected": "q"} for text in TEXTS], "⟦q"),
        ("embedding", [{"first": text, "second": text[::-1]} for text in TEXTS], " | "),
        ("token-classification", [{"tokens": list(text), "tags": ["B-X", *["O"] * (len(text) - 1)]} for text in TEXTS], "问/B-X"),
    ],
)
def test_the_other_tasks(task: str, rows: list[dict[str, Any]], part: str) -> None:
    for row in seen(task, rows):
        assert row["tokens"] > 0 and part in row["seen"]


def test_rows_that_cannot_be_learned_from_are_not_among_them() -> None:
    """The first, the middle and the last row are too long for their answers; others are not."""
    rows = [{"prompt": text, "chosen": "好" * (90 if i in (0, 5, 11) else 2), "rejected": f"q{i}"} for i, text in enumerate(TEXTS)]
    shown = seen("preference", rows)
    assert len(shown) == 3 and all(row["tokens"] <= 2 * 64 for row in shown)


def test_few_rows_are_shown_of_many_documents() -> None:
    assert len(seen("causal-lm", [{"text": text * 20} for text in TEXTS])) == 3
