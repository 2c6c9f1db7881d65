"""Reward: a network with one output learns, from pairs of answers, a number by which the better one is the larger.

    loss    -ln σ(r(x, w) - r(x, l))     (Bradley and Terry, Biometrika 1952; as a loss for answers w better than l to a prompt x:
                                         Ouyang et al., "Training language models to follow instructions with human feedback", 2022)

The network sees whole conversations, two for each row (data/preference_encoder.py). Only differences are learned: rewards have no
zero of their own. Accuracy is the share of pairs whose chosen answer got the larger reward. What is predicted for a conversation
or a text alone is its reward.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from frostline.data.dataset import Schema
from frostline.tasks import preference
from frostline.tasks.task import LossOptions, Task


def loss(logits: Tensor, labels: Tensor, options: LossOptions) -> tuple[Tensor, Tensor]:
    """The sum of the pairs' losses and their number; ``logits`` (2 × pairs, 1)."""
    rewards = _pairs(logits)
    return -F.logsigmoid(rewards[:, 0] - rewards[:, 1]).sum(), rewards.new_tensor(len(rewards))


def scores(schema: Schema, logits: Tensor, labels: Tensor | None) -> Tensor:
    """float32 (pairs, 2): the rewards of the chosen and the rejected answer; without labels (rows, 1): each row's reward."""
    return (logits.reshape(-1, 1) if labels is None else _pairs(logits)).detach().float()


def metrics(schema: Schema, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, margin, mean rewards, and the loss."""
    if not len(scores):
        return {}
    margins = scores[:, 0].astype(np.float64) - scores[:, 1]
    return {**preference.metrics(schema, scores, labels), "loss": float(np.logaddexp(0, -margins).mean())}


def running(schema: Schema, logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Pairs that are right, and pairs."""
    rewards = _pairs(logits)
    return float((rewards[:, 0] > rewards[:, 1]).sum()), float(len(rewards))


def show(schema: Schema, row: np.ndarray) -> dict[str, Any]:
    """One row's scores, for a person.

    >>> show(Schema(task="reward", target="none"), np.array([0.5]))
    {'reward': 0.5}
    """
    return {"reward": float(row[0])} if len(row) == 1 else preference.show(schema, row)


def _pairs(logits: Tensor) -> Tensor:
    assert logits.numel() == len(logits) and len(logits) % 2 == 0, f"got logits of the shape {tuple(logits.shape)}, expected (2 × rows, 1)"
    return logits.reshape(-1, 2)


TASK = Task(
    name="reward",
    input_column="prompt",
    sequences=2,
    loss=loss,
    scores=scores,
    metrics=metrics,
    epoch_metrics=metrics,
    best_by=preference.best_by,
    running=running,
    running_name=preference.running_name,
    decode=show,
)
