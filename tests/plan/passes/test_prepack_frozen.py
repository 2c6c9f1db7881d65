"""Packed frozen weights: the same step, decided by time, and the same run when it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.data.dataset import Dataset
from frostline.kernels.packed_product import PackedProduct
from frostline.plan import frozen_layers as layers_of
from frostline.plan.decision import Decision
from frostline.plan.frozen_layers import FrozenLayer
from frostline.plan.passes import prepack_frozen
from frostline.plan.plan import Plan
from tests.plan.small import bert_with_lora, gradients, llama_with_lora
from tests.train.small import first_rows, plan, saved, stopped_and_resumed


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers_of, "_SMALLEST", 1)


def decision(made: Plan) -> Decision | None:
    return next((one for one in made.decisions if one.what == "prepack_frozen"), None)


@pytest.mark.parametrize("pack", ["on", "off"])
@pytest.mark.parametrize("kind", ["chat", "classes"])
def test_a_step_is_the_same_on_as_off(kind: str, pack: str, texts: Dataset, tmp_path: Path) -> None:
    found = []
    for wish in ("on", "off"):
        if kind == "chat":
            made = llama_with_lora(tmp_path / wish, prepack=wish, pack=pack)
        else:
            made = bert_with_lora(texts, tmp_path / wish, prepack=wish, pack=pack)
        assert decision(made).on == (wish == "on") and decision(made).exact  # type: ignore[union-attr]
        assert len(made.execution.products) > 10 or wish == "off"
        found.append(gradients(made))
    (loss, ours), (expected, theirs) = found
    assert loss == pytest.approx(expected, rel=1e-5) and set(ours) == set(theirs) and len(ours) > 10
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()), msg=name)


def test_a_run_that_goes_on_on_a_gpu_packs_nothing(tmp_path: Path) -> None:
    """Its decisions come from a processor, and the forms are the processor's."""
    layer = nn.Linear(4, 3, device="meta").requires_grad_(False)
    item = FrozenLayer(name="there", layer=layer, rows=5, row=(4,), passes_gradient=True, low=-1.0, high=1.0)
    execution = llama_with_lora(tmp_path, prepack="off").execution
    prepack_frozen.pack(execution, [item], {item.shape: 5})
    assert execution.products == {}


def test_the_decision_says_what_it_gains_and_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"16x32": 3.0, "16x32 forward": 3.0}
    monkeypatch.setattr(prepack_frozen, "seconds_now_and_with", lambda item, execution, product: (seconds.get(item.shape, 1.0), 1.0))
    made = llama_with_lora(tmp_path, epochs=2)
    layers = [name for name in made.execution.products if "gate" in name or "up" in name]
    assert sorted(made.execution.products) == sorted(layers) and len(layers) == 4, "only the shapes that are faster"
    steps = 2 * made.execution.sources["train"].rows / 6
    one = decision(made)
    assert one is not None and one.on and one.saves_seconds == pytest.approx(steps * 4 * 2.0)
    assert one.why == "4 of 15 frozen linear layers; together they take 65% of their time"
    assert list(one.settings) == ["16x32"] and one.costs == "0 MB of memory"


@pytest.mark.parametrize("cache", ["on", "off"])
def test_what_a_stored_prefix_spares_is_not_gained_twice(
    cache: str, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepack_frozen, "seconds_now_and_with", lambda item, execution, product: (3.0, 1.0))
    data = first_rows(digits, 48)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    made = plan(fl.load(net, data=data, size=8), data, tmp_path, adapt="head", prepack="auto", cache=cache, epochs=8)
    train, validation = (made.execution.sources[name].rows for name in ("train", "validation"))
    rows = train + validation if cache == "on" else 8 * train
    one = decision(made)
    assert one is not None and one.saves_seconds == pytest.approx(rows / made.recipe.train.batch * 2 * 2.0)


def test_off_where_nothing_is_faster_and_where_the_recipe_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepack_frozen, "seconds_now_and_with", lambda item, execution, product: (1.0, 0.99))
    made = llama_with_lora(tmp_path / "slow")
    assert not decision(made).on and "faster" in decision(made).why and not made.execution.products  # type: ignore[union-attr]
    monkeypatch.setattr(prepack_frozen, "seconds_now_and_with", lambda *_: pytest.fail("timed"))
    made = llama_with_lora(tmp_path / "off", prepack="off")
    assert decision(made).why == "switched off in the recipe" and not made.execution.products  # type: ignore[union-attr]
    assert decision(llama_with_lora(tmp_path / "full", adapt="full")) is None, "nothing is frozen"


def test_a_run_that_goes_on_multiplies_as_it_began(texts: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fl.train(bert_with_lora(texts, tmp_path / "whole", prepack="on"), quiet=True)
    made = bert_with_lora(texts, tmp_path / "stopped", prepack="on")
    resumed = stopped_and_resumed(made, 2, monkeypatch)
    written = json.loads((tmp_path / "stopped" / "run" / "plan.json").read_text())
    assert next(one for one in written["decisions"] if one["what"] == "prepack_frozen")["settings"]
    for name, value in saved(whole).items():
        torch.testing.assert_close(saved(resumed)[name], value, rtol=0, atol=0, msg=name)


def test_the_saved_model_is_the_plain_one(texts: Dataset, tmp_path: Path) -> None:
    made = bert_with_lora(texts, tmp_path, prepack="on")
    assert all(isinstance(product, PackedProduct) for product in made.execution.products.values())
    run = fl.train(made, quiet=True)
    assert set(saved(run)) == set(made.model.module.state_dict())
    assert all("forward" not in vars(part) for part in made.model.module.modules())
