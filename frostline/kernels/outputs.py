"""What a network gives for a batch, in the form that the task's loss takes: logits, or scores of the labelled tokens alone.

A vocabulary's logits are made at labelled positions only and in chunks (law 6). For that the network's last linear layer is
passed through while the network runs, so that its "logits" are the hidden states; the layer's weight is then applied where a
label is. This is right where ``logits = output(body(...))``, which loading a model proves (:class:`Model`, ``output``); other
networks make their logits themselves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from frostline.adapt.wrapper import Wrapper
from frostline.data.loader import Batch
from frostline.data.token_rows import IGNORED
from frostline.kernels.cross_entropy import linear_cross_entropy
from frostline.kernels.frozen_product import FrozenProduct
from frostline.models.model import Model, logits_of
from frostline.models.output import passed_through
from frostline.tasks.task import Task
from frostline.tasks.tokens import TokenScores


def outputs_of(
    task: Task, model: Model, batch: Batch, run: Callable[[], Tensor] | None = None, product: FrozenProduct | None = None
) -> Any:
    """The task's outputs for a batch. ``run``: what runs the network, where not the module on the batch's inputs.

    ``product``: what multiplies with the frozen weight of the model's output layer.
    """
    run = run or (lambda: logits_of(model.module(**batch.inputs)))
    if not task.per_token:
        logits = run()
        return logits if logits.dtype == torch.float64 else logits.float()
    with passing_through(task, model):
        hidden = run()  # (rows, tokens, width), or (rows, tokens, vocabulary) where the network makes its logits itself
    where = batch.labels != IGNORED
    chosen, labels = hidden[where], batch.labels[where]
    nll, correct = _losses(model, chosen, labels, product)
    return TokenScores(nll=nll, correct=correct, row=where.nonzero()[:, 0], rows=len(batch.labels), reference=batch.reference)


@contextlib.contextmanager
def passing_through(task: Task, model: Model) -> Iterator[None]:
    """Within, a language model's output layer gives its input: hidden states come out in place of logits."""
    if not (task.per_token and model.output):
        yield
        return
    with passed_through(model.module, model.module.get_submodule(model.output)):
        yield


def _losses(model: Model, chosen: Tensor, labels: Tensor, product: FrozenProduct | None) -> tuple[Tensor, Tensor]:
    if model.output:
        layer: Any = model.module.get_submodule(model.output)
        inputs, weight = layer.as_product(chosen) if isinstance(layer, Wrapper) else (chosen, product or layer.weight)
        made = linear_cross_entropy(inputs, weight, layer.bias, labels)
        return made.nll, made.correct
    chosen = chosen if chosen.dtype == torch.float64 else chosen.float()
    return functional.cross_entropy(chosen, labels, reduction="none"), chosen.detach().argmax(1) == labels
