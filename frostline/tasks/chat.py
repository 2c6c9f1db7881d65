"""Chat (instruction tuning): the model's own template, and loss where the recipe's `train_on` says: on the assistant's turns."""

from __future__ import annotations

from frostline.tasks.tokens import language_task

TASK = language_task("chat", "messages")
