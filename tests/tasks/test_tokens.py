"""Losses and metrics over labelled tokens: sums and counts by hand, and the same numbers whatever the batch (law 1)."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import frostline as fl
from frostline.data.dataset import Schema
from frostline.data.encode import SplitSource, split_source
from frostline.kernels.outputs import outputs_of
from frostline.models.model import Model
from frostline.recipe import TrainRecipe
from frostline.tasks import get_task, tokens
from frostline.tasks.task import LossOptions
from frostline.tasks.tokens import TokenScores
from tests import small

SCHEMA = Schema(task="chat", target="none")
OPTIONS = LossOptions(recipe=TrainRecipe(), schema=SCHEMA)
NO_LABELS = torch.empty(0)


@pytest.fixture
def outputs() -> TokenScores:
    """Four rows; the second has no labelled token."""
    nll = torch.tensor([0.5, 1.5, 0.25, 2.0, 0.75, 1.0], requires_grad=True)
    correct = torch.tensor([True, False, True, True, False, True])
    return TokenScores(nll=nll, correct=correct, row=torch.tensor([0, 0, 2, 3, 3, 3]), rows=4)


def test_loss_is_a_sum_and_a_count(outputs: TokenScores) -> None:
    total, count = tokens.loss(outputs, NO_LABELS, OPTIONS)
    total.backward()
    assert (total.item(), count.item()) == (6.0, 6.0) and outputs.nll.grad.tolist() == [1.0] * 6
    assert not count.requires_grad


def test_sums_of_each_row(outputs: TokenScores) -> None:
    assert outputs.row_sums(outputs.nll).tolist() == [2.0, 0.0, 0.25, 3.75]
    scores = tokens.scores(SCHEMA, outputs, None)
    assert scores.tolist() == [[2.0, 2, 1], [0, 0, 0], [0.25, 1, 1], [3.75, 3, 2]]
    assert scores.dtype == torch.float32 and not scores.requires_grad
    outputs.row_sums(outputs.nll).square().sum().backward()  # preferences go through a row's sum
    assert outputs.nll.grad.tolist() == [4.0, 4.0, 0.5, 7.5, 7.5, 7.5]


def test_metrics_by_hand(outputs: TokenScores) -> None:
    scores = tokens.scores(SCHEMA, outputs, None).numpy()
    found = tokens.metrics(SCHEMA, scores, np.empty(0))
    assert found == {"loss": 1.0, "perplexity": pytest.approx(math.e), "token_accuracy": pytest.approx(4 / 6)}
    of_bytes = tokens.metrics(SCHEMA, scores, np.array([4, 0, 1, 7]))
    assert next(iter(of_bytes)) == "bits_per_byte" and of_bytes.pop("bits_per_byte") == pytest.approx(6 / math.log(2) / 12)
    assert of_bytes == found
    assert tokens.show(SCHEMA, scores[0]) == {"loss": 1.0, "perplexity": pytest.approx(math.e), "token_accuracy": 0.5}


def test_bad_and_empty_splits_stay_finite() -> None:
    assert tokens.metrics(SCHEMA, np.zeros((3, 3), np.float32), np.empty(0)) == {}
    assert tokens.show(SCHEMA, np.zeros(3, np.float32)) == {}
    assert math.isfinite(tokens.metrics(SCHEMA, np.array([[5000.0, 1, 0]], np.float32), np.empty(0))["perplexity"])
    json.dumps(tokens.metrics(SCHEMA, np.array([[5.0, 2, 1]], np.float32), np.array([3])), allow_nan=False)


def test_sums_of_many_tokens_are_exact() -> None:
    """Thirty million tokens; a count in float32 goes no further than 16 777 216 one by one."""
    scores = np.tile(np.array([[1000.0, 1000, 500]], np.float32), (30_001, 1))
    found = tokens.metrics(SCHEMA, scores, np.empty(0))
    assert (found["loss"], found["token_accuracy"]) == (1.0, 0.5)


def test_running(outputs: TokenScores) -> None:
    assert tokens.running(SCHEMA, outputs, NO_LABELS) == (4.0, 6.0)
    assert (tokens.running_name(SCHEMA), tokens.best_by(SCHEMA)) == ("token_accuracy", "loss")


def _source() -> tuple[Model, SplitSource]:
    data = fl.prepare(small.talks(14), task="chat")
    model = small.llama(data.task, [json.dumps(row, ensure_ascii=False) for row in small.talks(14)], max_length=128)
    return model, split_source(data.splits["train"], data.schema, model.card.preprocess)


def test_the_same_numbers_whatever_the_batch() -> None:
    """Law 1, through a network: batches of 1, 3, 7 and all rows, with what is padded differing each time."""
    model, source = _source()
    task, found = get_task("chat"), []
    for size in (1, 3, 7, source.rows):
        total, count, parts = 0.0, 0.0, []
        for start in range(0, source.rows, size):
            batch = source.encode(np.arange(source.rows)[start : start + size], None)
            with torch.no_grad():
                outputs = outputs_of(task, model, batch)
            one, counted = task.loss(outputs, batch.labels, OPTIONS)
            total, count = total + one.item(), count + counted.item()
            parts.append(task.scores(SCHEMA, outputs, batch.labels))
        scores = torch.cat(parts).numpy()
        metrics = task.metrics(SCHEMA, scores, source.labels.numpy())
        assert metrics["loss"] == pytest.approx(total / count, rel=1e-5)
        found.append((count, metrics, scores))
    for count, metrics, scores in found[1:]:
        assert count == found[0][0] and metrics == pytest.approx(found[0][1], rel=1e-5)
        np.testing.assert_allclose(scores, found[0][2], rtol=1e-4)
