"""Chat (instruction tuning): the model's own template, and loss where the recipe's `train_on` says: on the assistant's turns."""

from __future__ import annotations

from frostline.tasks.task import Task
from frostline.tasks.tokens import best_by, loss, metrics, running, running_name, scores, show

TASK = Task(
    name="chat",
    input_column="messages",
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
