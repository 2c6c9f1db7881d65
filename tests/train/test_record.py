"""The books of a run: which epoch is the best, what is saved in the end, when to stop, what was predicted and what was taken."""

from __future__ import annotations

import json
import math

import pytest
import torch

import frostline as fl
from frostline import api
from frostline.train import loop, record
from frostline.train.checkpoint import checkpoints, load_checkpoint
from frostline.train.interrupt import Interrupted
from frostline.train.record import Recorder
from tests.train.small import cnn, first_rows, plan, saved, stopping


@pytest.fixture
def data(digits):
    return first_rows(digits, 48)


@pytest.fixture
def results(monkeypatch):
    """What validation will find, epoch by epoch: ``results(accuracy=[…], loss=[…])``."""

    def script(accuracy, loss=None):
        values = list(zip(accuracy, loss or accuracy, strict=True))
        queue = iter(values)

        def validate(plan):
            found, lost = next(queue)
            return {"val_loss": lost, "val_accuracy": found, "val_f1_macro": found}

        monkeypatch.setattr(loop, "validate", validate)

    return script


def weights_at(run, step):
    return load_checkpoint(run.folder / "checkpoints" / f"step-{step:08d}")[1]["learning"]


def test_the_best_epoch_is_what_is_saved(data, tmp_path, results):
    results([0.1, 0.5, 0.4, 0.5])
    run = fl.train(plan(cnn(data), data, tmp_path / "run", epochs=4), quiet=True)
    assert [record.get("best", False) for record in run.history] == [True, True, False, False]  # an equal result is not better
    assert [path.name for path in checkpoints(run.folder / "checkpoints")] == ["step-00000004", "step-00000008"]
    found, best, last = saved(run), weights_at(run, 4), weights_at(run, 8)
    assert all(torch.equal(found[name], tensor) for name, tensor in best.items())
    assert any(not torch.equal(found[name], tensor) for name, tensor in last.items())


def test_the_last_epoch_as_the_best_is_not_read_again(data, tmp_path, results, monkeypatch):
    results([0.1, 0.2])
    monkeypatch.setattr(record, "load_checkpoint", lambda path: pytest.fail(f"{path} was read"))
    run = fl.train(plan(cnn(data), data, tmp_path / "run", epochs=2), quiet=True)
    assert all(torch.equal(saved(run)[name], tensor) for name, tensor in weights_at(run, 4).items())


def test_best_by_loss_takes_the_smallest(data, tmp_path, results):
    results([0.1, 0.2, 0.3], loss=[2.0, 1.0, 1.5])
    run = fl.train(plan(cnn(data), data, tmp_path / "run", epochs=3, best_by="loss"), quiet=True)
    assert [record.get("best", False) for record in run.history] == [True, True, False]
    assert all(torch.equal(saved(run)[name], tensor) for name, tensor in weights_at(run, 4).items())


def test_a_number_goes_by_loss(data, tmp_path):
    from tests.train.test_validate import as_numbers

    numbers = as_numbers(data)
    run = fl.train(plan(cnn(numbers), numbers, tmp_path / "run", epochs=3), quiet=True)
    losses = [record["val_loss"] for record in run.history]
    best = [record["val_loss"] for record in run.history if record.get("best")]
    assert best[-1] == min(losses)


def test_with_ema_the_averages_are_saved(data, tmp_path):
    run = fl.train(plan(cnn(data), data, tmp_path / "run", ema=0.5, epochs=3), quiet=True)
    step = [record["step"] for record in run.history if record.get("best")][-1]
    _, tensors, _ = load_checkpoint(run.folder / "checkpoints" / f"step-{step:08d}")
    found = saved(run)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors["ema"].items())
    assert any(not torch.equal(tensors["learning"][name], tensor) for name, tensor in tensors["ema"].items())


class TestGradual:
    """The best epoch may have had fewer blocks thawed than the last."""

    def test_what_thawed_later_is_as_it_was(self, data, tmp_path, results):
        results([0.9, 0.5, 0.4, 0.3])
        base = {name: tensor.clone() for name, tensor in cnn(data, depth=2).module.state_dict().items()}
        run = fl.train(plan(cnn(data, depth=2), data, tmp_path / "run", adapt="gradual", epochs=4), quiet=True)
        found, last = saved(run), weights_at(run, 8)
        body = [name for name in base if not name.startswith("head")]
        assert all(torch.equal(found[name], base[name]) for name in body)
        assert any(not torch.equal(last[name], base[name]) for name in body)
        assert any(not torch.equal(found[name], base[name]) for name in base if name not in body)


class TestEarlyStopping:
    """It stops, says so, and stays stopped."""

    def test_after_so_many_epochs_without_a_better_one(self, data, tmp_path, results):
        results([0.1, 0.5, 0.5, 0.4, 0.9])
        said = []
        run = api.train(plan(cnn(data), data, tmp_path / "run", epochs=10, early_stopping=2), say=said.append)
        assert len(run.history) == 4 and said[-1] == "Stopped early: 2 epochs without a better accuracy."
        assert all(torch.equal(saved(run)[name], tensor) for name, tensor in weights_at(run, 4).items())

    def test_not_where_it_gets_better_in_time(self, data, tmp_path, results):
        results([0.1, 0.1, 0.2, 0.2, 0.3])
        said = []
        run = api.train(plan(cnn(data), data, tmp_path / "run", epochs=5, early_stopping=2), say=said.append)
        assert len(run.history) == 5 and not [text for text in said if "Stopped early" in text]

    def test_really_with_a_rate_that_only_harms(self, digits, tmp_path):
        model = fl.load("mlp", data=digits, width=32, depth=1)
        fl.train(plan(model, digits, tmp_path / "good", epochs=4, optimizer="adam"), quiet=True)
        model = fl.load(tmp_path / "good")
        options = {"adapt": "full", "epochs": 20, "optimizer": "sgd", "lr": 3.0, "early_stopping": 2}
        run = fl.train(plan(model, digits, tmp_path / "worse", **options), quiet=True)
        assert len(run.history) < 20
        accuracies = [record["val_accuracy"] for record in run.history]
        assert fl.evaluate(run, "validation").metrics["accuracy"] == pytest.approx(max(accuracies))

    def test_a_run_killed_after_it_stopped_early_does_not_go_on(self, data, tmp_path, results, monkeypatch):
        results([0.5, 0.4, 0.3, 0.9, 0.9, 0.9])
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Recorder, "finish", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
            fl.train(plan(cnn(data), data, tmp_path / "run", epochs=6, early_stopping=2), quiet=True)
        assert len(api.resume(tmp_path / "run", quiet=True).history) == 3


def test_plateau_lowers_the_rate(data, tmp_path, results):
    results([0.5, 0.4, 0.3, 0.2, 0.1, 0.1])
    run = fl.train(plan(cnn(data), data, tmp_path / "run", epochs=6, schedule="plateau", lr=0.01), quiet=True)
    assert [record["lr"] for record in run.history] == pytest.approx([0.01, 0.01, 0.01, 0.005, 0.005, 0.0025])


def test_a_checkpoint_every_so_many_steps(data, tmp_path, monkeypatch):
    written, checkpoint = [], Recorder.checkpoint
    monkeypatch.setattr(Recorder, "checkpoint", lambda self, state: written.append(state.counters.step) or checkpoint(self, state))
    fl.train(plan(cnn(data), data, tmp_path / "run", batch=8, checkpoint_every=4, epochs=2), quiet=True)
    assert written == [4, 6, 8, 12, 12]


class TestShortEpochs:
    """No checkpoint is written at the end of an epoch that took no longer than writing one; and nothing is lost by that."""

    @pytest.fixture(autouse=True)
    def never_due(self, monkeypatch):
        monkeypatch.setattr(record, "checkpoint_pause", lambda seconds, size: math.inf)

    @pytest.fixture
    def written(self, monkeypatch):
        steps, checkpoint = [], Recorder.checkpoint
        monkeypatch.setattr(Recorder, "checkpoint", lambda self, state: steps.append(state.counters.step) or checkpoint(self, state))
        return steps

    def test_the_first_and_the_last_are_written_and_the_best_with_it(self, data, tmp_path, results, written):
        results([0.1, 0.3, 0.6, 0.5, 0.4])
        run = fl.train(plan(cnn(data), data, tmp_path / "run", epochs=5, ema=0.5), quiet=True)
        assert written == [2, 10]
        assert [path.name for path in checkpoints(run.folder / "checkpoints")] == ["step-00000006", "step-00000010"]
        counters, tensors, _ = load_checkpoint(run.folder / "checkpoints" / "step-00000006")
        assert (counters.epoch, counters.best, counters.best_step, counters.step) == (3, 0.6, 6, 6)
        assert all(torch.equal(saved(run)[name], tensor) for name, tensor in tensors["ema"].items())

    def test_as_good_as_with_one_after_every_epoch(self, data, tmp_path, results, monkeypatch):
        results([0.1, 0.6, 0.5] * 2)
        sparse = fl.train(plan(cnn(data), data, tmp_path / "sparse", epochs=3), quiet=True)
        monkeypatch.setattr(record, "checkpoint_pause", lambda seconds, size: 0.0)
        dense = fl.train(plan(cnn(data), data, tmp_path / "dense", epochs=3), quiet=True)
        assert all(torch.equal(saved(sparse)[name], tensor) for name, tensor in saved(dense).items())
        for step in (4, 6):
            assert all(torch.equal(weights_at(sparse, step)[name], tensor) for name, tensor in weights_at(dense, step).items())

    def test_ctrl_c_writes_both_and_the_run_goes_on(self, data, tmp_path, results, written, monkeypatch):
        results([0.1, 0.6, 0.5, 0.4] * 2)
        whole = fl.train(plan(cnn(data), data, tmp_path / "whole", epochs=4), quiet=True)
        written.clear()
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(loop, "stop_on_interrupt", stopping(7))
            results([0.1, 0.6, 0.5, 0.4])
            fl.train(plan(cnn(data), data, tmp_path / "run", epochs=4), quiet=True)
        assert written == [2, 7]
        assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000004", "step-00000007"]
        results([0.4])
        resumed = api.resume(tmp_path / "run", quiet=True)
        assert all(torch.equal(saved(resumed)[name], tensor) for name, tensor in saved(whole).items())

    def test_a_crash_goes_back_to_the_last_that_was_written(self, data, tmp_path, results, monkeypatch):
        results([0.1, 0.6, 0.5, 0.4])
        whole = fl.train(plan(cnn(data), data, tmp_path / "whole", epochs=4), quiet=True)
        results([0.1, 0.6, 0.5, 0.4])
        checkpoint, dies = Recorder.checkpoint, lambda: (_ for _ in ()).throw(KeyboardInterrupt)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(loop, "stop_on_interrupt", stopping(7))
            patch.setattr(Recorder, "checkpoint", lambda self, state: dies() if state.counters.step == 7 else checkpoint(self, state))
            fl.train(plan(cnn(data), data, tmp_path / "run", epochs=4), quiet=True)
        assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000002"]
        results([0.6, 0.5, 0.4])
        resumed = api.resume(tmp_path / "run", quiet=True)
        assert all(torch.equal(saved(resumed)[name], tensor) for name, tensor in saved(whole).items())
        assert [r["step"] for r in resumed.records()] == [r["step"] for r in whole.records()]

    def test_asked_for_by_steps_every_epoch_has_one(self, data, tmp_path, written):
        fl.train(plan(cnn(data), data, tmp_path / "run", epochs=3, checkpoint_every=100), quiet=True)
        assert written == [2, 4, 6]


def test_the_lines_of_steps_and_epochs_agree(data, tmp_path):
    run = fl.train(plan(cnn(data), data, tmp_path / "run", batch=10, label_smoothing=0.1), quiet=True)  # 48 rows: a last batch of 8
    steps, epochs = [r for r in run.records() if "epoch" not in r], run.history
    assert [r["step"] for r in steps] == list(range(1, 11)) and [r["step"] for r in epochs] == [5, 10]
    for number, epoch in enumerate(epochs):
        losses = [r["loss"] for r in steps[5 * number : 5 * number + 5]]
        assert epoch["loss"] == pytest.approx((sum(losses[:4]) * 10 + losses[4] * 8) / 48)
        assert epoch["rows_per_second"] == pytest.approx(48 / epoch["seconds"])


def test_an_epochs_line_for_people(data, tmp_path, results):
    results([0.25, 0.125])
    said = []
    api.train(plan(cnn(data), data, tmp_path / "run"), say=said.append)
    assert said[0].startswith("epoch 1/2  loss ") and "val_accuracy 0.2500" in said[0] and said[0].endswith("rows/s  (best so far)")
    assert said[1].startswith("epoch 2/2  ") and said[1].endswith("rows/s")


def test_predicted_beside_actual(data, tmp_path):
    made = plan(cnn(data), data, tmp_path / "run", adapt="head", cache="on")
    cost = json.loads((fl.train(made, quiet=True).folder / "cost.json").read_text())
    files = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != "cost.json")
    stored = (48 + made.execution.sources["validation"].rows) * 4 * 4
    assert cost["actual"]["disk_bytes"] == files + stored
    assert cost["predicted"] == made.predicted.to_dict() and cost["actual"]["peak_bytes"] > 50e6


def test_saving_needs_no_memory_of_the_training(data, tmp_path, monkeypatch):
    """Gradients, the optimiser's state and packed weights are gone before the model is written and read back."""
    made = plan(cnn(data), data, tmp_path / "run", adapt="head", prepack="on", cache="off", epochs=1)
    seen = {}
    start, save = loop.start, record.save_model

    def remember(*args):
        seen["state"] = start(*args)
        return seen["state"]

    def look(*args, **options):
        seen["held"] = [len(seen["state"].optimizer.state), *(len(product._forms) for product in made.execution.products.values())]
        seen["gradients"] = [p.grad for p in made.model.module.parameters() if p.grad is not None]
        save(*args, **options)

    monkeypatch.setattr(loop, "start", remember)
    monkeypatch.setattr(record, "save_model", look)
    fl.train(made, quiet=True)
    assert set(seen["held"]) == {0} and not seen["gradients"]


def test_of_equally_good_epochs_the_one_of_the_lowest_loss_is_saved(data, tmp_path, results):
    results([0.9, 0.9, 0.9, 0.9], [0.5, 0.3, 0.4, 0.2])
    run = fl.train(plan(cnn(data), data, tmp_path / "run", epochs=4), quiet=True)
    assert [record.get("best", False) for record in run.history] == [True, True, False, True]
    for name, value in weights_at(run, 8).items():
        assert torch.equal(saved(run)[name], value)
    results([0.9] * 3, [0.5, 0.3, 0.2])
    stopped = fl.train(plan(cnn(data), data, tmp_path / "stopped", epochs=3, early_stopping=2), quiet=True)
    assert len(stopped.history) == 3, "no gain in what is judged by"
