"""Checkpoints: whole or not there, bit for bit, and a run that goes on from one is the run that was never stopped."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import frostline as fl
from frostline import api
from frostline.errors import RunError
from frostline.train import checkpoint as subject
from frostline.train import loop
from frostline.train.checkpoint import Counters, checkpoints, copy_into, keep_only, learning_tensors, load_checkpoint, save_checkpoint
from frostline.train.interrupt import Interrupted
from frostline.train.record import Recorder
from tests.train.small import cnn, first_rows, plan, saved, stopped_and_resumed, stopping

OPTIMISERS = ["sgd", "adam", "adamw", "adafactor", "rmsprop", "lion", "muon"]


def network() -> nn.Module:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    module(torch.randn(5, 3, 6, 6))
    return module.to(memory_format=torch.channels_last)


class TestOneCheckpoint:
    """Writing and reading."""

    def test_round_trip_bit_for_bit(self, tmp_path):
        module, other = network(), network()
        module(torch.randn(5, 3, 6, 6))
        with torch.no_grad():
            module[3].weight[0, 0] = 1e-42  # denormal
        tensors = learning_tensors(module)
        assert {"1.running_mean", "1.running_var", "1.num_batches_tracked"} < tensors.keys()
        counters = Counters(epoch=1, step=7, step_in_epoch=3, sums={"loss": 0.1 + 0.2}, best=1 / 3, best_step=5, plateau={"waited": 1})
        path = save_checkpoint(tmp_path, counters, {"learning": tensors, "ema": {"中": torch.ones(2)}}, {"optimizer": {"x": 1}})
        assert path == tmp_path / "step-00000007" and checkpoints(tmp_path) == [path]
        read, groups, numbers = load_checkpoint(path)
        assert read == counters and numbers == {"optimizer": {"x": 1}} and torch.equal(groups["ema"]["中"], torch.ones(2))
        copy_into(other, groups["learning"])
        for name, tensor in module.state_dict().items():
            got = other.state_dict()[name]
            assert torch.equal(got, tensor) and got.dtype == tensor.dtype and got.stride() == tensor.stride()
        assert other[0].weight.is_contiguous(memory_format=torch.channels_last)

    def test_frozen_tensors_are_left_out_unless_everything_is_asked_for(self):
        from frostline.adapt.freeze import freeze

        module = network()
        freeze(module, lambda name: name.startswith("3."))
        assert set(learning_tensors(module)) == {"3.weight", "3.bias"}
        assert set(learning_tensors(module, everything=True)) == set(module.state_dict())

    def test_a_writer_that_dies_leaves_nothing(self, tmp_path, monkeypatch):
        save_checkpoint(tmp_path, Counters(step=1), {"learning": {"w": torch.ones(2)}}, {})
        save, calls = subject.save_file, []

        def broken(tensors, path):
            calls.append(path)
            if len(calls) == 2:
                path.write_bytes(b"half")
                raise OSError(28, "No space left on device")
            save(tensors, path)

        monkeypatch.setattr(subject, "save_file", broken)
        groups = {"learning": {"w": torch.zeros(2)}, "optimizer": {"m": torch.zeros(2)}}
        with pytest.raises(RunError, match=r"step-00000002.*No space left on device.*go on with: frostline train --resume"):
            save_checkpoint(tmp_path, Counters(step=2), groups, {})
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
        assert torch.equal(load_checkpoint(tmp_path / "step-00000001")[1]["learning"]["w"], torch.ones(2))

    def test_a_writer_that_is_killed_leaves_no_step_and_is_swept_up(self, tmp_path, monkeypatch):
        def killed(*args):
            raise KeyboardInterrupt  # like a signal: no handler of ours cleans up

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(subject, "save_file", killed)
            save_checkpoint(tmp_path, Counters(step=2), {"learning": {"w": torch.zeros(2)}}, {})
        assert checkpoints(tmp_path) == [] and len(list(tmp_path.iterdir())) == 1
        save_checkpoint(tmp_path, Counters(step=3), {"learning": {"w": torch.zeros(2)}}, {})
        keep_only(tmp_path, {3})
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]

    def test_the_same_step_again_is_whole_at_every_moment(self, tmp_path, monkeypatch):
        groups = {"learning": {"w": torch.ones(2)}}
        path = save_checkpoint(tmp_path, Counters(step=4, step_in_epoch=4), groups, {})
        monkeypatch.setattr(subject.shutil, "rmtree", lambda *args, **options: pytest.fail("the only checkpoint was deleted"))
        assert save_checkpoint(tmp_path, Counters(step=4, epoch=1, best=0.5), groups, {"optimizer": {}}) == path
        counters, tensors, numbers = load_checkpoint(path)
        assert (counters.epoch, counters.step_in_epoch, counters.best) == (1, 0, 0.5) and numbers == {"optimizer": {}}
        assert torch.equal(tensors["learning"]["w"], torch.ones(2))

    def test_only_the_best_and_the_last_are_kept(self, tmp_path):
        for step in (1, 20, 300):
            save_checkpoint(tmp_path, Counters(step=step), {"learning": {"w": torch.ones(1)}}, {})
        assert [path.name for path in checkpoints(tmp_path)] == ["step-00000001", "step-00000020", "step-00000300"]
        keep_only(tmp_path, {300, 1})
        assert [path.name for path in checkpoints(tmp_path)] == ["step-00000001", "step-00000300"]

    @pytest.mark.parametrize("damage", ["state", "json", "counters", "tensors", "empty"])
    def test_a_damaged_one_is_named_with_what_to_do(self, tmp_path, damage):
        path = save_checkpoint(tmp_path, Counters(step=1), {"learning": {"w": torch.ones(99)}}, {})
        state, tensors = path / "state.json", path / "learning.safetensors"
        match damage:
            case "state":
                state.unlink()
            case "json":
                state.write_text(state.read_text()[:-5])
            case "counters":
                state.write_text(json.dumps({"counters": {"steps": 1}, "numbers": {}}))
            case "tensors":
                tensors.write_bytes(tensors.read_bytes()[:-50])
            case "empty":
                tensors.write_bytes(b"")
        with pytest.raises(RunError, match=r"step-00000001' cannot be read: .*Delete that folder to go on from an earlier one"):
            load_checkpoint(path)

    def test_another_models_is_refused(self):
        module = network()
        tensors = {name: tensor.clone() for name, tensor in learning_tensors(module).items()}
        del tensors["3.bias"]
        with pytest.raises(RunError, match=r"does not fit the model: '3\.bias' is only in one of them"):
            copy_into(module, tensors)


class TestGoingOn:
    """Law 2: stopped in the middle of an epoch, or at its end, the weights come out bit for bit."""

    def model(self, data):
        return fl.load("layers", data=data, layers=["conv 8 3 relu", "pool 2", "flatten", "dense 16 relu", "dropout 0.3"])

    def same(self, first, second):
        a, b = saved(first), saved(second)
        return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

    @pytest.mark.parametrize("optimizer", OPTIMISERS)
    def test_each_optimiser(self, digits, tmp_path, monkeypatch, optimizer):
        if optimizer == "lion":
            pytest.importorskip("lion_pytorch", reason="pip install 'frostline[lion]'")
        data, options = first_rows(digits, 48), {"optimizer": optimizer, "lr": 1e-3, "weight_decay": 0.01, "batch": 12}
        whole = fl.train(plan(self.model(data), data, tmp_path / "whole", **options), quiet=True)
        resumed = stopped_and_resumed(plan(self.model(data), data, tmp_path / "stopped", **options), 6, monkeypatch)
        assert self.same(whole, resumed)

    @pytest.mark.parametrize(
        "options",
        [
            {"ema": 0.9},
            {"schedule": "plateau", "epochs": 5, "lr": 1e-7},
            {"schedule": "one-cycle", "clip": 0.1, "accumulate": 2, "batch": 6},
            {"channels_last": "on"},
            {"adapt": "gradual", "epochs": 4},
            {"adapt": "gradual", "epochs": 4, "ema": 0.9},
            {"adapt": "last 1", "cache": "on"},
            {"adapt": "lora", "cache": "on"},
            {"precision": "bf16", "adapt": "head", "cache": "on"},
        ],
        ids=lambda options: "-".join(f"{key} {value}" for key, value in options.items()),
    )
    @pytest.mark.parametrize("where", ["middle", "end"])
    def test_each_state(self, digits, tmp_path, monkeypatch, options, where):
        data, options = first_rows(digits, 48), {"batch": 12, "epochs": 3, **options}
        whole = fl.train(plan(cnn(data, depth=2), data, tmp_path / "whole", **options), quiet=True)
        made = plan(cnn(data, depth=2), data, tmp_path / "stopped", **options)
        resumed = stopped_and_resumed(made, {"middle": 6, "end": 8}[where], monkeypatch)
        assert self.same(whole, resumed)
        dropped = ("seconds", "rows_per_second")
        assert [{k: v for k, v in r.items() if k not in dropped} for r in resumed.records()] == [
            {k: v for k, v in r.items() if k not in dropped} for r in whole.records()
        ]

    @pytest.mark.parametrize("method", ["gradual", "full"])
    def test_stopped_between_an_epochs_checkpoint_and_the_next_epoch(self, digits, tmp_path, monkeypatch, method):
        data, options = first_rows(digits, 48), {"adapt": method, "epochs": 3, "checkpoint_every": 2}
        whole = fl.train(plan(cnn(data), data, tmp_path / "whole", **options), quiet=True)
        for name in ["_judge", "_note", "checkpoint"]:
            folder = tmp_path / name
            self.killed_at_the_end_of_the_first_epoch(plan(cnn(data), data, folder, **options), name, monkeypatch)
            resumed = api.resume(folder, quiet=True)
            assert self.same(whole, resumed), name
            assert [(r["step"], r.get("epoch")) for r in resumed.records()] == [(r["step"], r.get("epoch")) for r in whole.records()]

    def killed_at_the_end_of_the_first_epoch(self, made, name, monkeypatch):
        """Right after the epoch was judged, or noted, or its checkpoint was written."""
        plain = getattr(Recorder, name)

        def dying(self, first, *rest):
            plain(self, first, *rest)
            if name == "_judge" or (name == "_note" and "epoch" in first) or (name == "checkpoint" and first.counters.epoch):
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Recorder, name, dying)
            fl.train(made, quiet=True)

    def test_stopped_before_the_first_checkpoint_it_begins_again(self, digits, tmp_path, monkeypatch):
        data = first_rows(digits, 48)
        whole = fl.train(plan(cnn(data), data, tmp_path / "whole"), quiet=True)
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(loop, "stop_on_interrupt", stopping(1))
            fl.train(plan(cnn(data), data, tmp_path / "stopped"), quiet=True)
        for path in checkpoints(tmp_path / "stopped" / "checkpoints"):
            subject.shutil.rmtree(path)
        with open(tmp_path / "stopped" / "metrics.jsonl", "a") as file:
            file.write('{"step": 2, "lo')
        resumed = api.resume(tmp_path / "stopped", quiet=True)
        assert self.same(whole, resumed) and [r["step"] for r in resumed.records()] == [r["step"] for r in whole.records()]

    def test_a_full_disk_keeps_the_checkpoint_before(self, digits, tmp_path, monkeypatch):
        data = first_rows(digits, 48)
        whole = fl.train(plan(cnn(data), data, tmp_path / "whole"), quiet=True)
        save, calls = subject.save_file, []

        def full(tensors, path):
            calls.append(path)
            if len(calls) > 4:
                raise OSError(28, "No space left on device")
            save(tensors, path)

        with monkeypatch.context() as patch, pytest.raises(RunError, match="No space left on device") as error:
            patch.setattr(subject, "save_file", full)
            fl.train(plan(cnn(data), data, tmp_path / "run", checkpoint_every=1), quiet=True)
        assert error.value.exit_code == 2 and f"frostline train --resume {tmp_path / 'run'}" in str(error.value)
        assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000002"]
        assert self.same(whole, api.resume(tmp_path / "run", quiet=True))
