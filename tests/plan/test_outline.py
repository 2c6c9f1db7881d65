"""The outline: parts in their order, what they are to the plan, and multiply-adds against sums by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.data.dataset import Dataset
from frostline.plan.outline import CACHED, FROZEN, INT8, LEARNING, PACKED, Part, outline
from frostline.plan.plan import Plan
from tests.models.language import folder_of
from tests.small import talks
from tests.train.small import cnn, first_rows, plan


@pytest.fixture
def data(digits: Dataset) -> Dataset:
    return first_rows(digits, 40)


def by_name(made: Plan) -> dict[str, Part]:
    return {part.name: part for part in outline(made.execution).parts}


def test_a_cached_network_with_a_learning_head(data: Dataset, tmp_path: Path) -> None:
    made = plan(cnn(data, depth=2), data, tmp_path, adapt="head", cache="on")
    seen = outline(made.execution)
    assert [part.name for part in seen.parts] == [*made.model.blocks, "head"]
    assert [list(part.shares) for part in seen.parts] == [[CACHED], [CACHED], [LEARNING]]
    assert seen.counted and seen.line == 2
    assert sum(part.numbers for part in seen.parts) == made.parameters["all"]
    assert seen.parts[-1].shares == {LEARNING: made.parameters["learning"]}


def test_everything_learns(data: Dataset, tmp_path: Path) -> None:
    seen = outline(plan(cnn(data), data, tmp_path).execution)
    assert seen.line is None and all(list(part.shares) == [LEARNING] for part in seen.parts)


def test_multiply_adds_by_hand(data: Dataset, tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, 4, 3)
            self.second = nn.Linear(4 * 26 * 26, 10)

        def forward(self, pixel_values: Tensor) -> Tensor:
            hidden: Tensor = self.second(self.first(pixel_values).flatten(1))
            return hidden

    model = fl.load(Net(), task=data.task, preprocess=cnn(data).card.preprocess)
    size = model.card.preprocess.size
    assert size == 28
    parts = by_name(plan(model, data, tmp_path))
    assert {name: part.work for name, part in parts.items()} == {"first": 26 * 26 * 4 * 9, "second": 4 * 26 * 26 * 10}
    assert [part.kind for part in parts.values()] == ["Conv2d", "Linear"]


def test_a_product_that_cannot_be_counted(data: Dataset, tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(784, 10))

        def forward(self, x: Tensor) -> Tensor:
            return (x.flatten(1)[..., None] * self.weight).sum(1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.odd, self.last = Odd(), nn.Linear(10, 10)

        def forward(self, pixel_values: Tensor) -> Tensor:
            hidden: Tensor = self.last(self.odd(pixel_values))
            return hidden

    model = fl.load(Net(), task=data.task, preprocess=cnn(data).card.preprocess)
    assert not outline(plan(model, data, tmp_path).execution).counted


@pytest.mark.parametrize("name", ["lstm", "gru", "transformer"])
def test_recurrent_cells_and_attention_are_counted(texts: Dataset, tmp_path: Path, name: str) -> None:
    made = plan(fl.load(name, data=first_rows(texts, 30), width=16), first_rows(texts, 30), tmp_path)
    parts = by_name(made)
    assert outline(made.execution).counted
    assert parts["blocks.0"].work == parts["blocks.1"].work > parts["blocks.0"].numbers
    assert next(iter(parts)) in ("embedding", "tokens")


def test_int8_and_packed_weights(texts: Dataset, tmp_path: Path) -> None:
    rows = first_rows(texts, 30)
    lowered = plan(fl.load("transformer", data=rows, width=128), rows, tmp_path, adapt="lora", int8="on", prepack="off", quality="fast")
    shares = by_name(lowered)["blocks.0"].shares
    assert shares[INT8] > shares[LEARNING] > 0 and shares[FROZEN] > 0 and PACKED not in shares
    packed = plan(fl.load("transformer", data=rows, width=128), rows, tmp_path, adapt="lora", int8="off", prepack="on")
    assert by_name(packed)["blocks.0"].shares[PACKED] == shares[INT8]


def test_language_models(tmp_path: Path) -> None:
    data = fl.prepare(talks(12), workers=0)
    folder = str(folder_of("llama", tmp_path / "llama", max_position_embeddings=200))

    def made(**adapt: Any) -> Plan:
        return plan(fl.load(folder, data=data, max_length=160), data, tmp_path / "run", adapt=adapt, cache="off")

    lora = outline(made(method="lora", rank=2).execution)
    assert [part.name for part in lora.parts] == ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "lm_head"]
    output = lora.parts[-1]
    assert output.work > 0 and output.numbers == 0 and FROZEN in output.shares  # tied: its weight is the embedding's
    assert lora.line == 1 and LEARNING in lora.parts[1].shares
    packed = made(method="lora", rank=2, base="nf4")
    assert sum(part.numbers for part in outline(packed.execution).parts) == packed.parameters["all"]
    prompt = outline(made(method="prompt").execution)
    assert prompt.line is None and list(prompt.parts[0].shares) == [LEARNING]  # tokens before the input: nothing lies before them


def test_nothing_is_changed(data: Dataset, tmp_path: Path) -> None:
    made = plan(cnn(data), data, tmp_path, adapt="head", cache="on")
    module = made.model.module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    modes, state = [part.training for part in module.modules()], torch.get_rng_state()
    onednn, fused = torch.backends.mkldnn.enabled, torch.backends.mha.get_fastpath_enabled()
    outline(made.execution)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert [part.training for part in module.modules()] == modes and torch.equal(torch.get_rng_state(), state)
    assert (torch.backends.mkldnn.enabled, torch.backends.mha.get_fastpath_enabled()) == (onednn, fused)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
