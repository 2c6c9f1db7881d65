"""The report of a task with tokens: metrics, intervals by rows, and what was written, safe on a page."""

from __future__ import annotations

import json

import numpy as np
import pytest

from frostline.data.dataset import Schema
from frostline.data.report import DataReport
from frostline.evaluate.answers import Written
from frostline.evaluate.html import report_html
from frostline.evaluate.report import Report
from frostline.evaluate.task_report import build_task_report, row_intervals
from frostline.tasks import get_task
from tests.evaluate.conftest import COST, HISTORY, HOSTILE

CHAT, TEXT = Schema(task="chat", target="none"), Schema(task="causal-lm", target="none")
WRITTEN = Written(
    examples=[{"input": f"你好？{HOSTILE}", "expected": "雪下了 & more", "given": f"雪 {HOSTILE}"}],
    metrics={"exact_match": 0.25, "rougeL": 0.5},
    notes=[f"of 1 row {HOSTILE}"],
)


def scores(rows: int = 40) -> np.ndarray:
    """Each row's sum of -ln p, its tokens, and how many are right."""
    rng = np.random.default_rng(0)
    count = rng.integers(1, 20, rows)
    return np.stack([count * rng.uniform(0.5, 2, rows), count, rng.binomial(count, 0.6)], axis=1).astype(np.float32)


@pytest.fixture
def report() -> Report:
    data = DataReport(source="对话.jsonl", task="chat", target="none", rows={"train": 50, "test": 40}).to_dict()
    return build_task_report(CHAT, scores(), np.empty(0), WRITTEN, split="test", history=HISTORY, cost=COST, data_report=data)


def test_metrics_of_the_task_and_of_what_was_written(report: Report) -> None:
    of_task = get_task("chat").metrics(CHAT, scores(), np.empty(0))
    assert report.metrics == {**of_task, "exact_match": 0.25, "rougeL": 0.5} and report.rows == 40
    assert (report.task, report.target, report.split, report.labels) == ("chat", "none", "test", [])
    assert report.examples == WRITTEN.examples and report.notes == WRITTEN.notes
    assert len(report.history) == 2 and report.cost == COST and report.data["source"] == "对话.jsonl"


def test_intervals_hold_the_value_and_are_the_same_again(report: Report) -> None:
    assert set(report.intervals) == {"loss", "perplexity", "token_accuracy"}
    for name, (low, high) in report.intervals.items():
        assert low < report.metrics[name] < high
    again = build_task_report(CHAT, scores(), np.empty(0), WRITTEN, split="test")
    assert again.intervals == report.intervals
    task = get_task("chat")
    wide, narrow = (row_intervals(task, CHAT, scores(rows), np.empty(0))["loss"] for rows in (20, 2000))
    assert narrow[1] - narrow[0] < 0.3 * (wide[1] - wide[0])
    assert row_intervals(task, CHAT, scores(), np.empty(0), seed=1) != report.intervals
    inner = row_intervals(task, CHAT, scores(), np.empty(0), level=0.5)["loss"]
    assert report.intervals["loss"][0] < inner[0] < inner[1] < report.intervals["loss"][1]


def test_bytes_are_drawn_with_their_rows() -> None:
    """Were bytes not drawn along, rows of one and the same rate would get an interval."""
    size = np.array([1, 2, 3, 50] * 10)
    even = np.stack([2.0 * size, size, size], axis=1).astype(np.float32)
    low, high = row_intervals(get_task("causal-lm"), TEXT, even, size)["bits_per_byte"]
    assert low == pytest.approx(high) == pytest.approx(2 / np.log(2))


def test_few_rows_and_large_scores_get_no_interval() -> None:
    task = get_task("chat")
    assert row_intervals(task, CHAT, scores(1), np.empty(0)) == {}
    assert row_intervals(task, CHAT, np.zeros((700_000, 3), np.float32), np.empty(0)) == {}
    assert build_task_report(CHAT, np.zeros((3, 3), np.float32), np.empty(0), Written(), split="test").metrics == {}


def test_read_back_from_json(report: Report) -> None:
    plain = json.loads(report.to_json())
    assert "你好？" in report.to_json() and plain["history"][1]["val_loss"] is None
    again = Report.from_dict(plain)
    assert again.metrics == report.metrics and again.intervals == report.intervals
    assert again.examples == report.examples and again.notes == report.notes
    assert again.to_json() == report.to_json()


def test_in_a_terminal(report: Report) -> None:
    shown = str(report)
    for part in ("test: 40 rows, loss ", "perplexity", "rougeL", "examples:", "你好？", "雪下了 & more"):
        assert part in shown


def test_on_a_page_everything_is_escaped(report: Report) -> None:
    page = report_html(report, f"模型 {HOSTILE}")
    assert "<script" not in page and page.count("&lt;script&gt;") >= 4
    for part in ("你好？", "雪下了 &amp; more", "Perplexity 困惑度", "ROUGE-L", "Examples 样例", "expected 参考"):
        assert part in page
