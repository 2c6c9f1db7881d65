"""Report: what a model does on one split, as plain JSON values that can be printed, saved, read again, and shown as a page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypedDict, Unpack

import numpy as np

from frostline.data.dataset import Schema
from frostline.evaluate.intervals import intervals
from frostline.evaluate.terminal import confusion, number, seconds, shortened, size, table
from frostline.tasks import metrics

_MISTAKES = 20
_ORIGIN_CHARACTERS = 1000
_POINTS = 500
_CLASSES_PRINTED = 30
_MISTAKES_PRINTED = 5
_EXAMPLES_PRINTED = 3


@dataclass(kw_only=True)
class Report:
    """The product of ``evaluate``. ``str(report)`` is for a terminal, ``report_html`` (html.py) makes the page."""

    task: str
    target: str = "class"
    split: str = "test"
    rows: int = 0
    """Rows that have a label."""
    labels: list[str] = field(default_factory=list)
    """Names of the classes, in the order of the confusion matrix."""
    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95 % bootstrap intervals of those metrics that have one."""
    per_class: list[dict[str, Any]] = field(default_factory=list)
    """``{label, rows, predicted, precision, recall, f1, roc_auc}``; what is not known is None."""
    confusion: list[list[int]] = field(default_factory=list)
    """Rows by true class (outer) and predicted class (inner); for target class only."""
    calibration: list[dict[str, float]] = field(default_factory=list)
    """``{low, high, rows, confidence, accuracy}`` of the bins that hold rows; for target class only."""
    mistakes: list[dict[str, Any]] = field(default_factory=list)
    """The most confident errors (numbers: the largest): ``{origin, true, predicted, probability}``."""
    examples: list[dict[str, Any]] = field(default_factory=list)
    """For tasks that give text: ``{input, expected, given}`` of some rows."""
    points: list[tuple[float, float]] = field(default_factory=list)
    """(true, predicted) of some rows; for numbers only."""
    notes: list[str] = field(default_factory=list)
    """What was left out, and why."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One dict per epoch: loss, accuracy, val_loss, val_accuracy, …"""
    cost: dict[str, Any] = field(default_factory=dict)
    """``{"predicted": {...}, "actual": {...}}``, each a Cost as a dict."""
    data: dict[str, Any] = field(default_factory=dict)
    """The DataReport as a dict."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values; what is not finite in a history becomes None, which JSON can hold."""
        return _plain(asdict(self))

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1, allow_nan=False)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Report:
        """The inverse of ``to_dict``."""
        given = dict(content)
        given["intervals"] = {name: (low, high) for name, (low, high) in content["intervals"].items()}
        given["points"] = [(true, predicted) for true, predicted in content["points"]]
        return cls(**given)

    @property
    def headline(self) -> str:
        """The first metric with its interval, in one line."""
        if not self.metrics:
            return f"{self.split}: {self.rows} rows"
        name, value = next(iter(self.metrics.items()))
        return f"{self.split}: {self.rows:,} rows, {name} {number(value)}{self.interval_text(name)}"

    def interval_text(self, name: str) -> str:
        """`` (0.91–0.95)``, or nothing for a metric without an interval."""
        return f" ({number(self.intervals[name][0])}–{number(self.intervals[name][1])})" if name in self.intervals else ""

    def __str__(self) -> str:
        parts = [self.headline, self._metrics_text(), self._classes_text()]
        if self.confusion:
            parts.append(confusion(self.confusion, self.labels))
        parts.append(self._mistakes_text())
        parts.append(self._examples_text())
        parts.append(self._cost_text())
        parts.append("\n".join(f"note: {note}" for note in self.notes))
        return "\n\n".join(part for part in parts if part)

    def _metrics_text(self) -> str:
        rows = [[name, number(value), self.interval_text(name).strip(" ()")] for name, value in self.metrics.items()]
        return table(["metric", "value", "95 % interval"], rows) if rows else ""

    def _classes_text(self) -> str:
        if not self.per_class:
            return ""
        shown = self.per_class[:_CLASSES_PRINTED]
        rows = [[shortened(one["label"], 30), one["rows"], *(number(one[key]) for key in ("precision", "recall", "f1"))] for one in shown]
        rest = len(self.per_class) - len(shown)
        more = f"\n({rest} more classes in the report's JSON and HTML)" if rest else ""
        return table(["class", "rows", "precision", "recall", "F1"], rows) + more

    def _mistakes_text(self) -> str:
        if not self.mistakes:
            return ""
        rows = [
            [shortened(one["true"], 20), shortened(one["predicted"], 20), number(one["probability"]), shortened(one["origin"], 70)]
            for one in self.mistakes[:_MISTAKES_PRINTED]
        ]
        title = "largest errors" if self.target == "number" else "most confident errors"
        return f"{title}:\n" + table(["true", "predicted", "probability", "row"], rows)

    def _examples_text(self) -> str:
        parts = []
        for one in self.examples[:_EXAMPLES_PRINTED]:
            parts += [f"{name:<9} {shortened(str(one[name]), 120)}" for name in ("input", "expected", "given") if name in one]
        return "\n".join(["examples:", *parts]) if parts else ""

    def _cost_text(self) -> str:
        rows = cost_rows(self.cost)
        return table(["cost", "predicted", "actual", "actual / predicted"], rows) if rows else ""


class Background(TypedDict, total=False):
    """What is known beside the scores."""

    history: Sequence[Mapping[str, Any]]
    """One mapping per epoch."""
    cost: Mapping[str, Any] | None
    """``{"predicted": {...}, "actual": {...}}``."""
    data_report: Mapping[str, Any] | None
    """A DataReport as a dict."""


def build_report(
    schema: Schema,
    scores: np.ndarray,
    labels: np.ndarray,
    origins: Sequence[str],
    *,
    split: str,
    seed: int = 0,
    **known: Unpack[Background],
) -> Report:
    """Measure one split.

    ``scores`` as ``Task.scores`` gives them; ``labels``: class indices, zeros and ones, or numbers; ``origins``: each row's
    path or text; ``seed``: of the confidence intervals.
    """
    kept, truth = metrics.labelled(schema, scores, labels)
    report = Report(
        task=schema.task,
        target=schema.target,
        split=split,
        rows=len(truth),
        labels=list(schema.labels),
        metrics=metrics.split_metrics(schema, scores, labels),
        intervals=intervals(schema, scores, labels, seed=seed),
        notes=metrics.metric_notes(schema, scores, labels),
        history=[dict(epoch) for epoch in known.get("history", ())],
        cost=dict(known.get("cost") or {}),
        data=dict(known.get("data_report") or {}),
    )
    if not len(truth):
        return report
    if schema.target == "number":
        report.points = _points(kept, truth, seed)
    else:
        report.per_class = _per_class(schema, kept, truth)
    if schema.target == "class":
        report.confusion = metrics.confusion_matrix(truth, kept.argmax(axis=1), len(schema.labels)).tolist()
        report.calibration = metrics.calibration_bins(kept, truth)
    counted = np.flatnonzero(metrics.has_label(schema, labels))
    assert len(origins) == len(labels), f"{len(origins)} origins for {len(labels)} labels"
    report.mistakes = _mistakes(schema, kept, truth, [origins[int(row)] for row in counted])
    return report


def cost_rows(cost: Mapping[str, Any]) -> list[list[str]]:
    """``[what, predicted, actual, ratio]`` for each figure that was predicted or measured, the parts of the time included."""
    predicted, actual = cost.get("predicted") or {}, cost.get("actual") or {}
    rows = []
    for name in dict.fromkeys([*predicted, *actual]):
        if isinstance(predicted.get(name), Mapping) or isinstance(actual.get(name), Mapping):
            parts = cost_rows({"predicted": predicted.get(name), "actual": actual.get(name)})
            rows += [[f"  {part}", *values] for part, *values in parts]
            continue
        shown = size if name.endswith("bytes") else seconds
        a, b = predicted.get(name), actual.get(name)
        rows.append([name.replace("_", " "), shown(a), shown(b), f"{b / a:.2f}" if a and b is not None else "–"])
    return rows


def _per_class(schema: Schema, scores: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    counts = metrics.count(schema, scores, labels)
    precision, recall, f1 = metrics.precision_recall_f1(counts)
    areas = metrics.roc_areas(scores, metrics.is_class(schema, labels))
    return [
        {
            "label": name,
            "rows": int(counts.actual[index]),
            "predicted": int(counts.predicted[index]),
            "precision": float(precision[index]) if counts.predicted[index] else None,
            "recall": float(recall[index]) if counts.actual[index] else None,
            "f1": float(f1[index]) if counts.actual[index] + counts.predicted[index] else None,
            "roc_auc": float(areas[index]) if np.isfinite(areas[index]) else None,
        }
        for index, name in enumerate(schema.labels)
    ]


def _mistakes(schema: Schema, scores: np.ndarray, labels: np.ndarray, origins: Sequence[str]) -> list[dict[str, Any]]:
    """Where the model was wrong and most sure of it; for several labels, sure of the label that it got wrong."""
    if schema.target == "number":
        sure = np.abs(scores - labels)
    elif schema.target == "multi-label":
        given = scores >= metrics.THRESHOLD
        sure = np.where(given != (labels == 1), np.where(given, scores, 1 - scores), 0.0).max(axis=1)
    else:
        sure = np.where(scores.argmax(axis=1) == labels, 0.0, scores.max(axis=1))
    order = [row for row in np.argsort(-sure, kind="stable")[:_MISTAKES] if sure[row] > 0]
    return [
        {
            "origin": str(origins[row])[:_ORIGIN_CHARACTERS],
            "true": _shown(schema, labels[row]),
            "predicted": _shown(schema, scores[row] if schema.target == "number" else _decided(schema, scores[row])),
            "probability": None if schema.target == "number" else float(sure[row]),
        }
        for row in order
    ]


def _decided(schema: Schema, row: np.ndarray) -> np.ndarray:
    return row >= metrics.THRESHOLD if schema.target == "multi-label" else np.asarray(row.argmax())


def _shown(schema: Schema, label: np.ndarray) -> str:
    if schema.target == "number":
        return number(float(label))
    if schema.target == "multi-label":
        return ", ".join(schema.labels[index] for index in np.flatnonzero(label)) or "(none)"
    return schema.labels[int(label)]


def _points(scores: np.ndarray, labels: np.ndarray, seed: int) -> list[tuple[float, float]]:
    rows = np.random.default_rng(seed).permutation(len(labels))[:_POINTS]
    return [(float(labels[row]), float(scores[row])) for row in rows]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
