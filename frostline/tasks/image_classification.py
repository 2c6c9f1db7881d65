"""Image classification: one class, several labels, or a number for each image."""

from __future__ import annotations

from frostline.tasks.classification import best_by, decode, running, running_name, scores
from frostline.tasks.losses import loss
from frostline.tasks.metrics import epoch_metrics, split_metrics
from frostline.tasks.task import Task

TASK = Task(
    name="image-classification",
    input_column="path",
    loss=loss,
    scores=scores,
    metrics=split_metrics,
    epoch_metrics=epoch_metrics,
    best_by=best_by,
    running=running,
    running_name=running_name,
    decode=decode,
)
