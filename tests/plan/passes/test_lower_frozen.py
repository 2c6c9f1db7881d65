"""Frozen layers in int8: only when asked, only where the loss keeps, layer by layer, and what learns is as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.data.dataset import Dataset
from frostline.kernels.frozen_product import QuantisedRows
from frostline.kernels.int8_convolution import Int8Convolution
from frostline.kernels.int8_product import Int8Product, can_lower
from frostline.kernels.row_scaled_product import RowScaledProduct
from frostline.kernels.smoothed_product import SmoothedProduct
from frostline.plan import frozen_layers as layers_of
from frostline.plan.decision import Decision
from frostline.plan.frozen_layers import frozen_layers
from frostline.plan.passes import lower_frozen
from frostline.plan.plan import Plan
from tests.plan.small import bert_with_lora, llama, llama_with_lora, talks
from tests.train.small import first_rows, plan, saved, stopped_and_resumed

pytestmark = pytest.mark.skipif(not can_lower(torch.zeros(1)), reason="no fast products of int8 here")


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers_of, "_SMALLEST", 1)
    monkeypatch.setattr(lower_frozen, "_SMALLEST_KERNEL", 1)


def tuned(folder: Path, **options: Any) -> Plan:
    return llama_with_lora(folder, **{"prepack": "off", "int8": "on", **options})


def decision(made: Plan) -> Decision:
    return next(one for one in made.decisions if one.what == "lower_frozen")


def gradients(made: Plan) -> tuple[float, dict[str, Tensor]]:
    module = made.model.module.eval()
    batch = made.execution.sources["train"].encode(np.arange(6), None)
    total, count = made.loss(made.execution.forward(batch), batch.labels)
    (total / count).backward()
    return float((total / count).detach()), {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def test_the_loss_and_the_gradients_stay_near(tmp_path: Path) -> None:
    lowered, plain = tuned(tmp_path / "on"), tuned(tmp_path / "off", int8="off")
    assert decision(lowered).on and not decision(lowered).exact and "14 of 14 frozen linear layers in int8; " in decision(lowered).why
    assert not decision(plain).on and not plain.execution.products
    assert set(lowered.execution.products) == set(decision(lowered).settings["layers"]) and "lm_head" not in lowered.execution.products
    (loss, ours), (expected, theirs) = gradients(lowered), gradients(plain)
    assert loss == pytest.approx(expected, rel=0.01) and loss != expected
    for name, gradient in theirs.items():
        assert ours[name].dtype == torch.float32
        assert float((ours[name] - gradient).norm()) <= 0.1 * float(gradient.norm()), name


def test_only_when_asked(tmp_path: Path) -> None:
    made = tuned(tmp_path, int8="auto")
    assert not decision(made).on and "plan.quality=fast" in decision(made).why and not made.execution.products


def test_auto_takes_what_is_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower_frozen, "seconds_now_and_with", lambda item, *_: (2.0, 1.0 if item.shape == "16x32" else 1.9))
    made = tuned(tmp_path, int8="auto", quality="fast", train={"precision": "fp32"})
    assert len(made.execution.products) == 4 and all("up" in name or "gate" in name for name in made.execution.products)
    steps = 2 * made.execution.sources["train"].rows / 6
    assert decision(made).saves_seconds == pytest.approx(4 * steps)


def spoil(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Int8 products of a weight that is marked as spoiled are so many times too large."""
    made = Int8Product.make

    def make(self: Int8Product, weight: Tensor) -> Any:
        form = made(self, weight)
        return form._replace(scales=form.scales * factor) if getattr(self.weight, "spoiled", False) else form

    monkeypatch.setattr(Int8Product, "make", make)


def test_the_worst_layers_are_left_out_until_the_loss_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled = "model.layers.1.mlp.up_proj.base"
    spoil(monkeypatch, 40)
    data = talks()
    model = llama(data)
    model.module.get_submodule(spoiled.removesuffix(".base")).weight.spoiled = True
    planned = plan(model, data, tmp_path, adapt={"method": "lora", "rank": 3}, batch=6, cache="off", prepack="off", int8="on")
    assert decision(planned).on and spoiled not in planned.execution.products and 0 < len(planned.execution.products) < 14
    assert "of 14 frozen linear layers in int8; loss on held-out rows" in decision(planned).why


def test_outliers_are_smoothed_before_a_layer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column of what q, k and v get is 200 times as large as the others."""
    data = talks()

    def made(folder: str, change: Any) -> Plan:
        model = llama(data)
        with torch.no_grad():
            for block in model.module.model.layers:
                block.input_layernorm.weight[3] = 200.0
        monkeypatch.setattr(lower_frozen, "_change", change)
        options = {"adapt": {"method": "lora", "rank": 3}, "batch": 6, "cache": "off", "prepack": "off", "int8": "on"}
        return plan(model, data, tmp_path / folder, **options)

    changes = iter([1.0, 0.0])
    planned = made("smoothed", lambda before, after: next(changes, 0.0))
    products = planned.execution.products
    smoothed = sorted(name.split(".")[-2] for name, product in products.items() if isinstance(product, SmoothedProduct))
    assert len(products) == 14 and {"q_proj", "k_proj", "v_proj"} <= set(smoothed)
    assert f"outliers of {len(smoothed)} are smoothed" in decision(planned).why
    settings = decision(planned).settings["layers"]
    name = "model.layers.0.self_attn.q_proj.base"
    assert settings[name] == products[name].exponents and max(settings[name]) == settings[name][3] >= 3
    plain = made("plain", lambda before, after: 0.0)
    assert not any(isinstance(product, SmoothedProduct) for product in plain.execution.products.values())
    x = torch.randn(40, 16)
    x[:, 3] *= 200
    layer = planned.model.module.get_submodule(name)
    errors = [float((one.execution.products[name].forward(x, None) - layer(x)).norm()) for one in (planned, plain)]
    assert errors[0] < 0.5 * errors[1]
    again: Any = plain.execution
    items = frozen_layers(again, 6)
    lower_frozen.lower(again, items, settings)
    assert torch.equal(again.products[name].forward(x, None), products[name].forward(x, None)), "a run that goes on"


class Eight(RowScaledProduct):
    """Stands for a product that a GPU has: weights and rows as they are."""

    lowered_to = "fp8"

    @staticmethod
    def quantise(rows: Tensor) -> tuple[Tensor, Tensor]:
        return rows.float(), torch.ones(len(rows), 1)

    @staticmethod
    def product(rows: QuantisedRows, weight: QuantisedRows) -> Tensor:
        return rows.steps @ weight.steps.T * 1.001


def test_layers_for_which_a_gpu_has_no_product_are_left_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others say with what numbers they multiply; where a run goes on without them, layers multiply as they are."""
    monkeypatch.setattr(lower_frozen, "lowered_product", lambda weight: Eight(weight) if 32 in weight.shape else None)
    made = tuned(tmp_path)
    products = made.execution.products
    assert len(products) == 6 and all("mlp" in name for name in products) and "6 of 14 frozen linear layers in fp8; " in decision(made).why
    assert made.execution.lowered == dict.fromkeys(sorted(products), "fp8") and made.execution.tolerance == 6e-2
    made.execution.products = {}
    monkeypatch.setattr(lower_frozen, "lowered_product", lambda weight: None)
    lower_frozen.lower(made.execution, frozen_layers(made.execution, 6), decision(made).settings["layers"])
    assert made.execution.products == {}


@pytest.mark.parametrize("after", [2.0, float("nan"), float("inf")])
def test_declined_where_the_loss_changes_with_any(after: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower_frozen, "_mean_loss", lambda execution, loss, batch: after if execution.products else 1.0)
    made = tuned(tmp_path)
    assert not decision(made).on and not made.execution.products and "by more than 1%" in decision(made).why


def test_where_int8_is_not_fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower_frozen, "lowered_product", lambda weight: None)
    made = tuned(tmp_path)
    assert not decision(made).on and "no fast products" in decision(made).why


def bert(data: Dataset, folder: Path, **options: Any) -> Plan:
    return bert_with_lora(data, folder, **{"prepack": "off", "int8": "on", **options})


def test_a_run_that_goes_on_multiplies_as_it_began(texts: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fl.train(bert(texts, tmp_path / "whole"), quiet=True)
    resumed = stopped_and_resumed(bert(texts, tmp_path / "stopped"), 2, monkeypatch)
    for name, value in saved(whole).items():
        torch.testing.assert_close(saved(resumed)[name], value, rtol=0, atol=0, msg=name)


def test_stored_rows_are_found_by_how_they_were_computed(texts: Dataset, tmp_path: Path) -> None:
    runs = {}
    for wish in ("off", "on"):
        made = bert(texts, tmp_path, out=str(tmp_path / wish), adapt="head", cache="on", int8=wish, epochs=1)
        assert decision(made).on == (wish == "on") and made.execution.line is not None
        fl.train(made, quiet=True)
        assert made.execution.prove("train", rows=5)
        runs[wish] = made.execution.stores["train"]
    assert runs["on"].folder != runs["off"].folder


def pictures(data: Dataset, folder: Path, **options: Any) -> Plan:
    """Eight frozen convolutions and a head that learns."""
    data = first_rows(data, 24)
    model = fl.load("vgg11", data=data, size=32, head=["flatten"])
    return plan(model, data, folder, **{"adapt": "head", "batch": 6, "prepack": "off", "int8": "on", "epochs": 1, **options})


def test_convolutions(digits: Dataset, tmp_path: Path) -> None:
    made = pictures(digits, tmp_path)
    assert decision(made).on and "8 of 8 frozen convolutions in int8; " in decision(made).why
    assert {type(product) for product in made.execution.products.values()} == {Int8Convolution}
    source = made.execution.sources["train"]
    ranges = list(decision(made).settings["layers"].values())
    assert all(low == 0.0 < high for low, high in ranges[1:]) and ranges[0][0] < 0 < ranges[0][1], "after ReLU, and images"
    batch = source.encode(np.arange(6), None)
    made.model.module.eval()
    with torch.no_grad():
        lowered = made.execution.forward(batch)
        made.execution.products = {}
        plain = made.execution.forward(batch)
    assert not torch.equal(lowered, plain) and float((lowered - plain).norm() / plain.norm()) < 0.05


@pytest.mark.parametrize("cache", ["on", "off"])
def test_a_run_with_lowered_convolutions_goes_on_as_it_began(
    cache: str, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fl.train(pictures(digits, tmp_path / "whole", cache=cache), quiet=True)
    resumed = stopped_and_resumed(pictures(digits, tmp_path / "stopped", cache=cache), 2, monkeypatch)
    for name, value in saved(whole).items():
        torch.testing.assert_close(saved(resumed)[name], value, rtol=0, atol=0, msg=name)


def test_a_chain_up_to_a_border_within_its_sequential(digits: Dataset, tmp_path: Path) -> None:
    made = pictures(digits, tmp_path, adapt="last 2", cache="on")
    line = made.execution.line
    assert line is not None and line.border[-1].call.name.startswith("features.") and len(made.execution.products) == 6
    assert all(item.dtype.is_floating_point for item in line.border) and len(line.border) == 1
    run = fl.train(made, quiet=True)
    assert made.execution.prove("train", rows=5) and all(np.isfinite(epoch["loss"]) for epoch in run.history)


def test_chains_are_timed_whole(digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(works: Any, budget: float) -> list[float]:
        for work in works:
            work()
        return [2.0, 1.0]

    monkeypatch.setattr(lower_frozen, "best_seconds_each", timed)
    made = pictures(digits, tmp_path, int8="auto", quality="fast", train={"precision": "fp32"})
    assert decision(made).on and len(made.execution.products) == 8
    steps = made.execution.sources["train"].rows / 6
    assert decision(made).saves_seconds == pytest.approx(6 / 4 * 1.0 * steps, rel=0.01)


def test_convolutions_that_a_gradient_passes_are_left_alone(digits: Dataset, tmp_path: Path) -> None:
    made = pictures(digits, tmp_path, adapt={"method": "lora", "rank": 2, "targets": ["features.3"]}, cache="off")
    assert set(made.execution.products) == {"features.0", "features.3.base"}, "nothing that learns stands before them"
    assert all(float(gradient.norm()) > 0 for name, gradient in gradients(made)[1].items() if "lora_B" in name)
    made = pictures(digits, tmp_path, adapt="bitfit", cache="off")
    assert not made.execution.products, "a bias learns in each"


def test_before_a_head_of_zeros_the_layers_own_outputs_decide(digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    nn.init.zeros_(net[5].weight), nn.init.zeros_(net[5].bias)
    data = first_rows(digits, 48)
    options = {"adapt": "head", "int8": "on", "prepack": "off", "cache": "off"}
    made = plan(fl.load(net, data=data, size=8), data, tmp_path, **options)
    assert decision(made).on and made.execution.lowered == {"module.1": "int8", "module.3": "int8"}
    monkeypatch.setattr(lower_frozen, "_OUTPUT_LIMIT", 1e-6)
    refused = decision(plan(fl.load(net, data=data, size=8), data, tmp_path, **options))
    assert not refused.on and "what each layer gives" in refused.why


def test_before_a_new_head_what_reaches_it_must_be_near(digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loss tells nothing yet: far less than a hundredth of it depends on what comes in."""
    spoil(monkeypatch, 1.5)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    nn.init.normal_(net[5].weight, std=1e-4), nn.init.zeros_(net[5].bias)
    net[1].weight.spoiled = True
    data = first_rows(digits, 48)
    planned = plan(fl.load(net, data=data, size=8), data, tmp_path, adapt="head", int8="on", prepack="off", cache="off")
    assert planned.model.head and planned.execution.lowered == {"module.3": "int8"}
    why = decision(planned).why
    assert "1 of 2 frozen linear layers in int8" in why and "what reaches the new head" in why
    monkeypatch.setattr(lower_frozen, "_off", lambda before, after: 0.0)
    by_loss_alone = plan(fl.load(net, data=data, size=8), data, tmp_path, adapt="head", int8="on", prepack="off", cache="off")
    assert set(by_loss_alone.execution.lowered) == {"module.1", "module.3"}, "which is why the loss alone does not do"
