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
    from frostline.tasks import (
        causal_lm,
        chat,
        embedding,
        image_classification,
        preference,
        reward,
        summarisation,
        text_classification,
        token_classification,
        translation,
    )

    modules = (
        image_classification,
        text_classification,
        token_classification,
        chat,
        causal_lm,
        preference,
        reward,
        translation,
        summarisation,
        embedding,
    )
    tasks = {module.TASK.name: module.TASK for module in modules}
    if name not in tasks:
        raise RecipeError(f"data.task: {name!r} is not a known task, expected one of {', '.join(tasks)}. Use: --task {next(iter(tasks))}")
    return tasks[name]
