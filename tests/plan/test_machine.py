"""The calibration: measured once and kept, plausible, and the limits of memory read where the system has them."""

from __future__ import annotations

import dataclasses
import gc
import json
import mmap
import time

import numpy as np
import pytest

from frostline.files import cache_folder
from frostline.plan import machine as subject
from frostline.plan.machine import best_seconds, best_seconds_each, machine, memory_limit, resident_bytes, usual_seconds
from tests.conftest import MACHINE


def test_bf16_only_where_it_is_a_quarter_faster():
    for bf16, expected in [(50, "fp32"), (100, "fp32"), (125, "fp32"), (126, "bf16"), (400, "bf16")]:
        assert dataclasses.replace(MACHINE, fp32_gflops=100.0, bf16_gflops=bf16).fastest_precision == expected


def test_measured_once_then_read(monkeypatch):
    counted = []
    monkeypatch.setattr(subject, "_measure", lambda: counted.append(1) or dataclasses.replace(MACHINE, cores=len(counted)))
    assert machine() == machine() and len(counted) == 1
    assert machine(again=True).cores == 2 and machine().cores == 2


@pytest.mark.parametrize("content", ["", "[1", "{}", '{"name": "x", "gpu": 1}', "7"])
def test_a_file_that_is_damaged_or_of_another_version_is_measured_again(content):
    machine()
    (path,) = cache_folder().glob("machine-*.json")
    path.write_text(content)
    assert machine() == MACHINE and json.loads(path.read_text()) == dataclasses.asdict(MACHINE)


def test_the_measurements_themselves(monkeypatch):
    monkeypatch.setattr(subject, "best_seconds", lambda work, budget: best_seconds(work, budget=budget / 10))
    monkeypatch.setattr(subject._disk_rates, "__defaults__", (2**22,))
    monkeypatch.setattr(subject._gemm_rate, "__defaults__", (256,))
    write, read, sync = subject._disk_rates()
    rates = [subject._gemm_rate(subject.torch.float32), subject._gemm_rate(subject.torch.bfloat16), subject._memory_rate(), write, read]
    assert 0 < sync < 1
    assert all(np.isfinite(rate) and 1e-3 < rate < 1e5 for rate in rates)
    assert list(cache_folder().iterdir()) == []  # the file that was written is gone


def test_best_of_several():
    spent = iter([0.03, 0.015, 0.001, 0.012])
    assert 0.001 <= best_seconds(lambda: time.sleep(next(spent)), budget=0.02) < 0.01


def test_the_usual_time_is_a_median_without_the_first():
    spent = iter([0.03, 0.002, 0.006, *[0.004] * 9])
    assert 0.004 <= usual_seconds(lambda: time.sleep(next(spent)), budget=1.0, most=4) < 0.008


def test_what_is_warm_is_timed_at_once_and_what_takes_long_is_run_once():
    calls = []
    work = lambda: (calls.append(1), time.sleep(0.004))  # noqa: E731
    assert usual_seconds(work, budget=0.001, warm=True) >= 0.004 and len(calls) == 2, "of the first two the shorter counts"
    assert usual_seconds(work, budget=0.001) >= 0.004 and len(calls) == 5
    assert usual_seconds(work, budget=1.0, once=0.003) >= 0.004 and len(calls) == 6


def test_the_first_of_what_is_short_does_not_count_alone(monkeypatch):
    spent = iter([0.03, 0.01, 0.002])
    assert 0.002 <= usual_seconds(lambda: time.sleep(next(spent)), budget=0.001) < 0.01
    monkeypatch.setattr(subject, "_SHORT", 0.005)
    spent = iter([0.03, 0.01])
    assert usual_seconds(lambda: time.sleep(next(spent)), budget=0.001) >= 0.01


def test_several_are_timed_in_turns():
    calls = []
    fast, slow = best_seconds_each([lambda: calls.append("fast"), lambda: (calls.append("slow"), time.sleep(0.002))], budget=0.01)
    assert fast < 0.001 < 0.002 <= slow
    assert calls[:4] == ["fast", "slow"] * 2 and calls.count("fast") == calls.count("slow") > 2


def test_memory_that_is_there():
    assert resident_bytes() > 0 and 0 < memory_limit() < 2**50


def test_what_an_array_adds_is_resident():
    gc.collect()
    before = resident_bytes()
    with mmap.mmap(-1, 200_000_000) as taken:  # malloc's freed memory may stay with the process (the pass `allocator`)
        for _ in range(200):
            taken.write(b"\1" * 1_000_000)
        added = resident_bytes() - before  # other threads may give some back meanwhile
    assert 100e6 < added < 300e6
