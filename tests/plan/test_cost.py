"""Law 12: the formulae, on numbers worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.plan.cost import (
    STATE_TENSORS,
    Cost,
    Work,
    checkpoint_pause,
    held_bytes,
    predict_peak_bytes,
    predict_seconds,
    update_seconds,
)
from frostline.plan.machine import Machine
from frostline.plan.probe import Probe
from frostline.recipe import TrainRecipe
from frostline.train.optimizers import build_optimizer, state_to_tensors

WORK = Work(
    train_rows=100, validation_rows=20, epochs=3, batch=10, accumulate=2, learning=1_000_000, optimizer="adam", ema=False, workers=8,
    checkpoint_bytes=12_000_000, model_bytes=3_000_000,
)  # fmt: skip
PROBE = Probe(
    batch=10, encode_row=0.008, prefix_row=0.05, step=0.2, forward=0.1, saved_bytes=7_000_000, transient_bytes=500_000, input_bytes=100_000
)
MACHINE = Machine(
    name="by hand", cores=4, fp32_gflops=100, bf16_gflops=50, memory_gb_per_s=16, disk_write_gb_per_s=0.5, disk_read_gb_per_s=2,
    disk_sync_seconds=0.01,
)  # fmt: skip


SAVED = {
    "checkpoints": 3 * (0.012 / 0.5 + 6 * 0.01),
    "saving": 0.003 / 0.5 + 2 * 0.003 / 2 + 3 * 0.003 * (1 / (0.8 * 4) + 2 / 16) + 6 * 0.01 + 0.2 + 4 * (0.05 + 0.01),
}
"""Written and read at the disk's rates, hashed and compared three times, made once, two rows through two models."""


def test_the_update_reads_and_writes_weight_gradient_and_state():
    # adam: the weight is read and written, the gradient divided (read, written), its norm taken, read, and cleared; two states are
    # read and written: 11 numbers of 4 bytes
    assert update_seconds(WORK, MACHINE) == pytest.approx(1_000_000 * 4 * 11 / 16e9)
    assert update_seconds(dataclasses.replace(WORK, optimizer="sgd", ema=True), MACHINE) == pytest.approx(1_000_000 * 4 * 11 / 16e9)
    assert update_seconds(dataclasses.replace(WORK, optimizer="adafactor"), MACHINE) == pytest.approx(1_000_000 * 4 * 7 / 16e9)


def test_a_checkpoint_at_most_every_twenty_times_what_it_takes():
    assert checkpoint_pause(0.2, 10**6) == pytest.approx(4.0)
    assert checkpoint_pause(0.2, 2**28 + 1) == 0.0, "the best epoch of a large model is not held in memory"
    one, alone = 0.012 / 0.5 + 6 * 0.01, dataclasses.replace(WORK, epochs=10, validation_rows=0)
    for step, count in ((0.2, 10), (0.1, 6), (0.05, 4), (0.001, 2)):  # epochs of 2, 1, 0.5 and 0.02 s; due after 1.68 s
        parts = predict_seconds(alone, dataclasses.replace(PROBE, step=step), MACHINE, stored_bytes=None)
        assert parts["checkpoints"] == pytest.approx(count * one), step


def test_the_best_epoch_is_held_where_no_checkpoint_is_due():
    short = dataclasses.replace(PROBE, step=0.05)
    assert held_bytes(WORK, PROBE, MACHINE) == 0 and held_bytes(WORK, short, MACHINE) == 12_000_000
    assert held_bytes(dataclasses.replace(WORK, epochs=1), short, MACHINE) == 0
    assert held_bytes(dataclasses.replace(WORK, checkpoint_bytes=2**28 + 1), short, MACHINE) == 0
    assert held_bytes(dataclasses.replace(WORK, host=False), short, MACHINE) == 0, "in the host's memory, not in the GPU's"
    step = dataclasses.replace(WORK, model_bytes=0)
    held = dataclasses.replace(step, held_bytes=5_000_000)
    assert predict_peak_bytes(held, short, 0, 0, stored_bytes=None) - predict_peak_bytes(step, short, 0, 0, stored_bytes=None) == 5_000_000


def test_uncached():
    assert predict_seconds(WORK, PROBE, MACHINE, stored_bytes=None) == pytest.approx(
        {
            "step": 3 * 10 * 0.2,
            "update": 3 * 5 * 0.00275,
            "validation": 3 * 2 * 0.1,
            "read and encode": 3 * 120 * 0.008 / 2,
            "frozen prefix": 3 * 120 * 0.05,
            **SAVED,
        }
    )


def test_cached_in_views():
    """Each view of a training row is stored; an epoch reads one of them."""
    once, thrice = (
        predict_seconds(dataclasses.replace(WORK, views=v), PROBE, MACHINE, stored_bytes=size) for v, size in [(1, 12e8), (3, 32e8)]
    )
    changed = {"frozen prefix": 320 * 0.05, "read and encode": 320 * 0.008 / 2, "write store": 3.2 / 0.5}
    assert thrice == pytest.approx({**once, **changed})
    uncached = predict_seconds(dataclasses.replace(WORK, views=3), PROBE, MACHINE, stored_bytes=None)
    assert uncached == predict_seconds(WORK, PROBE, MACHINE, stored_bytes=None)


def test_rows_that_an_earlier_run_has_stored_are_only_read():
    parts, half = (predict_seconds(dataclasses.replace(WORK, stored_rows=n), PROBE, MACHINE, stored_bytes=10**9) for n in (0, 60))
    halved = ("read and encode", "frozen prefix", "write store")
    assert half == pytest.approx(parts | {name: parts[name] / 2 for name in halved})
    none = predict_seconds(dataclasses.replace(WORK, stored_rows=120), PROBE, MACHINE, stored_bytes=10**9)
    assert none == pytest.approx({name: seconds for name, seconds in parts.items() if name not in halved})
    assert predict_seconds(dataclasses.replace(WORK, stored_rows=120), PROBE, MACHINE, stored_bytes=None)["frozen prefix"] == 18


def test_cached():
    parts = predict_seconds(WORK, PROBE, MACHINE, stored_bytes=10**9)
    assert parts == pytest.approx(
        {
            "step": 6.0,
            "update": 0.04125,
            "validation": 0.6,
            "read and encode": 120 * 0.008 / 2,
            "frozen prefix": 120 * 0.05,
            "write store": 2.0,
            "read store": 3 * 0.5,
            "proofs": 3 * 2 * 0.05,
            **SAVED,
        }
    )


@given(
    rows=st.integers(1, 10**6),
    epochs=st.integers(2, 100),
    prefix=st.floats(1e-6, 1),
    read=st.floats(0.01, 10),
    stored=st.integers(1, 10**12),
)
def test_caching_pays_exactly_where_reading_costs_less_than_running(rows, epochs, prefix, read, stored):
    work = dataclasses.replace(WORK, train_rows=rows, validation_rows=0, epochs=epochs)
    probe = dataclasses.replace(PROBE, prefix_row=prefix, encode_row=0.0)
    machine = dataclasses.replace(MACHINE, disk_read_gb_per_s=read)
    plain = sum(predict_seconds(work, probe, machine, stored_bytes=None).values())
    cached = sum(predict_seconds(work, probe, machine, stored_bytes=stored).values())
    saved = (epochs - 1) * rows * prefix - epochs * prefix - stored / 0.5e9 - epochs * stored / (read * 1e9)
    assert plain - cached == pytest.approx(saved, rel=1e-6, abs=1e-6 * plain)


def test_parts_that_take_no_time_are_left_out():
    work = dataclasses.replace(WORK, validation_rows=0)
    parts = predict_seconds(work, dataclasses.replace(PROBE, prefix_row=0.0), MACHINE, stored_bytes=None)
    assert set(parts) == {"step", "update", "read and encode", "checkpoints", "saving"}


def test_peak():
    # gradient and two states; activations; what comes and goes; two workers' batches, the one that waits and the one that is used;
    # the saved file's pages; 32 MB of what a run has beside
    plain = 34_000_000 + 4_000_000 * 3 + 7_000_000 + 500_000 + 4 * 100_000 + 3_000_000
    work = dataclasses.replace(WORK, workers=2)
    large = dataclasses.replace(work, model_bytes=40_000_000)
    assert predict_peak_bytes(large, PROBE, 2_000_000, 0, stored_bytes=None) == 34_000_000 + 4_000_000 * 3 + 80_000_000, "saving"
    assert predict_peak_bytes(work, PROBE, 2_000_000, 0, stored_bytes=None) == plain
    assert predict_peak_bytes(dataclasses.replace(work, ema=True), PROBE, 2_000_000, 0, stored_bytes=None) == plain + 4_000_000
    assert predict_peak_bytes(work, PROBE, 2_000_000, 0, stored_bytes=1000) == plain + 1000
    counted = dataclasses.replace(PROBE, has_gradients=True, compiled_bytes=123)
    assert predict_peak_bytes(work, counted, 2_000_000, 0, stored_bytes=None) == plain - 4_000_000 + 123
    assert predict_peak_bytes(work, PROBE, 2_000_000, 1_000_000, stored_bytes=None) == plain - 1_000_000, "what is free is taken again"
    assert predict_peak_bytes(large, PROBE, 2_000_000, 10**12, stored_bytes=1000) == 34_000_000 + 40_000_000 + 1000, "but the files' pages"
    on_gpu = dataclasses.replace(work, host=False)
    assert predict_peak_bytes(on_gpu, PROBE, 2_000_000, 0, stored_bytes=1000) == plain - 32_000_000 - work.model_bytes
    half = counted.of_rows(5)
    assert not half.has_gradients and counted.of_rows(10).has_gradients, "from piece to piece gradients stay"
    assert half.saved_bytes == PROBE.saved_bytes // 2 and half.compiled_bytes == 123
    assert predict_peak_bytes(work, PROBE, 2_000_000, 0, stored_bytes=10**12) == plain + 2**30


@pytest.mark.parametrize("name", STATE_TENSORS)
def test_the_table_of_states_is_what_the_optimisers_keep(name):
    import torch

    weight = torch.nn.Parameter(torch.ones(64, 32))
    group = {"params": [weight], "names": ["w"], "lr": 0.1, "weight_decay": 0.0, "kind": "hidden", "name": "w"}
    optimizer = build_optimizer([group], TrainRecipe(optimizer=name))
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    tensors, _ = state_to_tensors(optimizer)
    assert round(sum(tensor.numel() for tensor in tensors.values()) / weight.numel()) == STATE_TENSORS[name]


def test_as_json():
    cost = Cost(seconds=1.5, peak_bytes=10, disk_bytes=20, parts={"step": 1.5})
    assert cost.to_dict() == {"seconds": 1.5, "peak_bytes": 10, "disk_bytes": 20, "parts": {"step": 1.5}}
