"""The scores of a whole split: the model in evaluation mode, rows sorted by length, put back in their order."""

from __future__ import annotations

import os

import numpy as np
import torch

from frostline.data.dataset import Schema
from frostline.data.encode import SplitSource
from frostline.data.loader import load, plain_batches
from frostline.models.model import Model, evaluating, logits_of
from frostline.progress import progress
from frostline.tasks import get_task


def score_split(model: Model, schema: Schema, source: SplitSource, batch: int, quiet: bool = True) -> np.ndarray:
    """Float32 (rows, outputs): probabilities, or numbers where the target is one."""
    task = get_task(schema.task)
    batches = plain_batches(source.rows, batch, source.lengths)
    result = np.zeros((source.rows, schema.outputs), dtype=np.float32)
    with evaluating(model.module), torch.inference_mode(), progress(total=source.rows, label="evaluate", quiet=quiet) as bar:
        for item in load(source.encode, batches, None, os.cpu_count() or 1):
            logits = logits_of(model.module(**item.inputs)).float()
            result[item.rows.numpy()] = task.scores(schema, logits).numpy()
            bar.update(len(item.rows))
    return result
