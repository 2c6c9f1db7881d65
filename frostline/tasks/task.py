"""Task: the functions in which one kind of work differs from another. A plain dataclass; a new task is a new file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from frostline.data.dataset import Schema
from frostline.recipe import TrainRecipe


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the network gives for a batch (its *outputs*) are logits, or :class:`frostline.tasks.tokens.TokenScores` with ``per_token``.

    ``loss(outputs, labels, options)`` returns ``(sum, count)``; only the training loop divides (law 1).
    """

    name: str
    input_column: str
    """Which column of a Dataset's tables holds the input (`text`, `path`, `messages`)."""
    per_token: bool = False
    """The labels are tokens of a vocabulary: logits are made where a label is, in chunks, and no others (law 6)."""
    sequences: int = 1
    """How many rows of the network's inputs each row of the data gives, side by side; 2 for pairs of answers or of texts (triplets: 3)."""
    loss: Callable[[Any, torch.Tensor, LossOptions], tuple[torch.Tensor, torch.Tensor]]
    """outputs, the batch's labels → (sum of what counts, how much counts), both scalars."""
    scores: Callable[[Schema, Any, torch.Tensor | None], torch.Tensor]
    """(schema, outputs, the batch's labels or None where there are none) → float32 (rows, numbers): all that is kept of a row to
    measure it by. Classification: probabilities or numbers. Tasks with tokens: sums over the row's tokens."""
    metrics: Callable[[Schema, np.ndarray, np.ndarray], dict[str, float]]
    """(schema, the scores of a whole split, its labels) → named numbers, the most telling one first."""
    epoch_metrics: Callable[[Schema, np.ndarray, np.ndarray], dict[str, float]]
    """The same, but only what is quick enough for every epoch."""
    best_by: Callable[[Schema], str]
    """The validation metric that chooses the checkpoint to keep."""
    running: Callable[[Schema, Any, torch.Tensor], tuple[float, float]]
    """(schema, outputs, labels) → (sum, count) of the score that is shown beside the loss while training."""
    running_name: Callable[[Schema], str]
    """What that score is called."""
    decode: Callable[[Schema, np.ndarray], dict[str, Any]]
    """One row's scores → what a person wants to see: {"label": …, "probability": …, "probabilities": {…}}."""


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """What the loss needs beside outputs and labels."""

    recipe: TrainRecipe
    schema: Schema
    class_weights: torch.Tensor | None = None
    """float32 (classes,), or None."""
