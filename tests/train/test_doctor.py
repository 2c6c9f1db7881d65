"""Law 10, during a run: what makes it useless is named, with something to type."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import frostline as fl
from frostline import api
from frostline.errors import TrainingStopped
from frostline.train import loop
from frostline.train.doctor import WATCHED_STEPS, GradientWatch, stop_without_labels
from tests.train.small import cnn, first_rows, plan, stopping


def cause(made) -> str:
    with pytest.raises(TrainingStopped) as error:
        fl.train(made, quiet=True)
    assert error.value.exit_code == 3
    return str(error.value)


@pytest.fixture
def data(digits):
    return first_rows(digits, 48)


def test_inputs(data, tmp_path):
    model = cnn(data)
    model.card.preprocess = dataclasses.replace(model.card.preprocess, mean=(float("nan"),))
    text = cause(plan(model, data, tmp_path / "run", adapt="full"))
    assert text.startswith("step 1: the loss is nan, expected a finite number; the input 'pixel_values' holds values that are not finite")
    assert text.endswith("No checkpoint was written yet.")


@pytest.mark.parametrize(("adapt", "position"), [("full", 0), ("head", 0), ("head", -1)])
def test_weights_from_the_start(data, tmp_path, adapt, position):
    model = cnn(data)
    name = list(dict(model.module.named_parameters()))[position]
    with torch.no_grad():
        model.module.get_parameter(name).view(-1)[0] = float("nan")
    text = cause(plan(model, data, tmp_path / "run", adapt=adapt))
    assert f"the weight {name!r} was not finite before training: the weight file is damaged" in text


def test_a_rate_that_is_too_high(data, tmp_path):
    text = cause(plan(cnn(data), data, tmp_path / "run", optimizer="sgd", lr=1e30, batch=8, checkpoint_every=1))
    assert "Try train.lr=1e+29" in text and "train.clip=1" in text and "The last good checkpoint is" in text


def test_the_rate_to_try_is_the_recipes_not_the_warm_ups(data, tmp_path):
    text = cause(plan(cnn(data), data, tmp_path / "run", optimizer="sgd", lr=1e30, batch=4, warmup=100, epochs=20))
    assert "Try train.lr=1e+29" in text


class Overflows(nn.Module):
    """Finite weights, finite inputs, and a module in the middle that is the first to overflow."""

    def __init__(self):
        super().__init__()
        self.fine, self.squares, self.head = nn.Linear(192, 8), Squares(), nn.Linear(8, 10)

    def forward(self, pixel_values):
        return self.head(self.squares(self.fine(pixel_values.flatten(1))))


class Squares(nn.Module):
    def forward(self, x):
        return (x.abs() + 1e30) ** 2


@pytest.mark.parametrize(("adapt", "cache"), [("full", "off"), ("head", "on")])
def test_the_first_module_that_overflows(data, tmp_path, adapt, cache):
    model = fl.load(Overflows(), task=data.task, size=8)
    text = cause(plan(model, data, tmp_path / "run", adapt=adapt, cache=cache))
    assert "'squares' is the first module whose output is not finite" in text and "train.precision=fp32" in text


def test_a_stored_output_that_is_not_finite_leads_to_the_input(data, tmp_path):
    model = cnn(data)
    made = plan(model, data, tmp_path / "run", adapt="head", cache="on", batch=8)
    encode = made.execution.sources["train"].encode

    def broken(rows, epoch):
        batch = encode(rows, epoch)
        batch.inputs["pixel_values"][batch.rows == 17] = float("inf")
        return batch

    made.execution.sources["train"].encode = broken
    assert "the input 'pixel_values' holds values that are not finite" in cause(made)


def test_after_a_resume_the_checkpoint_is_named(data, tmp_path, monkeypatch):
    made = plan(cnn(data), data, tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(fl.FrostlineError):
        patch.setattr(loop, "stop_on_interrupt", stopping(2))
        fl.train(made, quiet=True)
    monkeypatch.setattr(type(made), "loss", lambda self, logits, labels: (logits.sum() * float("nan"), torch.tensor(1.0)))
    with pytest.raises(TrainingStopped, match=r"step 3: .*every module's output is finite, so the loss itself.*step-00000002$"):
        api.resume(tmp_path / "run", quiet=True)


def test_no_label_in_a_step(data, tmp_path, monkeypatch):
    assert str(stop_without_labels(3)).startswith("step 3: got 0 labels")
    made = plan(cnn(data), data, tmp_path / "run")
    monkeypatch.setattr(type(made), "loss", lambda self, logits, labels: (logits.sum() * 0, torch.tensor(0.0)))
    assert cause(made).startswith("step 1: got 0 labels in the rows of one optimiser step, expected at least one.")


class TestGradientWatch:
    """Parameters without a gradient in the first steps are named once."""

    def steps(self, gradients):
        module = nn.Linear(2, 2)
        watch, verdicts = GradientWatch(module), []
        for bias in gradients:
            module.weight.grad, module.bias.grad = torch.ones(2, 2), None if bias is None else torch.full((2,), bias)
            watch.look()
            verdicts.append(watch.verdict())
        return verdicts

    def test_silent(self):
        for silent in (None, 0.0):
            *before, verdict, after = self.steps([silent] * (WATCHED_STEPS + 1))
            assert before == [None] * (WATCHED_STEPS - 1) and after is None
            assert "1 learning parameters got no gradient in the first 3 steps, the first is 'bias'" in verdict

    def test_one_gradient_is_enough(self):
        assert self.steps([0.0, None, 1e-9, 0.0, 0.0]) == [None] * 5

    def test_loras_a_is_not_named(self, data, tmp_path):
        said = []
        run = api.train(plan(cnn(data), data, tmp_path / "run", adapt="lora", batch=8), say=said.append)
        assert len(run.history) == 2 and not [text for text in said if "no gradient" in text]


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(digits, tmp_path):
    """The loss is finite, its gradient is not: the weights and the last checkpoint stay as they were."""

    class Exploding(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient * (float("inf") if Exploding.now else 1.0)

    Exploding.now = False

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(192, 8), nn.Linear(8, 10)
            self.steps = 0

        def forward(self, pixel_values):
            self.steps += self.training and torch.is_grad_enabled()
            return Exploding.apply(self.head(self.body(pixel_values.flatten(1))))

    network = Network()
    model = fl.load(network, task=digits.task, size=8)
    made = fl.plan(model, digits, adapt="full", clip=1.0, checkpoint_every=1, out=str(tmp_path / "run"))
    step = loop._take_step

    def counted(state, *rest):
        Exploding.now = state.counters.step == 2
        return step(state, *rest)

    told = r"step 3: the norm of the gradient is (inf|nan).*step-00000002"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainingStopped, match=told):
        patch.setattr(loop, "_take_step", counted)
        fl.train(made, quiet=True)
    assert all(p.isfinite().all() for p in network.parameters())
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-00000002"]
