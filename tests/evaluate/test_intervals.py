"""Intervals: the bootstrap's mean error equals theory, they hold the truth as often as they say, and the seed fixes them."""

import math
import time

import numpy as np
import pytest

from frostline.data.dataset import Schema
from frostline.evaluate.intervals import intervals
from frostline.tasks.metrics import split_metrics

BINARY = Schema(task="text-classification", labels=("负", "正"))
NUMBER = Schema(task="text-classification", target="number")


def binary(rows, share, rng):
    """Scores that are right in ``share`` of the rows."""
    labels = rng.integers(0, 2, rows)
    guessed = np.where(rng.random(rows) < share, labels, 1 - labels)
    return np.where(guessed[:, None] == np.arange(2), 0.8, 0.2).astype(np.float32), labels


def wilson(right, rows, z=1.959964):
    """Wilson's score interval for a proportion (Journal of the American Statistical Association, 1927)."""
    share = right / rows
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return middle - half, middle + half


@pytest.mark.parametrize("share", [0.6, 0.9])
def test_the_interval_of_accuracy_is_like_wilsons(share):
    scores, labels = binary(1000, share, np.random.default_rng(1))
    right = int((scores.argmax(1) == labels).sum())
    assert intervals(BINARY, scores, labels)["accuracy"] == pytest.approx(wilson(right, 1000), abs=0.006)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    held = 0
    for trial in range(120):
        low, high = intervals(BINARY, *binary(200, 0.8, rng), seed=trial, samples=200)["accuracy"]
        held += low <= 0.8 <= high
    # 95 % of 120 is 114; the standard deviation is 2.4.
    assert 106 <= held <= 120


def test_the_interval_of_a_mean_error_is_like_the_normal_one():
    rng = np.random.default_rng(3)
    labels = rng.normal(size=2000)
    scores = labels + rng.normal(size=2000)
    errors = np.abs(scores - labels)
    half = 1.96 * errors.std() / math.sqrt(2000)
    low, high = intervals(NUMBER, scores[:, None], labels[:, None])["mae"]
    assert (low, high) == pytest.approx((errors.mean() - half, errors.mean() + half), abs=0.005)


@pytest.mark.parametrize("target", ["class", "multi-label", "number"])
def test_every_interval_encloses_its_metric_and_follows_from_the_seed(target):
    rng = np.random.default_rng(4)
    schema = Schema(task="text-classification", target=target, labels=() if target == "number" else tuple("abcdefg"))
    if target == "number":
        labels = rng.normal(size=400)
        scores = labels + rng.normal(size=400)
    elif target == "multi-label":
        labels = (rng.random((400, 7)) < 0.4).astype(np.float32)
        scores = np.clip(labels * 0.4 + rng.random((400, 7)) * 0.6, 0, 1)
    else:
        labels = rng.integers(0, 7, 400)
        scores = rng.dirichlet(np.ones(7), 400) * 0.6 + 0.4 * np.eye(7)[labels] * rng.random((400, 1))
    found, values = intervals(schema, scores, labels), split_metrics(schema, scores, labels)
    assert set(values) - set(found) == ({"roc_auc", "calibration_error"} & set(values))
    for name, (low, high) in found.items():
        assert low < values[name] < high, name
    assert intervals(schema, scores, labels) == found
    assert intervals(schema, scores, labels, seed=1) != found


def test_narrower_for_more_rows_and_a_lower_level():
    rng = np.random.default_rng(5)
    widths = [np.ptp(intervals(BINARY, *binary(rows, 0.8, rng))["f1_macro"]) for rows in (100, 10_000)]
    assert widths[0] / widths[1] == pytest.approx(10, rel=0.3)
    data = binary(500, 0.8, rng)
    assert np.ptp(intervals(BINARY, *data, level=0.5)["accuracy"]) < np.ptp(intervals(BINARY, *data)["accuracy"])


def test_too_few_rows_have_none():
    assert intervals(BINARY, np.array([[0.2, 0.8]]), np.array([1])) == {}
    right = np.array([[0.2, 0.8], [0.9, 0.1], [0.3, 0.7]])
    assert set(intervals(BINARY, right, np.array([1, 0, 1]))) == {"log_loss"}, "all samples are as right: of other rows that says nothing"
    assert "r2" not in intervals(NUMBER, np.array([1.0, 2.0]), np.array([0.0, 3.0]))


def test_ten_thousand_rows_take_about_a_second():
    rng = np.random.default_rng(6)
    labels = rng.integers(0, 10, 10_000)
    scores = rng.random((10_000, 10)).astype(np.float32)
    start = time.process_time()
    intervals(Schema(task="text-classification", labels=tuple("0123456789")), scores, labels)
    assert time.process_time() - start < 5
