"""What image and text classification have in common: how logits become scores, and how a row's scores are shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from frostline.data.dataset import Schema

THRESHOLD = 0.5
"""From this probability on a label counts as given, for target multi-label."""


def scores(schema: Schema, logits: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
    """Logits → probabilities (softmax for a class, sigmoid for several) or the numbers as they are; float32 (rows, outputs)."""
    if schema.target == "class":
        return torch.softmax(logits.float(), dim=1)
    return torch.sigmoid(logits.float()) if schema.target == "multi-label" else logits.float()


def running(schema: Schema, logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """``(sum, rows)`` of what :func:`running_name` says: rows that are right, or absolute errors."""
    if schema.target == "class":
        truth = labels.argmax(1) if labels.dim() == 2 else labels
        total = (logits.argmax(1) == truth).sum()
    elif schema.target == "multi-label":
        total = ((logits > 0) == (labels > 0.5)).float().mean(1).sum()
    else:
        total = (logits - labels).abs().sum()
    return float(total), float(len(labels))


def running_name(schema: Schema) -> str:
    """The score that is shown beside the loss while training."""
    return {"class": "accuracy", "multi-label": "label_accuracy", "number": "mae"}[schema.target]


def best_by(schema: Schema) -> str:
    """The validation metric that chooses the checkpoint."""
    return {"class": "accuracy", "multi-label": "f1_micro", "number": "loss"}[schema.target]


def decode(schema: Schema, row: np.ndarray) -> dict[str, Any]:
    """One row's scores, for a person; probabilities from the largest to the smallest.

    ``label`` is the class's name (class), the names given (multi-label) or the number.

    >>> decode(Schema(task="text-classification", labels=("猫", "狗")), np.array([0.25, 0.75]))
    {'label': '狗', 'probability': 0.75, 'probabilities': {'狗': 0.75, '猫': 0.25}}
    """
    if schema.target == "number":
        return {"label": float(np.ravel(row)[0])}
    order = np.argsort(-row, kind="stable")
    probabilities = {schema.labels[index]: float(row[index]) for index in order}
    if schema.target == "multi-label":
        return {"label": [name for name, value in probabilities.items() if value >= THRESHOLD], "probabilities": probabilities}
    return {"label": schema.labels[order[0]], "probability": float(row[order[0]]), "probabilities": probabilities}
