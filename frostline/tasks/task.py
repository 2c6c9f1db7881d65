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
    """``loss(logits, labels, options)`` returns ``(sum, count)``; only the training loop divides (law 1)."""

    name: str
    input_column: str
    """Which column of a Dataset's tables holds the input (`text`, `path`)."""
    loss: Callable[[torch.Tensor, torch.Tensor, LossOptions], tuple[torch.Tensor, torch.Tensor]]
    """logits (rows, outputs), labels → (sum of the rows' losses, their weight), both scalars."""
    metrics: Callable[[Schema, np.ndarray, np.ndarray], dict[str, float]]
    """(schema, outputs as scored by ``scores``, labels) of a whole split → named numbers; the first is what `best_by` means by default."""
    scores: Callable[[Schema, torch.Tensor], torch.Tensor]
    """logits → probabilities (class, multi-label) or numbers, float32."""
    decode: Callable[[Schema, np.ndarray], dict[str, Any]]
    """One row's scores → what a person wants to see: {"label": …, "probability": …, "probabilities": {…}}."""


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """What the loss needs beside logits and labels."""

    recipe: TrainRecipe
    schema: Schema
    class_weights: torch.Tensor | None = None
    """float32 (classes,), or None."""
