"""The scores of a whole split: the model in evaluation mode, rows sorted by length, put back in their order."""

from __future__ import annotations

import os

import numpy as np
import torch

from frostline.data.dataset import Schema
from frostline.data.encode import SplitSource
from frostline.data.loader import load, plain_batches
from frostline.device import device_of
from frostline.kernels.outputs import outputs_of
from frostline.models.model import Model, evaluating
from frostline.plan.passes.reference import reference_of
from frostline.progress import progress
from frostline.tasks import get_task


def score_split(model: Model, schema: Schema, source: SplitSource, batch: int, quiet: bool = True, reference: bool = False) -> np.ndarray:
    """Float32 (rows, numbers): what the task keeps of each row to measure it by; for classification probabilities, or numbers.

    ``reference``: let preferences be compared with the model without its adapter, as their loss was.
    """
    task = get_task(schema.task)
    batches = plain_batches(source.rows, batch, source.lengths)
    parts, rows = [], []
    with evaluating(model.module), torch.inference_mode(), progress(total=source.rows, label="evaluate", quiet=quiet) as bar:
        for item in load(source.to(device_of(model.module)).encode, batches, None, os.cpu_count() or 1):
            item.reference = reference_of(task, model, item) if reference else None
            parts.append(task.scores(schema, outputs_of(task, model, item), item.labels).cpu())
            rows.append(item.rows)
            bar.update(len(item.rows))
    return torch.cat(parts)[torch.cat(rows).argsort()].numpy()
