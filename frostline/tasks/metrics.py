"""Metrics of a whole split: one call on all rows, so the batch size cannot matter (law 1).

Class                  accuracy, top-5 accuracy, balanced accuracy, precision, recall and F1 (macro, micro, weighted, per class),
                       ROC-AUC, log loss, expected calibration error
several labels         subset accuracy, Hamming loss, precision, recall, F1 (macro, micro, weighted, per label), ROC-AUC
number                 mean squared and absolute error, root mean squared error, R²

All but four follow from three counts per class: true positives, rows predicted as it, rows that are it
(:class:`Counts`); these have leading dimensions, so that a thousand bootstrap samples are one call. ROC-AUC is the
Mann-Whitney statistic of the ranks (Hanley and McNeil, Radiology 1982), averaged one class against the rest. The calibration
error is the mean gap between confidence and accuracy over 15 equal bins (Guo et al., ICML 2017). The formulas are
scikit-learn's, tested against it; it is not imported here since this runs after every epoch and its import alone takes a second.

What cannot be known is left out, not invented: a class that is in no label and no prediction is in no macro average, a class
without both rows that are it and rows that are not has no ROC-AUC, and R² of equal labels does not exist. ``metric_notes``
says what was left out. Rows without a label (-100; NaN for numbers) are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from frostline.data.dataset import Schema
from frostline.errors import ModelError, RecipeError
from frostline.tasks.classification import THRESHOLD
from frostline.tasks.losses import IGNORED

CALIBRATION_BINS = 15
TOP = 5

_HIGHER_IS_BETTER = {
    "loss": False,
    "accuracy": True,
    "top5_accuracy": True,
    "balanced_accuracy": True,
    "subset_accuracy": True,
    **{f"{name}_{average}": True for average in ("macro", "micro", "weighted") for name in ("precision", "recall", "f1")},
    "roc_auc": True,
    "log_loss": False,
    "calibration_error": False,
    "hamming_loss": False,
    "mse": False,
    "rmse": False,
    "mae": False,
    "r2": True,
    "margin": True,
    **dict.fromkeys(("f1", "precision", "recall", "token_accuracy"), True),
    **dict.fromkeys(("spearman", "pearson", "mrr", "recall@1", "recall@5", "recall@10", "triplet_accuracy"), True),
    "perplexity": False,
    "bits_per_byte": False,
}


def higher_is_better(name: str) -> bool:
    """Whether more of this metric is better. Raises RecipeError for a name that no task computes.

    >>> higher_is_better("accuracy"), higher_is_better("log_loss")
    (True, False)
    """
    if name not in _HIGHER_IS_BETTER:
        known = ", ".join(_HIGHER_IS_BETTER)
        raise RecipeError(f"train.best_by: {name!r} is not a metric, expected one of {known}. Use: train.best_by=loss")
    return _HIGHER_IS_BETTER[name]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Per class, shape (..., classes): all that precision, recall and F1 need."""

    right: np.ndarray
    predicted: np.ndarray
    actual: np.ndarray


def split_metrics(schema: Schema, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every metric of the split; empty for a split without labelled rows. Scores and labels as in :func:`labelled`."""
    scores, labels = labelled(schema, scores, labels)
    if not len(labels):
        return {}
    if schema.target == "number":
        return number_metrics(labels, scores)
    counts = count(schema, scores, labels)
    if schema.target == "multi-label":
        found = {
            "f1_micro": averages(counts)["f1_micro"],
            "subset_accuracy": subset_right(scores, labels).mean(),
            "hamming_loss": label_errors(scores, labels).mean(),
            **averages(counts),
        }
    else:
        found = {"accuracy": counts.right.sum() / len(labels)}
        if scores.shape[1] > TOP:
            found["top5_accuracy"] = in_top(scores, labels).mean()
        found |= {"balanced_accuracy": balanced_accuracy(counts), **averages(counts)}
    areas = roc_areas(scores, is_class(schema, labels))
    if np.isfinite(areas).any():
        found["roc_auc"] = np.nanmean(areas)
    if schema.target == "class":
        found["log_loss"] = row_log_loss(scores, labels).mean()
        found["calibration_error"] = calibration_error(scores, labels)
    return {name: float(value) for name, value in found.items()}


def epoch_metrics(schema: Schema, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The few numbers worth a line per epoch, first the one that ``best_by`` means by default."""
    scores, labels = labelled(schema, scores, labels)
    if not len(labels):
        return {}
    if schema.target == "number":
        return number_metrics(labels, scores)
    counts = count(schema, scores, labels)
    means = averages(counts)
    if schema.target == "multi-label":
        names = {"f1_micro": means["f1_micro"], "f1_macro": means["f1_macro"], "subset_accuracy": subset_right(scores, labels).mean()}
    else:
        names = {"accuracy": counts.right.sum() / len(labels), "f1_macro": means["f1_macro"]}
    return {name: float(value) for name, value in names.items()}


def labelled(schema: Schema, scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows that have a label. Raises ModelError when the model's outputs are not finite.

    ``scores``: (rows, outputs), or (rows,) for numbers. ``labels``: class indices (rows,), zeros and ones (rows, outputs), or numbers.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    assert len(scores) == len(labels), f"{len(scores)} rows of scores for {len(labels)} labels"
    if schema.target == "number":
        scores, labels = scores.reshape(-1).astype(np.float64), labels.reshape(-1).astype(np.float64)
    kept = has_label(schema, labels)
    scores, labels = scores[kept], labels[kept] if schema.target == "number" else labels[kept].astype(np.int64)
    broken = ~np.isfinite(scores).reshape(len(scores), int(np.prod(scores.shape[1:]))).all(axis=1)
    if broken.any():
        raise ModelError(
            f"the model's outputs: {scores[broken][0].tolist()!r} in row {int(broken.argmax())}, {int(broken.sum())} of {len(scores)} rows "
            "are not finite, expected numbers: training diverged. Train again with a smaller step: train.lr=1e-5"
        )
    return scores, labels


def has_label(schema: Schema, labels: np.ndarray) -> np.ndarray:
    """Bool (rows,)."""
    first = np.asarray(labels).reshape(len(labels), -1)[:, 0] if len(labels) else np.empty(0)
    return ~np.isnan(first) if schema.target == "number" else first != IGNORED


def metric_notes(schema: Schema, scores: np.ndarray, labels: np.ndarray) -> list[str]:
    """What :func:`split_metrics` left out and why, for people."""
    scores, labels = labelled(schema, scores, labels)
    if not len(labels):
        return ["No row of this split has a label, so there is nothing to measure."]
    if schema.target == "number":
        return [] if np.ptp(labels) else ["R² is left out: all labels of this split are equal."]
    member = is_class(schema, labels)
    absent = [schema.labels[index] for index in np.flatnonzero(~member.any(axis=0))]
    notes = []
    if absent:
        shown = ", ".join(absent[:10]) + (" …" if len(absent) > 10 else "")
        notes.append(
            f"{len(absent)} of {len(schema.labels)} classes have no row in this split: {shown}. Recall and ROC-AUC do not know them."
        )
    everywhere = [schema.labels[index] for index in np.flatnonzero(member.all(axis=0))]
    if everywhere:
        notes.append(f"Every row of this split is {', '.join(everywhere[:10])}: there is no ROC-AUC for it.")
    return notes


def count(schema: Schema, scores: np.ndarray, labels: np.ndarray) -> Counts:
    """The counts per class of a split."""
    if schema.target == "multi-label":
        given = scores >= THRESHOLD
        return Counts(right=(given & (labels == 1)).sum(axis=0), predicted=given.sum(axis=0), actual=(labels == 1).sum(axis=0))
    return count_classes(labels, scores.argmax(axis=1), scores.shape[1])


def count_classes(labels: np.ndarray, predicted: np.ndarray, classes: int) -> Counts:
    """The counts per class from class indices."""
    return Counts(
        right=np.bincount(labels[labels == predicted], minlength=classes),
        predicted=np.bincount(predicted, minlength=classes),
        actual=np.bincount(labels, minlength=classes),
    )


def precision_recall_f1(counts: Counts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per class, shape (..., classes); 0 where nothing was predicted, or nothing is of the class (scikit-learn's way)."""
    return (
        _ratio(counts.right, counts.predicted),
        _ratio(counts.right, counts.actual),
        _ratio(2 * counts.right, counts.predicted + counts.actual),
    )


def averages(counts: Counts) -> dict[str, np.ndarray]:
    """Macro, micro and weighted precision, recall and F1, each of shape (...)."""
    per_class = dict(zip(("precision", "recall", "f1"), precision_recall_f1(counts)))
    occurs = (counts.predicted + counts.actual) > 0
    total = Counts(right=counts.right.sum(-1), predicted=counts.predicted.sum(-1), actual=counts.actual.sum(-1))
    micro = dict(zip(("precision", "recall", "f1"), precision_recall_f1(total)))
    macro = {f"{name}_macro": _ratio((value * occurs).sum(-1), occurs.sum(-1)) for name, value in per_class.items()}
    weighted = {f"{name}_weighted": _ratio((value * counts.actual).sum(-1), total.actual) for name, value in per_class.items()}
    return {**macro, **{f"{name}_micro": value for name, value in micro.items()}, **weighted}


def balanced_accuracy(counts: Counts) -> np.ndarray:
    """Mean recall of the classes that have rows, shape (...)."""
    recall = _ratio(counts.right, counts.actual)
    return _ratio(recall.sum(-1), (counts.actual > 0).sum(-1))


def in_top(scores: np.ndarray, labels: np.ndarray, top: int = TOP) -> np.ndarray:
    """Per row, whether its class is among the ``top`` most probable (of equal probabilities, the first classes win)."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    before = np.arange(scores.shape[1]) < labels[:, None]
    return ((scores > own) | ((scores == own) & before)).sum(axis=1) < top


def row_log_loss(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Per row ``-log p`` of its class; a probability of zero counts as the type's epsilon, for the mean to be finite."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)[:, 0].astype(np.float64)
    smallest = np.finfo(scores.dtype).eps
    return -np.log(own.clip(smallest, 1 - smallest))


def subset_right(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Per row, whether exactly its labels were given."""
    return ((scores >= THRESHOLD) == (labels == 1)).all(axis=1)


def label_errors(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Per row, the share of labels that are wrong (the Hamming loss)."""
    return ((scores >= THRESHOLD) != (labels == 1)).mean(axis=1)


def is_class(schema: Schema, labels: np.ndarray) -> np.ndarray:
    """Bool (rows, classes): which row is of which class."""
    return labels == 1 if schema.target == "multi-label" else labels[:, None] == np.arange(len(schema.labels))


def roc_areas(scores: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Per class, the area under the ROC curve of it against the rest; NaN where all or no rows are of the class."""
    areas = np.full(scores.shape[1], np.nan)
    positives = member.sum(axis=0)
    negatives = len(member) - positives
    for index in np.flatnonzero((positives > 0) & (negatives > 0)):
        below = average_ranks(scores[:, index])[member[:, index]].sum() - positives[index] * (positives[index] + 1) / 2
        areas[index] = below / (positives[index] * negatives[index])
    return areas


def calibration_bins(scores: np.ndarray, labels: np.ndarray) -> list[dict[str, float]]:
    """Rows by confidence (the largest probability) in 15 equal bins; empty bins are left out."""
    confidence = scores.max(axis=1).astype(np.float64)
    right = scores.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    bins = []
    for index in np.unique(place):
        rows = place == index
        bins.append(
            {
                "low": index / CALIBRATION_BINS,
                "high": (index + 1) / CALIBRATION_BINS,
                "rows": int(rows.sum()),
                "confidence": float(confidence[rows].mean()),
                "accuracy": float(right[rows].mean()),
            }
        )
    return bins


def calibration_error(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean gap between confidence and accuracy, weighted by the bins' rows."""
    return sum(part["rows"] * abs(part["accuracy"] - part["confidence"]) for part in calibration_bins(scores, labels)) / len(labels)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """int64 (classes, classes): rows are the true class, columns the predicted one."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def number_metrics(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Errors of numbers; R² only where the labels differ."""
    squared = float(np.mean((labels - scores) ** 2))
    found = {"mse": squared, "rmse": squared**0.5, "mae": float(np.mean(np.abs(labels - scores)))}
    if np.ptp(labels) > 0:
        found["r2"] = 1 - squared / float(np.var(labels))
    return found


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Division with 0 / 0 = 0."""
    below = np.asarray(below)
    return np.asarray(above) / np.where(below == 0, 1, below)


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of their ranks."""
    _, place, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(sizes) - (sizes - 1) / 2)[place]
