"""Frozen convolutions as one operation with what follows them: the same outputs, steps and runs, where it is timed faster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.data.dataset import Dataset
from frostline.kernels.int8_convolution import Int8Convolution
from frostline.kernels.int8_product import can_lower
from frostline.kernels.packed_convolution import PackedConvolution
from frostline.kernels.packed_product import can_pack
from frostline.plan.decision import Decision
from frostline.plan.passes import fuse_convolutions, lower_frozen
from frostline.plan.plan import Plan
from tests.plan.small import gradients
from tests.train.small import first_rows, plan, saved, stopped_and_resumed

pytestmark = pytest.mark.skipif(not can_pack(torch.zeros(1), torch.float32), reason="no oneDNN here")


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower_frozen, "_SMALLEST_KERNEL", 1)


class Network(nn.Module):
    """A convolution with norm and activation, a residual one, and one that learns behind them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.norm, self.act = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()
        self.deep, self.other = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.last, self.head = nn.Conv2d(8, 4, 3), nn.Linear(4 * 36, 10)
        with torch.no_grad():
            for norm in (self.norm, self.other):
                norm.running_mean.uniform_(-0.5, 0.5), norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm(self.stem(pixel_values)))
        x = self.act(self.other(self.deep(x)) + x)
        return self.head(self.last(x).flatten(1))


def planned(data: Dataset, folder: Path, network: nn.Module | None = None, **options: Any) -> Plan:
    model = fl.load(network or Network(), data=data, size=8)
    return plan(model, data, folder, **{"adapt": "head", "batch": 6, "cache": "off", "epochs": 1, "fuse_convolutions": "auto", **options})


def decision(made: Plan) -> Decision:
    return next(one for one in made.decisions if one.what == "fuse_convolutions")


def test_a_step_is_the_same_on_as_off(digits: Dataset, tmp_path: Path) -> None:
    data = first_rows(digits, 24)
    fused, plain = (planned(data, tmp_path / wish, fuse_convolutions=wish) for wish in ("on", "off"))
    assert decision(fused).on and decision(fused).exact and not decision(plain).on and not plain.execution.products
    assert decision(fused).why.startswith("3 frozen convolutions with 2 batch norms and 1 activations behind them; a forward pass of")
    assert all(isinstance(product, PackedConvolution) for product in fused.execution.products.values())
    (loss, ours), (expected, theirs) = gradients(fused), gradients(plain)
    assert loss == pytest.approx(expected, rel=1e-5) and set(ours) == set(theirs) and len(ours) >= 2
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()), msg=name)


@pytest.mark.parametrize(("now", "then", "on"), [(1.0, 0.5, True), (1.0, 0.99, False), (0.001, 0.0005, False)])
def test_auto_takes_what_is_timed_faster(
    now: float, then: float, on: bool, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuse_convolutions, "best_seconds_each", lambda works, budget: [now, then])
    made = planned(first_rows(digits, 24), tmp_path)
    one = decision(made)
    assert one.on == on == bool(made.execution.products) and f"takes {then * 1e3:.1f} ms so, {now * 1e3:.1f} ms plainly" in one.why
    assert (one.saves_seconds > 0) == on


def test_one_alone_is_not_worth_a_trial(digits: Dataset, tmp_path: Path) -> None:
    """As in a vision transformer, which would be run as a whole for it."""
    data, network = first_rows(digits, 24), nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Flatten(), nn.Linear(16, 10))
    made = [planned(data, tmp_path / wish, fuse_convolutions=wish, network=network) for wish in ("on", "auto")]
    assert decision(made[0]).on and len(made[0].execution.products) == 1
    assert not any(one.what == "fuse_convolutions" for one in made[1].decisions) and not made[1].execution.products


def test_not_where_all_learns_or_a_gradient_passes(digits: Dataset, tmp_path: Path) -> None:
    made = planned(first_rows(digits, 24), tmp_path, adapt="full")
    assert not any(one.what == "fuse_convolutions" for one in made.decisions)
    lora = {"method": "lora", "rank": 2, "targets": ["stem"]}
    made = planned(first_rows(digits, 24), tmp_path / "lora", adapt=lora, fuse_convolutions="on")
    assert list(made.execution.products) == ["stem.base"], "which nothing that learns stands before"


def test_a_run_that_goes_on_computes_as_it_began(digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = first_rows(digits, 24)

    def made(name: str) -> Plan:
        model = fl.load("efficientnet-lite0", data=data, size=32)
        options = {"adapt": "head", "batch": 6, "cache": "off", "epochs": 1, "fuse_convolutions": "on"}
        return plan(model, data, tmp_path / name, out=str(tmp_path / name), **options)

    whole = made("whole")
    assert decision(whole).why.startswith("49 frozen convolutions with 49 batch norms and 33 activations behind them")
    run, resumed = fl.train(whole, quiet=True), stopped_and_resumed(made("stopped"), 2, monkeypatch)
    for name, value in saved(run).items():
        torch.testing.assert_close(saved(resumed)[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.skipif(not can_lower(torch.zeros(1)), reason="no fast products of int8 here")
def test_int8_takes_norms_and_activations_along(digits: Dataset, tmp_path: Path) -> None:
    data = first_rows(digits, 24)
    lowered, plain = (
        planned(data, tmp_path / "on", int8="on", fuse_convolutions="on"),
        planned(data, tmp_path / "off", fuse_convolutions="off"),
    )
    products = lowered.execution.products
    assert all(isinstance(one, Int8Convolution) for one in products.values())
    assert [len(products[name].unit.members) for name in ("stem", "deep", "last")] == [3, 2, 1]  # type: ignore[attr-defined]
    (loss, ours), (expected, theirs) = gradients(lowered), gradients(plain)
    assert loss == pytest.approx(expected, rel=0.01) and loss != expected
    for name, gradient in theirs.items():
        assert float((ours[name] - gradient).norm()) <= 0.1 * float(gradient.norm()), name


def test_what_is_stored_is_what_the_network_gives(digits: Dataset, tmp_path: Path) -> None:
    data = first_rows(digits, 24)
    lines = {}
    for wish in ("on", "off"):
        model = fl.load("efficientnet-lite0", data=data, size=32)
        made = plan(model, data, tmp_path / wish, adapt="last 2", batch=6, cache="on", epochs=1, fuse_convolutions=wish)
        execution = made.execution
        assert execution.line is not None and bool(execution.products) == (wish == "on")
        lines[wish] = execution.line.names
        batch = execution.sources["train"].encode(range(4), None)
        ours = execution.prefix(batch)
        execution.products = {}
        for tensor, expected in zip(ours, execution.prefix(batch), strict=True):
            torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert lines["on"] == lines["off"]
