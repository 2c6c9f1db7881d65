"""Bootstrap confidence intervals: how far a metric would move if the split had held other rows of the same kind.

A thousand times, as many rows as there are are drawn with replacement and the metric is computed again; the interval lies
between the 2.5th and the 97.5th percentile (Efron, "Bootstrap methods", Annals of Statistics 1979). What is drawn is not
copied: a sample is reduced at once to counts per class, or to how often each row was drawn, and the metrics of all samples
are then one call. The seed makes the interval a function of the rows. ROC-AUC and the calibration error get none: the first
would sort a thousand times, the second is biased upwards in every resample.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from frostline.data.dataset import Schema
from frostline.tasks import metrics
from frostline.tasks.metrics import Counts

_FEWEST_ROWS = 2


def intervals(
    schema: Schema, scores: np.ndarray, labels: np.ndarray, *, seed: int = 0, samples: int = 1000, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Metric → (low, high). Scores and labels as for ``split_metrics``; empty for fewer than two labelled rows, and
    without a metric that is the same in all samples."""
    scores, labels = metrics.labelled(schema, scores, labels)
    if len(labels) < _FEWEST_ROWS:
        return {}
    draws = _draws(len(labels), seed, samples)
    if schema.target == "class":
        drawn = _class_samples(scores, labels, draws)
    elif schema.target == "multi-label":
        drawn = _several_samples(scores, labels, draws)
    else:
        drawn = _number_samples(scores, labels, draws)
    ends = [50 * (1 - level), 50 * (1 + level)]
    found = {}
    for name, values in drawn.items():
        low, high = np.percentile(values, ends)
        if low < high:  # else all samples agree, as where every row is right: that says nothing of other rows
            found[name] = (float(low), float(high))
    return found


def _draws(rows: int, seed: int, samples: int) -> Iterator[np.ndarray]:
    """The row indices of each sample."""
    rng = np.random.default_rng(seed)
    for _ in range(samples):
        yield rng.integers(0, rows, rows)


def _class_samples(scores: np.ndarray, labels: np.ndarray, draws: Iterator[np.ndarray]) -> dict[str, np.ndarray]:
    predicted, classes, rows = scores.argmax(axis=1), scores.shape[1], len(labels)
    means = {"log_loss": metrics.row_log_loss(scores, labels)}
    if classes > metrics.TOP:
        means["top5_accuracy"] = metrics.in_top(scores, labels)
    counts, values = [], []
    for draw in draws:
        counts.append(metrics.count_classes(labels[draw], predicted[draw], classes))
        values.append([value[draw].mean() for value in means.values()])
    stacked = _stacked(counts)
    return {
        "accuracy": stacked.right.sum(axis=1) / rows,
        "balanced_accuracy": metrics.balanced_accuracy(stacked),
        **metrics.averages(stacked),
        **dict(zip(means, np.array(values).T)),
    }


def _several_samples(scores: np.ndarray, labels: np.ndarray, draws: Iterator[np.ndarray]) -> dict[str, np.ndarray]:
    rows, given, actual = len(labels), scores >= metrics.THRESHOLD, labels == 1
    per_row = np.concatenate([given & actual, given, actual], axis=1).astype(np.float64)  # (rows, 3 · classes)
    means = {"subset_accuracy": metrics.subset_right(scores, labels), "hamming_loss": metrics.label_errors(scores, labels)}
    sums, values = [], []
    for draw in draws:
        times = np.bincount(draw, minlength=rows).astype(np.float64)
        sums.append(times @ per_row)
        values.append([times @ value / rows for value in means.values()])
    right, predicted, true = np.split(np.array(sums), 3, axis=1)
    counts = Counts(right=right, predicted=predicted, actual=true)
    return {**metrics.averages(counts), **dict(zip(means, np.array(values).T))}


def _number_samples(scores: np.ndarray, labels: np.ndarray, draws: Iterator[np.ndarray]) -> dict[str, np.ndarray]:
    # A sample whose labels are all equal has no R²; it then has none at all, since a percentile of the rest would be invented.
    found = [metrics.number_metrics(labels[draw], scores[draw]) for draw in draws]
    return {name: np.array([one[name] for one in found]) for name in found[0] if all(name in one for one in found)}


def _stacked(counts: list[Counts]) -> Counts:
    return Counts(
        right=np.stack([one.right for one in counts]),
        predicted=np.stack([one.predicted for one in counts]),
        actual=np.stack([one.actual for one in counts]),
    )
