"""Seconds, memory and disk of a run, from the probe's figures and the machine's rates.

A run of E epochs over N training and V validation rows, in batches of B, with a frost line:

    uncached  E · ((N + V) · (encode + prefix) + N/B · (step + update) + V/B · forward)
    cached    (N + V) · (encode + prefix + write) + E · ((N + V) · read + N/B · (step + update) + V/B · forward)

(where training takes k random views of each row in turn, the store is made of k · N + V rows) and on both roads the checkpoints, the
proof of a stored row in each epoch, and the saved model, which is read back and compared.
``encode`` runs in threads beside the computation but on the same cores. A product that all cores work on waits for the one that a
thread has taken, so its seconds are divided by half of the cores only.

Memory is highest while the saved model is read back, into memory that the steps had taken (activations, temporaries, batches that
wait), with the file's pages beside it. Of a GPU it is its own memory that is meant, where there is no program and no file.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from frostline.plan.machine import Machine
from frostline.plan.probe import Probe

STATE_TENSORS = {"sgd": 1, "adam": 2, "adamw": 2, "adafactor": 0, "lion": 1, "muon": 1, "rmsprop": 2}
"""Numbers that each optimiser keeps for every number that learns (adafactor: rows and columns only)."""


_SYNCS = 6
"""Files of a checkpoint, or of a saved model, that are made durable one by one, about."""
_HASHED_PER_SECOND = 0.8e9
"""Bytes, by blake2b, of each core."""
_BUILDING = 0.2
"""Seconds to make the network that is read into."""
_CHECKPOINTS_SHARE = 0.05
"""Of a run's time, at most, is spent on writing checkpoints that nobody asked for by ``checkpoint_every``."""
_HELD = 2**28
"""Bytes of the largest checkpoint whose best epoch is held in memory rather than written."""
_RUNNING = 32e6
"""Bytes of what a run has beside large tensors and the plan has not yet: modules, threads, open files, small tensors; about."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """How much there is to do."""

    train_rows: int
    validation_rows: int
    epochs: int
    batch: int
    accumulate: int
    learning: int
    """Numbers that learn."""
    optimizer: str
    ema: bool
    views: int = 1
    """Random views of each training row, each of which would be stored."""
    stored_rows: int = 0
    """Rows, or views of them, that an earlier run has stored: the frozen prefix does not run for them."""
    workers: int = 1
    """Threads that read and encode."""
    checkpoint_bytes: int = 0
    """What learns, and the optimiser's state."""
    model_bytes: int = 0
    """The saved model."""
    held_bytes: int = 0
    """The best epoch, as far as it waits in memory for its checkpoint."""
    host: bool = True
    """Whether the network is computed in the host's memory, where files are read; else in a GPU's."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run takes, predicted or measured."""

    seconds: float
    peak_bytes: int
    disk_bytes: int
    parts: dict[str, float]
    """Seconds by part."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def state_bytes(learning: int, optimizer: str, ema: bool) -> int:
    """What the optimiser keeps for so many numbers that learn, and their average."""
    return learning * 4 * (STATE_TENSORS[optimizer] + ema)


def update_seconds(work: Work, machine: Machine) -> float:
    """One optimiser step: every learning number and its state are read and written once; its gradient is divided (read and written), its
    norm taken, read and cleared."""
    tensors = 7 + 2 * STATE_TENSORS[work.optimizer] + 2 * work.ema
    return work.learning * 4 * tensors / (machine.memory_gb_per_s * 1e9)


def predict_seconds(work: Work, probe: Probe, machine: Machine, *, stored_bytes: int | None) -> dict[str, float]:
    """Seconds by part; ``stored_bytes`` of the prefix's store, or None where the prefix runs every epoch."""
    rows = work.train_rows + work.validation_rows
    steps = work.train_rows / work.batch
    parts = {
        "step": work.epochs * steps * probe.step,
        "update": work.epochs * steps / work.accumulate * update_seconds(work, machine),
        "validation": work.epochs * work.validation_rows / work.batch * probe.forward,
    }
    stored = work.views * work.train_rows + work.validation_rows
    through = work.epochs * rows if stored_bytes is None else stored - work.stored_rows
    parts["read and encode"] = through * probe.encode_row / max(1, min(work.workers, machine.cores) / 2)
    parts["frozen prefix"] = through * probe.prefix_row
    if stored_bytes is not None:
        parts["write store"] = stored_bytes * through / stored / (machine.disk_write_gb_per_s * 1e9)
        parts["read store"] = work.epochs * stored_bytes * rows / stored / (machine.disk_read_gb_per_s * 1e9)
        parts["proofs"] = work.epochs * (1 + (work.validation_rows > 0)) * max(probe.prefix_row, probe.prefix_alone)
    checkpoint, apart = _checkpoints(work, probe, machine)
    later, rest = divmod(work.epochs - 1, apart)
    parts["checkpoints"] = checkpoint * (1 + later + (rest > 0))  # after the first epoch, then as they fall due, and after the last
    parts["saving"] = saving_seconds(work, probe, machine)
    return {name: seconds for name, seconds in parts.items() if seconds > 0}


def checkpoint_pause(seconds: float, size: int) -> float:
    """Seconds that a checkpoint which took ``seconds`` is good for, so that an epoch that ends within them writes none.

    So a crash (not Ctrl-C) costs at most 20 times what one checkpoint takes. One of more than 256 MiB is written at the end of
    every epoch, since the best epoch would have to be held in memory instead.
    """
    return 0.0 if size > _HELD else seconds / _CHECKPOINTS_SHARE


def held_bytes(work: Work, probe: Probe, machine: Machine) -> int:
    """What the best epoch takes in the host's memory while its checkpoint is not due."""
    return work.checkpoint_bytes if work.host and work.epochs > 1 and _checkpoints(work, probe, machine)[1] > 1 else 0


def _checkpoints(work: Work, probe: Probe, machine: Machine) -> tuple[float, int]:
    """Seconds of one checkpoint, and how many epochs lie between two; an epoch without what a store may spare it."""
    seconds = work.checkpoint_bytes / (machine.disk_write_gb_per_s * 1e9) + _SYNCS * machine.disk_sync_seconds
    update = update_seconds(work, machine) / work.accumulate
    epoch = (work.train_rows * (probe.step + update) + work.validation_rows * probe.forward) / work.batch
    return seconds, max(1, math.ceil(checkpoint_pause(seconds, work.checkpoint_bytes) / max(epoch, 1e-9)))


def saving_seconds(work: Work, probe: Probe, machine: Machine) -> float:
    """The model is written, hashed, read back, hashed and compared, and two rows go through both; an adapter's base is hashed once more."""
    disk = work.model_bytes * (1 / machine.disk_write_gb_per_s + 2 / machine.disk_read_gb_per_s) / 1e9
    rows = 2 * max(probe.prefix_alone, 2 * probe.prefix_row) + 2 * 2 * probe.forward / work.batch
    seen = 3 * work.model_bytes * (1 / (_HASHED_PER_SECOND * machine.cores) + 2 / (machine.memory_gb_per_s * 1e9))
    return disk + seen + _SYNCS * machine.disk_sync_seconds + _BUILDING + rows


def predict_peak_bytes(work: Work, probe: Probe, resident: int, free: int, *, stored_bytes: int | None) -> int:
    """Peak memory: what is there now, gradients, optimiser state, activations, the best epoch and batches waiting, as far as they do not
    fit into what of it is ``free`` for new tensors; and the pages of files."""
    state = state_bytes(work.learning, work.optimizer, work.ema) + (0 if probe.has_gradients else work.learning * 4)
    step = probe.saved_bytes + passing_bytes(probe, work.workers) + work.held_bytes
    if not work.host:
        return resident + max(0, max(state + step, work.model_bytes) - free)
    new = probe.compiled_bytes + state + max(step, work.model_bytes)
    return resident + int(_RUNNING) + max(0, new - free) + work.model_bytes + mapped_bytes(stored_bytes)


def passing_bytes(probe: Probe, workers: int) -> int:
    """What comes and goes in a step: the temporaries, and the batches that wait."""
    return probe.transient_bytes + probe.input_bytes * (workers + 2)


def mapped_bytes(stored_bytes: int | None) -> int:
    """Pages of the store that stay mapped; the system takes them back when it needs them."""
    return min(stored_bytes or 0, 2**30)
