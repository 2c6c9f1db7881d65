"""The loop's laws: sum and count, stateless randomness, frozen is frozen, and a stopped run that goes on bit for bit."""

import json

import pytest
import torch
from torch import nn

import frostline as fl
from frostline import api
from frostline.adapt.freeze import frozen_hash
from frostline.errors import TrainingStopped
from frostline.train import loop
from frostline.train.checkpoint import learning_tensors
from frostline.train.interrupt import Interrupted
from tests.train.small import first_rows, saved, stopping


def small_cnn(data, **options):
    return fl.load("cnn", data=data, width=32, depth=1, **options)


class TestSumAndCount:
    """Law 1."""

    @pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"loss": "focal"}, {"class_weights": "balanced"}])
    def test_accumulation_equals_one_large_batch(self, digits, tmp_path, options):
        results = []
        for batch, accumulate in [(8, 1), (4, 2), (1, 8)]:
            module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.Tanh(), nn.Linear(16, 10)).double()
            torch.manual_seed(0)
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.1)
            model = fl.load(_Pixels(module), task=digits.task, size=8)
            small = first_rows(digits, 29)  # 29 rows: the last window is ragged
            plan = fl.plan(model, small, adapt="full", epochs=1, batch=batch, accumulate=accumulate, optimizer="sgd", momentum=0, lr=0.1,
                           out=str(tmp_path / f"{batch}"), **options)  # fmt: skip
            fl.train(plan, quiet=True)
            results.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
        assert results[0].dtype == torch.float64
        for other in results[1:]:
            torch.testing.assert_close(other, results[0], rtol=0, atol=1e-10)


class _Pixels(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, pixel_values):
        return self.inner(pixel_values.to(next(self.inner.parameters()).dtype))


def plan_small(data, folder, *, workers=0, **options):
    data.recipe["workers"] = workers
    model = small_cnn(data, dropout=0.3)
    return fl.plan(model, data, epochs=2, batch=24, lr=1e-3, channels_last="off", fuse_convolutions="off", out=str(folder), **options)


class TestStatelessRandomness:
    """Law 2: stopped at any step, with any number of workers, the weights come out bit for bit."""

    @pytest.mark.parametrize("workers", [0, 4])
    def test_stopped_at_each_step_and_resumed(self, digits, tmp_path, monkeypatch, workers):
        digits.recipe["augment"] = {"rotation": 10.0, "width_shift": 0.1}
        small = first_rows(digits, 226)
        whole = saved(fl.train(plan_small(small, tmp_path / "whole"), quiet=True))
        steps = 2 * -(-226 // 24)
        assert steps == 20
        for stop_at in range(1, steps + 1, 1 if workers else 3):
            folder = tmp_path / f"stopped-{stop_at}"
            with monkeypatch.context() as patch:
                patch.setattr(loop, "stop_on_interrupt", stopping(stop_at))
                with pytest.raises(Interrupted, match="--resume"):
                    fl.train(plan_small(small, folder, workers=workers), quiet=True)
            resumed = saved(api.resume(folder, quiet=True))
            assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items()), stop_at
            history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            assert [r["step"] for r in history if "epoch" not in r] == list(range(1, steps + 1))


class TestFrozenIsFrozen:
    """Law 3, through the whole loop."""

    @pytest.mark.parametrize("method", ["head", "last 1", "lora", "gradual"])
    def test_nothing_frozen_changes_by_a_bit(self, digits, tmp_path, method):
        model = small_cnn(digits)
        plan = fl.plan(model, digits, adapt=method, epochs=1, batch=64, optimizer="adamw", weight_decay=0.1, out=str(tmp_path / "run"))
        before = frozen_hash(model.module)
        learning = {name: tensor.clone() for name, tensor in learning_tensors(model.module).items()}
        fl.train(plan, quiet=True)
        assert frozen_hash(model.module) == before
        assert any(not torch.equal(tensor, learning[name]) for name, tensor in learning_tensors(model.module).items())

    def test_a_module_that_writes_to_its_frozen_weights_stops_the_run(self, digits, tmp_path):
        class Creeping(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.head = nn.Linear(192, 8), nn.Linear(8, 10)

            def forward(self, pixel_values):
                if self.training:
                    self.body.weight.data.add_(1e-3)
                return self.head(self.body(pixel_values.flatten(1)))

        model = fl.load(Creeping(), task=digits.task, size=8)
        plan = fl.plan(model, digits, adapt="head", cache="off", epochs=1, out=str(tmp_path / "run"))
        with pytest.raises(TrainingStopped, match="frozen tensor changed"):
            fl.train(plan, quiet=True)


class TestTheDoctor:
    """Law 10, during a run."""

    def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(self, digits, tmp_path):
        plan = fl.plan(
            small_cnn(digits), digits, epochs=3, batch=64, optimizer="sgd", lr=1e30, checkpoint_every=1, out=str(tmp_path / "run")
        )
        with pytest.raises(
            TrainingStopped, match=r"step \d+: the loss is .*(learning rate|first module).*last good checkpoint is .*step-"
        ) as error:
            fl.train(plan, quiet=True)
        assert error.value.exit_code == 3
        assert list((tmp_path / "run" / "checkpoints").glob("step-*"))

    def test_a_parameter_without_gradient_is_named(self, digits, tmp_path):
        class Forgotten(nn.Module):
            def __init__(self):
                super().__init__()
                self.used, self.forgotten, self.head = nn.Linear(192, 8), nn.Linear(8, 8), nn.Linear(8, 10)

            def forward(self, pixel_values):
                return self.head(self.used(pixel_values.flatten(1)))

        said = []
        plan = fl.plan(fl.load(Forgotten(), task=digits.task, size=8), digits, adapt="full", epochs=1, batch=16, out=str(tmp_path / "run"))
        api.train(plan, say=said.append)
        assert any("'forgotten.weight'" in text and "no gradient" in text for text in said)


def test_the_cached_run_equals_the_plain_one(digits, tmp_path):
    runs = {}
    for cache in ("on", "off"):
        plan = fl.plan(small_cnn(digits, dropout=0.5), digits, adapt="head", cache=cache, epochs=3, batch=32, optimizer="adam", lr=1e-2,
                       out=str(tmp_path / cache))  # fmt: skip
        assert plan.decision("cache_prefix") == (cache == "on")
        runs[cache] = fl.train(plan, quiet=True)
    losses = {cache: [record["loss"] for record in run.records()] for cache, run in runs.items()}
    assert losses["on"] == pytest.approx(losses["off"], rel=1e-5)
    on, off = (saved(runs[cache]) for cache in ("on", "off"))
    for name, tensor in on.items():
        torch.testing.assert_close(tensor, off[name], rtol=1e-4, atol=1e-6)


def test_a_damaged_store_is_dropped_within_an_epoch_and_the_run_is_as_if_plain(digits, tmp_path, monkeypatch):
    model = small_cnn(digits)
    plan = fl.plan(model, digits, adapt="head", cache="on", epochs=2, batch=32, lr=1e-2, out=str(tmp_path / "damaged"))
    said = []
    fill = loop.fill_stores

    def fill_and_damage(recipe, execution, quiet, between):
        fill(recipe, execution, quiet, between)
        execution.stores["train"].arrays[0][17].view(-1)[0] += 1.0

    monkeypatch.setattr(loop, "fill_stores", fill_and_damage)
    run = api.train(plan, say=said.append)
    assert any("row 17" in text and "deleted" in text for text in said)
    plain = fl.train(
        fl.plan(small_cnn(digits), digits, adapt="head", cache="off", epochs=2, batch=32, lr=1e-2, out=str(tmp_path / "plain")), quiet=True
    )
    assert [r["loss"] for r in run.records()] == pytest.approx([r["loss"] for r in plain.records()], rel=1e-5)


def test_predicted_stands_beside_actual(digits, tmp_path):
    run = fl.train(fl.plan(small_cnn(digits), digits, epochs=1, out=str(tmp_path / "run")), quiet=True)
    for side in ("predicted", "actual"):
        assert run.cost[side]["seconds"] > 0 and run.cost[side]["peak_bytes"] > 1e6 and run.cost[side]["disk_bytes"] > 1e3
