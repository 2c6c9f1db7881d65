"""The report of a task whose rows have no class of their own: metrics with intervals, and examples of what was generated."""

from __future__ import annotations

from typing import Unpack

import numpy as np

from frostline.data.dataset import Schema
from frostline.evaluate.answers import Written
from frostline.evaluate.report import Background, Report
from frostline.tasks import get_task
from frostline.tasks.task import Task

_SAMPLES = 400
_LARGEST_RESAMPLED = 2_000_000
"""Numbers among the scores of a split; more (vectors, say) are not drawn hundreds of times."""


def build_task_report(
    schema: Schema, scores: np.ndarray, labels: np.ndarray, written: Written, *, split: str, **known: Unpack[Background]
) -> Report:
    """Measure one split from ``Task.scores`` of its rows. ``written``: what the model wrote to some of them."""
    task = get_task(schema.task)
    return Report(
        task=schema.task,
        target=schema.target,
        split=split,
        rows=len(scores),
        labels=list(schema.labels),
        metrics={**task.metrics(schema, scores, labels), **written.metrics},
        intervals=row_intervals(task, schema, scores, labels),
        examples=[dict(example) for example in written.examples],
        notes=list(written.notes),
        history=[dict(epoch) for epoch in known.get("history", ())],
        cost=dict(known.get("cost") or {}),
        data=dict(known.get("data_report") or {}),
    )


def row_intervals(
    task: Task, schema: Schema, scores: np.ndarray, labels: np.ndarray, *, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Metric → (low, high) over rows drawn with replacement (Efron 1979); empty where rows are few or their scores are large."""
    rows = len(scores)
    if rows < 2 or scores.size > _LARGEST_RESAMPLED:
        return {}
    rng, found = np.random.default_rng(seed), []
    for _ in range(_SAMPLES):
        draw = rng.integers(0, rows, rows)
        found.append(task.metrics(schema, scores[draw], labels[draw] if len(labels) == rows else labels))
    ends = [50 * (1 - level), 50 * (1 + level)]
    names = [name for name in found[0] if all(name in one for one in found)]
    drawn = {name: np.percentile([one[name] for one in found], ends) for name in names}
    return {name: (float(low), float(high)) for name, (low, high) in drawn.items() if np.isfinite([low, high]).all() and low < high}
