"""Sentence embeddings: texts that belong together get vectors that point the same way.

A row has two or three texts, so n rows have k n vectors (embedding_encoder.py). With cos the cosine of two vectors:

contrastive   -ln [ e^{cos(f_i, s_i)/t} / sum_j e^{cos(f_i, c_j)/t} ], where the c_j are the second texts of the whole batch, and
              the negatives if there are any (InfoNCE, van den Oord et al. 2018; as "multiple negatives ranking" in Henderson et
              al., "Efficient natural language response suggestion for smart reply", 2017). Texts that are equal to s_i or to f_i,
              and the second texts of rows with the same first one, are no negatives and are left out of the sum
cosine        (cos(f_i, s_i) - score_i)^2 (Reimers and Gurevych, "Sentence-BERT", 2019)
triplet       max(0, |f_i - s_i|^2 - |f_i - n_i|^2 + margin) for vectors of length 1 (Schroff et al., "FaceNet", 2015)

auto is cosine where the rows have scores, else contrastive. All are sums over rows (law 1); but what the contrastive loss takes
as negatives are its batch mates, so its value depends on train.batch by definition, and accumulating is not one large batch.

Measured are Spearman's rank correlation of cosines and scores; or how often, among all second (and negative) texts of the split,
a first text's own second one is among the 1, 5 or 10 nearest (recall@k), and the mean of 1 / its rank (MRR). Ties count against
it, lest a model that maps all to one vector looks perfect.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from frostline.data.dataset import Schema
from frostline.errors import RecipeError
from frostline.tasks.metrics import average_ranks
from frostline.tasks.task import LossOptions, Task

_RANKS = (1, 5, 10)
_ROWS_AT_ONCE = 512


def loss(outputs: Tensor, labels: Tensor, options: LossOptions) -> tuple[Tensor, Tensor]:
    """Vectors (k · rows, width) → the sum of the rows' losses, and the number of rows."""
    vectors = _by_row(outputs, labels)
    name = options.recipe.loss
    if name == "auto":
        name = "cosine" if labels.is_floating_point() else "contrastive"
    if (name == "cosine") != labels.is_floating_point() or (name == "triplet" and vectors.shape[1] != 3):
        needs = {"cosine": "a score in every row", "triplet": "a negative in every row"}.get(name, "rows without scores")
        raise RecipeError(f"train.loss got {name!r}, which needs {needs}, and the rows have none such. Use: train.loss=auto")
    if name == "cosine":
        total = ((vectors[:, 0] * vectors[:, 1]).sum(-1) - labels.to(vectors.dtype)).square().sum()
    elif name == "triplet":
        near, far = ((vectors[:, 0] - vectors[:, part]).square().sum(-1) for part in (1, 2))
        total = F.relu(near - far + options.recipe.margin).sum()
    else:
        logits = _similarities(vectors, labels) / options.recipe.temperature
        total = F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="sum")
    return total, total.new_tensor(len(vectors))


def _by_row(outputs: Tensor, labels: Tensor) -> Tensor:
    """(k · rows, width) → (rows, k, width) of length 1, in float32 at least."""
    outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
    several = 2 if labels.is_floating_point() else labels.shape[1]
    return F.normalize(outputs, dim=-1).reshape(len(labels), several, outputs.shape[-1])


def _similarities(vectors: Tensor, labels: Tensor) -> Tensor:
    """(rows, candidates): cosine of each first text and all seconds, then all negatives; -inf where one is no negative."""
    rows = len(vectors)
    candidates = vectors[:, 1:].transpose(0, 1).reshape(-1, vectors.shape[-1])  # seconds first, so that row i's own is i
    numbers = labels[:, 1:].t().reshape(-1)
    alike = (numbers == labels[:, 1:2]) | (numbers == labels[:, :1])  # (rows, candidates)
    alike[:, :rows] |= labels[:, 0] == labels[:, :1]
    alike.diagonal().fill_(False)
    return (vectors[:, 0] @ candidates.t()).masked_fill(alike, -torch.inf)


def scores(schema: Schema, outputs: Tensor, labels: Tensor | None) -> Tensor:
    """float32 (rows, k · width): the row's vectors, of length 1; without labels one vector a row."""
    vectors = F.normalize(outputs.detach().float(), dim=-1)
    return vectors if labels is None else vectors.reshape(len(labels), -1)


def metrics(schema: Schema, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """spearman and pearson of scored pairs; mrr and recall@k of others, and how often a negative is farther away."""
    scored = labels.dtype.kind == "f"
    vectors = scores.reshape(len(scores), 2 if scored else labels.shape[1], -1)
    own = (vectors[:, 0] * vectors[:, 1]).sum(axis=-1)
    if scored:
        if len(labels) < 2 or np.ptp(labels) == 0 or np.ptp(own) == 0:
            return {}
        spearman = float(np.corrcoef(average_ranks(own), average_ranks(labels))[0, 1])
        return {"spearman": spearman, "pearson": float(np.corrcoef(own, labels)[0, 1])}
    ranks = _ranks(vectors, labels)
    found = {"mrr": float((1 / ranks).mean()), **{f"recall@{most}": float((ranks <= most).mean()) for most in _RANKS}}
    if labels.shape[1] == 3:
        found["triplet_accuracy"] = float((own > (vectors[:, 0] * vectors[:, 2]).sum(axis=-1)).mean())
    return found


def _ranks(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """int64 (rows,): from 1, the place of each row's second text among all texts that it could be."""
    numbers, first_seen, place = np.unique(labels[:, 1:].reshape(-1), return_index=True, return_inverse=True)
    candidates = vectors[:, 1:].reshape(-1, vectors.shape[-1])[first_seen]
    seconds = place.reshape(len(labels), -1)[:, 0]
    order = np.argsort(labels[:, 0], kind="stable")
    starts = np.flatnonzero(np.diff(labels[order, 0], prepend=-1))
    together = {int(labels[rows[0], 0]): np.unique(seconds[rows]) for rows in np.split(order, starts[1:])}
    ranks = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        rows = np.arange(start, min(start + _ROWS_AT_ONCE, len(vectors)))
        near = vectors[rows, 0] @ candidates.T
        own = near[rows - start, seconds[rows]].copy()
        near[labels[rows, :1] == numbers] = -np.inf  # the first text itself
        for row in rows:
            near[row - start, together[int(labels[row, 0])]] = -np.inf  # its other right ones, and its own, which is not counted
        ranks[rows] = 1 + (near >= own[:, None]).sum(axis=1)
    return ranks


def running(schema: Schema, outputs: Tensor, labels: Tensor) -> tuple[float, float]:
    """Of scored pairs: two of them whose cosines stand in the order of their scores, and how many have an order; else rows whose
    own second text is the nearest of the batch, and rows."""
    vectors = _by_row(outputs.detach(), labels)
    if labels.is_floating_point():
        own = (vectors[:, 0] * vectors[:, 1]).sum(-1)
        higher = labels[:, None] > labels
        return float((higher & (own[:, None] > own)).sum()), float(higher.sum())
    nearest = _similarities(vectors, labels).argmax(1)
    return float((nearest == torch.arange(len(nearest), device=nearest.device)).sum()), float(len(nearest))


def running_name(schema: Schema) -> str:
    """What :func:`running` counts, within each batch."""
    return "batch_accuracy"


def best_by(schema: Schema) -> str:
    """The checkpoint with the lowest validation loss is kept, whatever the rows have."""
    return "loss"


def decode(schema: Schema, row: np.ndarray) -> dict[str, Any]:
    """One text's vector."""
    return {"vector": [float(number) for number in row]}


TASK = Task(
    name="embedding",
    input_column="first",
    sequences=2,  # or 3: what counts is that a row is several of the network's
    loss=loss,
    scores=scores,
    metrics=metrics,
    epoch_metrics=metrics,
    best_by=best_by,
    running=running,
    running_name=running_name,
    decode=decode,
)
