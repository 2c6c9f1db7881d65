"""Causal language modelling: the next token of documents, packed with separators; from zero or going on from weights."""

from __future__ import annotations

from frostline.tasks.task import Task
from frostline.tasks.tokens import best_by, loss, metrics, running, running_name, scores, show

TASK = Task(
    name="causal-lm",
    input_column="text",
    per_token=True,
    loss=loss,
    scores=scores,
    metrics=metrics,
    epoch_metrics=metrics,
    best_by=best_by,
    running=running,
    running_name=running_name,
    decode=show,
)
