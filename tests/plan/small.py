"""What the tests of planner passes share: conversations, and small networks that are tuned on them or on labelled texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.data.dataset import Dataset
from frostline.models.model import Model
from frostline.plan.plan import Plan
from tests import small
from tests.models.language import folder_of
from tests.train.small import first_rows, plan


def talks() -> Dataset:
    return fl.prepare(small.talks(12), task="chat", workers=0)


def llama(data: Dataset) -> Model:
    texts = ["user assistant", *(message["content"] for row in small.talks(12) for message in row["messages"])]
    return small.llama(data.task, texts, max_length=128)


def llama_with_lora(folder: Path, **options: Any) -> Plan:
    data = talks()
    usual = {"adapt": {"method": "lora", "rank": 3}, "batch": 6, "cache": "off"}
    return plan(llama(data), data, folder, **{**usual, **options})


def bert(data: Dataset, folder: Path) -> Model:
    """One that can be loaded again by its folder, which is made where it is not there."""
    weights = folder / "bert"
    if not weights.exists():
        folder_of("bert", weights, max_position_embeddings=128)
    return fl.load(str(weights), data=data, max_length=100)


def bert_with_lora(data: Dataset, folder: Path, **options: Any) -> Plan:
    data = first_rows(data, 24)
    usual = {"adapt": {"method": "lora", "rank": 3}, "batch": 6, "cache": "off"}
    return plan(bert(data, folder), data, folder / "run", **{**usual, **options})


def without_dropout(made: Plan) -> Plan:
    for part in made.model.module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return made


def gradients(made: Plan) -> tuple[float, dict[str, Tensor]]:
    """The loss and the gradients of one step, without dropout, with an update that is not zero."""
    module = made.model.module.eval()
    module.zero_grad()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    batch = made.execution.sources["train"].encode(np.arange(6), None)
    total, count = made.loss(made.execution.forward(batch), batch.labels)
    made.execution.backward(total / count)
    return float(total.detach()), {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


CLOSE = {torch.float64: 1e-10, torch.float32: 5e-5}
"""How near gradients of one step in two orders of the same sums are, relative to their largest number: in float32 a small network
multiplies its roundings by a hundred, as much as the processor's library has them."""


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Gradients of one step in two orders of the same sums, computed in this type."""
    assert set(ours) == set(theirs) and theirs
    for name, gradient in theirs.items():
        assert ours[name].dtype == gradient.dtype == dtype
        close = CLOSE[dtype]
        torch.testing.assert_close(ours[name], gradient, rtol=close, atol=close * float(gradient.abs().max()), msg=name)
