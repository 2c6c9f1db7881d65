"""What the tasks with a vocabulary have in common: losses, scores and metrics over labelled tokens, never over logits (law 6).

For the tokens i that have a label, with p_i what the network gives to it:

    loss             sum_i -ln p_i, count: the number of labelled tokens of the whole optimiser step
    perplexity       exp(loss / count)
    token accuracy   the share of the labelled tokens that are the likeliest ones
    bits per byte    sum_i -log2 p_i / bytes of the text that the tokens stand for; comparable between vocabularies
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from frostline.data.dataset import Schema
from frostline.tasks.task import LossOptions, Task


@dataclass(kw_only=True)
class TokenScores:
    """What a network with a vocabulary gives for a batch: n labelled tokens, in the order of rows and positions."""

    nll: Tensor
    """float32 (n,): -ln p of each label, with its gradient."""
    correct: Tensor
    """bool (n,): whether the label is the likeliest token."""
    row: Tensor
    """int64 (n,): the row of the batch that each stands in."""
    rows: int
    """Rows of the batch, those without a label included."""
    reference: Tensor | None = None
    """float64 (rows / 2, 2): the batch's ``reference``; for preferences."""

    def row_sums(self, values: Tensor) -> Tensor:
        """(n,) → (rows,)."""
        return values.new_zeros(self.rows).index_add(0, self.row, values)


def loss(outputs: TokenScores, labels: Tensor, options: LossOptions) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the labelled tokens."""
    return outputs.nll.sum(), outputs.nll.new_tensor(len(outputs.nll))


def scores(schema: Schema, outputs: TokenScores, labels: Tensor | None) -> Tensor:
    """float32 (rows, 3): each row's sum of -ln p, its labelled tokens, and how many of these are right."""
    ones = torch.ones_like(outputs.nll)
    sums = [outputs.nll, ones, outputs.correct.to(outputs.nll.dtype)]
    return torch.stack([outputs.row_sums(values.detach()) for values in sums], dim=1).float()


def metrics(schema: Schema, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Loss, perplexity and token accuracy of a split; with ``labels`` (bytes of each row's text) bits per byte as well."""
    nll, count, correct = scores.astype(np.float64).sum(axis=0)
    if not count:
        return {}
    mean = nll / count
    found = {"loss": mean, "perplexity": math.exp(min(mean, 700.0)), "token_accuracy": correct / count}
    size = float(np.sum(labels))
    return {"bits_per_byte": nll / math.log(2) / size, **found} if size else found


def running(schema: Schema, outputs: TokenScores, labels: Tensor) -> tuple[float, float]:
    """Right tokens and labelled tokens."""
    return float(outputs.correct.sum()), float(len(outputs.correct))


def running_name(schema: Schema) -> str:
    """What :func:`running` counts."""
    return "token_accuracy"


def best_by(schema: Schema) -> str:
    """The checkpoint with the lowest validation loss is kept."""
    return "loss"


def show(schema: Schema, row: np.ndarray) -> dict[str, float]:
    """One row's scores, for a person."""
    return metrics(schema, row[None], np.zeros(0))


def language_task(name: str, input_column: str) -> Task:
    """A task that is learned and measured by its labelled tokens; which tokens have a label is a matter of its data."""
    return Task(
        name=name,
        input_column=input_column,
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
