"""One file per task: what a row must hold, the loss, the metrics, how a prediction is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from frostline.errors import RecipeError

if TYPE_CHECKING:
    from frostline.tasks.task import Task


def get_task(name: str) -> Task:
    """The task of that name. Raises RecipeError that lists the known ones.

    >>> get_task("text-classification").input_column
    'text'
    """
    # Imported here, so that `import frostline.tasks` does not import torch.
    from frostline.tasks import image_classification, text_classification

    tasks = {
        "image-classification": image_classification.TASK,
        "text-classification": text_classification.TASK,
    }
    if name not in tasks:
        raise RecipeError(f"data.task: {name!r} is not a known task, expected one of {', '.join(tasks)}. Use: --task {next(iter(tasks))}")
    return tasks[name]
