"""Which frozen linear layers a plan may choose for, and how much each multiplies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import frostline as fl
from frostline.data.dataset import Dataset
from frostline.data.token_rows import IGNORED
from frostline.kernels.int8_convolution import Int8Convolution
from frostline.plan import frozen_layers as layers_of
from frostline.plan.frozen_layers import alike, frozen_layers, observed, seconds_now_and_with
from frostline.plan.plan import Plan
from tests.plan.small import llama_with_lora
from tests.train.small import first_rows, plan


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers_of, "_SMALLEST", 1)


def tuned(folder: Path, **options: Any) -> Plan:
    return llama_with_lora(folder, **{"prepack": "off", **options})


def test_a_llama_with_lora(tmp_path: Path) -> None:
    execution = tuned(tmp_path, pack="on").execution
    found = {item.name: item for item in frozen_layers(execution, 6)}
    assert len(found) == 2 * 7 + 1 and found["lm_head"].passes_gradient
    first = {name.split(".")[-2] for name, item in found.items() if not item.passes_gradient}
    assert first == {"q_proj", "k_proj", "v_proj"}, "nothing learns before the first block's"
    source = execution.sources["train"]
    few = source.encode([0, (source.rows - 1) // 2, source.rows - 1], None)
    tokens = 2 * int(few.inputs["attention_mask"].sum())  # of a batch of 6
    assert found["model.layers.1.mlp.up_proj.base"].rows == pytest.approx(tokens, abs=tokens * 0.2)
    assert found["lm_head"].rows == 2 * int((few.labels != IGNORED).sum()) < tokens
    groups = alike(found.values())
    assert [item.name for item in groups["16x8 forward"]] == [f"model.layers.0.self_attn.{name}_proj.base" for name in "kv"]
    assert len(groups["16x32"]) == 4


def test_nothing_where_everything_learns(tmp_path: Path) -> None:
    assert frozen_layers(tuned(tmp_path, adapt="full").execution, 6) == []


def test_weights_that_stay_at_home_are_left_out(tmp_path: Path) -> None:
    """The whole block: what of it is on the GPU is too small to gain anything."""
    execution = tuned(tmp_path).execution
    execution.hosted = execution.model.blocks[:1]
    assert [item.name for item in frozen_layers(execution, 6) if item.name.startswith(f"{execution.hosted[0]}.")] == []
    assert len(frozen_layers(execution, 6)) == 7 + 1


def test_small_weights_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execution = tuned(tmp_path).execution
    monkeypatch.setattr(layers_of, "_SMALLEST", 16 * 32)
    assert all("mlp" in item.name or item.name == "lm_head" for item in frozen_layers(execution, 6))


def test_the_seconds_count_a_gradient_only_where_one_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execution = tuned(tmp_path).execution
    by_name = {item.name: item for item in frozen_layers(execution, 6)}
    directions: list[str] = []

    class Product:
        def forward(self, x: torch.Tensor, bias: None) -> None:
            directions.append("forward")

        def gradient(self, grad: torch.Tensor) -> None:
            directions.append("gradient")

    def once(works: list[Any], budget: float) -> list[float]:
        for work in works:
            work()
        return [1.0, 2.0]

    monkeypatch.setattr(layers_of, "best_seconds_each", once)
    product: Any = Product()
    first, second = (by_name[f"model.layers.{index}.self_attn.q_proj.base"] for index in range(2))
    assert seconds_now_and_with(first, execution, product) == (1.0, 2.0) and directions == ["forward"]
    seconds_now_and_with(second, execution, product)
    assert directions == ["forward", "forward", "gradient"]
    execution.products[second.name] = product
    seconds_now_and_with(second, execution, product)
    assert directions[3:] == ["forward", "gradient"] * 2, "as it multiplies now, too"


def test_what_comes_into_a_layer_is_seen_and_no_longer() -> None:
    module, seen = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), []
    with observed(module, ["0", "2"], lambda name, x: seen.append((name, tuple(x.shape)))):
        module(torch.randn(5, 4))
    module(torch.randn(5, 4))
    assert seen == [("0", (5, 4)), ("2", (5, 3))]


def test_convolutions_and_what_comes_into_them(digits: Dataset, tmp_path: Path) -> None:
    data = first_rows(digits, 12)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 144, 10))
    network[0].requires_grad_(False)
    execution = plan(fl.load(network, data=data, size=24), data, tmp_path, adapt="head", int8="off").execution
    (item,) = frozen_layers(execution, 6)
    assert item.convolves and not item.passes_gradient and item.rows == 6 and item.row == (3, 24, 24)
    assert item.shape == "3x8/1 3x3 stride 2x2 padding 1x1 dilation 1x1 of 24x24 ReLU forward"
    inputs = execution.sources["train"].encode(range(12), None).inputs
    assert item.low == -1.0 and 0.5 < item.high <= float(next(iter(inputs.values())).max()) + 1e-6
    now, then = seconds_now_and_with(item, execution, Int8Convolution(item.unit, low=item.low, high=item.high))
    assert now > 0 and then > 0


def test_only_weights_that_are_frozen_parameters_and_layers_as_they_are_written(digits: Dataset, tmp_path: Path) -> None:
    """A pruned weight is made anew of one that learns, and without gradients does not show it."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 16), nn.Linear(16, 10))
    net.requires_grad_(False)
    prune.l1_unstructured(net[1], "weight", amount=0.5)
    net[3].forward = lambda x: 2 * nn.functional.linear(x, net[3].weight, net[3].bias)  # type: ignore[method-assign]
    net[4].double(), net[5].requires_grad_(True)
    net.forward = lambda x: net[5](net[4](net[:4](x).double()).float())  # type: ignore[method-assign]
    with torch.no_grad():
        net(torch.zeros(2, 3, 8, 8))
    made = plan(fl.load(net, data=first_rows(digits, 24), size=8), first_rows(digits, 24), tmp_path, adapt="full", prepack="off")
    net.requires_grad_(False)[1].weight_orig.requires_grad_(True)
    assert [item.name for item in frozen_layers(made.execution, 6)] == ["module.5"]


def test_layers_that_are_called_by_keyword() -> None:
    layer, seen = nn.Linear(4, 3).requires_grad_(False), []
    with observed(nn.Sequential(layer), ["0"], lambda name, x: seen.append((name, tuple(x.shape)))):
        layer(input=torch.zeros(2, 4))
    assert seen == [("0", (2, 4))]
