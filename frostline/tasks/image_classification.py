"""Image classification: one class, several labels, or a number for each image."""

from __future__ import annotations

from frostline.tasks.classification import decode, scores
from frostline.tasks.losses import loss
from frostline.tasks.metrics import split_metrics
from frostline.tasks.task import Task

TASK = Task(
    name="image-classification",
    input_column="path",
    loss=loss,
    metrics=split_metrics,
    scores=scores,
    decode=decode,
)
