"""Translation: a source text to its target, by an encoder-decoder, or by a decoder with a request."""

from __future__ import annotations

from frostline.tasks.task import Task
from frostline.tasks.tokens import best_by, loss, metrics, running, running_name, scores, show

TASK = Task(
    name="translation",
    input_column="source",
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
