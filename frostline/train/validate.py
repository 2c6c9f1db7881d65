"""Validation: the same numbers whatever the batch size, for they are computed over the whole split."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from frostline.data.loader import Batch, load, plain_batches
from frostline.models.model import evaluating
from frostline.plan.plan import Plan


def validate(plan: Plan) -> dict[str, float]:
    """Loss and the task's quick metrics on the validation split; the module's mode is put back."""
    module, source = plan.model.module, plan.execution.sources["validation"]
    total = count = 0.0
    scores: list[Tensor] = []
    rows: list[Tensor] = []
    with evaluating(module), torch.no_grad(), plan.execution.kernels():
        for batch in _batches(plan):
            outputs = plan.execution.forward(batch)
            loss, weight = plan.loss(outputs, batch.labels)
            total, count = total + float(loss), count + float(weight)
            scores.append(plan.task.scores(plan.data.schema, outputs, batch.labels).cpu())
            rows.append(batch.rows)
    order = torch.cat(rows).argsort()
    found = plan.task.epoch_metrics(plan.data.schema, torch.cat(scores)[order].numpy(), np.asarray(source.labels))
    return {"val_loss": total / max(count, 1e-12), **{f"val_{name}": value for name, value in found.items()}}


def _batches(plan: Plan) -> Iterator[Batch]:
    source = plan.execution.sources["validation"]
    batches: list[np.ndarray] = plain_batches(source.rows, plan.recipe.train.batch, source.lengths)
    return load(plan.execution.encoder("validation"), batches, None, plan.execution.workers)
