"""Ctrl-C loses nothing: the first ends the run after the step, the second at once; a killed run goes on bit for bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

import frostline as fl
from frostline import api, cli
from frostline.errors import FrostlineError
from frostline.plan import machine
from frostline.train import loop
from frostline.train.checkpoint import checkpoints
from frostline.train.interrupt import Interrupted, StopRequest, stop_on_interrupt
from tests.train.small import cnn, first_rows, plan, saved

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_and_the_second_interrupts(tmp_path, number):
    before = [signal.getsignal(n) for n in SIGNALS]
    with stop_on_interrupt(tmp_path) as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            time.sleep(1)
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_handlers_come_back_after_an_error(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), stop_on_interrupt(tmp_path):
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_signals_are_left_alone(tmp_path):
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with stop_on_interrupt(tmp_path) as stop:
            seen.append((signal.getsignal(signal.SIGINT), stop.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]


def test_the_message_says_how_to_go_on(tmp_path):
    error = StopRequest(tmp_path / "跑").error(7)
    assert isinstance(error, FrostlineError) and error.exit_code == 130
    assert str(error) == f"Stopped after step 7; nothing is lost. Go on with: frostline train --resume {tmp_path / '跑'}"


@pytest.fixture
def slow(monkeypatch):
    """Steps of 20 ms, and ``steps``: how many were begun."""
    take, steps = loop._take_step, []

    def slowly(*args):
        steps.append(time.perf_counter())
        time.sleep(0.02)
        return take(*args)

    monkeypatch.setattr(loop, "_take_step", slowly)
    return steps


def after(begun, count, *numbers):
    """A thread that sends the signals once so many steps have begun."""

    def work():
        while len(begun) < count:
            time.sleep(0.001)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.004)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_real_sigint_ends_in_a_checkpoint_and_the_run_goes_on(digits, tmp_path, slow):
    data = first_rows(digits, 60)
    whole = fl.train(plan(cnn(data), data, tmp_path / "whole", batch=6), quiet=True)
    slow.clear()
    thread = after(slow, 4, signal.SIGINT)
    with pytest.raises(Interrupted, match=r"Stopped after step 4; nothing is lost.*--resume"):
        fl.train(plan(cnn(data), data, tmp_path / "run", batch=6), quiet=True)
    thread.join()
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000004"]
    resumed = api.resume(tmp_path / "run", quiet=True)
    assert len(slow) == 20 and len(resumed.history) == 2
    assert all(torch.equal(saved(resumed)[name], tensor) for name, tensor in saved(whole).items())


def test_the_second_sigint_ends_the_run_at_once(digits, tmp_path, slow):
    data = first_rows(digits, 60)
    before = signal.getsignal(signal.SIGINT)
    thread = after(slow, 4, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fl.train(plan(cnn(data), data, tmp_path / "run", batch=6, checkpoint_every=1), quiet=True)
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before and len(slow) == 4
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000003"]
    assert len(api.resume(tmp_path / "run", quiet=True).history) == 2


def test_killed_at_a_random_moment_and_resumed(tmp_path):
    """SIGKILL: no handler runs, whatever was being written stays half written."""
    machine.machine()  # so that the other process measures nothing
    lines = ["text\tlabel", *(f"{'good' if i % 2 else 'bad'} words {i} {i % 7}\t{'ab'[i % 2]}" for i in range(60))]
    (tmp_path / "data.tsv").write_text("\n".join(lines))
    words = [str(tmp_path / "data.tsv"), "--model", "mlp", "train.epochs=8", "train.batch=4", "train.checkpoint_every=1", "train.ema=0.9",
             "model.width=8", "data.workers=2", "--quiet"]  # fmt: skip
    assert cli.main(["train", *words, "--out", str(tmp_path / "whole")]) == 0
    killed = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-m", "frostline", "train", *words, "--out", str(killed)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not checkpoints(killed / "checkpoints") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.3))
    process.kill()
    assert process.wait() == -signal.SIGKILL, process.stderr.read()
    done = int(checkpoints(killed / "checkpoints")[-1].name.removeprefix("step-"))
    assert cli.main(["train", "--resume", str(killed), "--quiet"]) == 0
    first, second = saved(tmp_path / "whole"), saved(killed)
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items()), f"killed after step {done}"
    whole, resumed = api.open_run(tmp_path / "whole"), api.open_run(killed)
    assert [(r["step"], r["loss"]) for r in resumed.records()] == [(r["step"], r["loss"]) for r in whole.records()]
    assert [path.name for path in (killed / "checkpoints").iterdir() if path.name.startswith(".")] == []


def test_a_stop_while_the_frozen_part_runs_is_told_and_the_run_goes_on_with_what_was_stored(digits, tmp_path, monkeypatch):
    data, said = first_rows(digits, 60), []
    made = plan(cnn(data), data, tmp_path / "run", adapt="head", cache="on")
    prefix = made.execution.prefix

    def interrupted_prefix(batch):
        os.kill(os.getpid(), signal.SIGINT)
        return prefix(batch)

    monkeypatch.setattr(made.execution, "prefix", interrupted_prefix)
    with pytest.raises(Interrupted, match=r"before the first step; the rows that were stored are kept\. Go on with: .*--resume"):
        api.train(made, say=said.append)
    assert any("Stopping" in text for text in said) and not list((tmp_path / "run" / "checkpoints").glob("step-*"))
    said.clear()
    assert len(api.resume(tmp_path / "run", say=said.append).history) == 2
    assert "frozen part, train: 16 of 60 rows were stored before" in said
