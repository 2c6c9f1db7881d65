"""The layout: obeyed, chosen by time, and the same logits in both."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import RecipeError
from frostline.plan.passes import channels_last
from tests.train.small import cnn, first_rows, plan


def inner(module):
    weights = [p for p in module.parameters() if p.dim() == 4 and p.shape[1] > 1]
    return [weight.is_contiguous(memory_format=torch.channels_last) for weight in weights]


def decision(made):
    return next((d for d in made.decisions if d.what == "channels_last"), None)


@pytest.mark.parametrize("wish", ["on", "off"])
def test_obeyed(digits, tmp_path, wish):
    made = plan(cnn(digits), digits, tmp_path / "run", channels_last=wish)
    assert made.execution.channels_last == (wish == "on") and set(inner(made.model.module)) == {wish == "on"}
    assert decision(made).why == f"switched {wish} in the recipe" and decision(made).exact


@pytest.mark.parametrize(("plain", "turned", "on"), [(0.010, 0.005, True), (0.010, 0.0096, False), (0.010, 0.020, False)])
def test_chosen_where_it_is_at_least_a_twentieth_faster(digits, tmp_path, monkeypatch, plain, turned, on):
    times = iter([0.001, plain, turned])  # the first one decides how many rows the others take

    def timed(work, budget, most=1000):
        work()
        return next(times)

    monkeypatch.setattr(channels_last, "best_seconds", timed)
    made = plan(cnn(digits), digits, tmp_path / "run", channels_last="auto")
    assert decision(made).on == made.execution.channels_last == on and set(inner(made.model.module)) == {on}
    assert f"{turned * 1e3:.1f} ms with channels innermost, 10.0 ms as usual" in decision(made).why


@pytest.mark.parametrize(("adapt", "timed"), [("full", "a step of"), ("head", "a forward pass of")])
def test_where_convolutions_learn_their_gradients_are_timed_too(digits, tmp_path, adapt, timed):
    made = plan(cnn(digits), digits, tmp_path / "run", channels_last="auto", adapt=adapt)
    assert decision(made).why.startswith(timed)
    assert all(parameter.grad is None for parameter in made.model.module.parameters())


def test_not_proposed_where_nothing_convolves(digits, texts, tmp_path):
    assert decision(plan(fl.load("mlp", data=digits), digits, tmp_path / "run", channels_last="on")) is None
    assert decision(plan(fl.load("cnn", data=texts, width=8), first_rows(texts, 20), tmp_path / "run")) is None


def test_same_numbers_in_both_and_modes_kept(digits, tmp_path):
    logits = []
    for wish in ("on", "off"):
        made = plan(cnn(digits, depth=2, width=64), digits, tmp_path / "run", channels_last=wish, adapt="last 1")
        batch = made.execution.sources["train"].encode(np.arange(5), None)
        modes = [part.training for part in made.model.module.modules()]
        channels_last.lay_out(made.execution, wish == "on")
        assert [part.training for part in made.model.module.modules()] == modes
        made.model.module.eval()
        with torch.no_grad():
            logits.append(made.execution.forward(batch))
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-5)


def test_a_run_in_this_layout_learns_the_same(digits, tmp_path):
    data = first_rows(digits, 48)
    losses = [
        [r["loss"] for r in fl.train(plan(cnn(data), data, tmp_path / wish, channels_last=wish, optimizer="sgd"), quiet=True).records()]
        for wish in ("on", "off")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


class _Viewing(nn.Module):
    """Flattens by view, which wants the usual layout."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.places = nn.Parameter(torch.zeros(1, 1, 2, 2, 2))
        self.head = nn.Linear(256, 10)

    def forward(self, x):
        return self.head(self.body(x).view(len(x), -1))


def test_a_network_that_wants_the_usual_layout_keeps_it(digits, tmp_path):
    data = first_rows(digits, 24)
    module = _Viewing()
    made = plan(fl.load(module, data=data, size=8), data, tmp_path / "run", channels_last="auto", epochs=1)
    assert not decision(made).on and "view" in decision(made).why and set(inner(module)) == {False}
    fl.train(made, quiet=True)
    with pytest.raises(RecipeError, match=r"channels_last got 'on'.*view.*channels_last=auto"):
        plan(fl.load(_Viewing(), data=data, size=8), data, tmp_path / "other", channels_last="on")
