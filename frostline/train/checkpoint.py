"""Checkpoints: what learns, the optimiser's state and the counters, as safetensors and JSON.

Frozen weights are not written: they are the base's, and a run starts from the base again. Randomness needs no state (law 2).
A checkpoint is written beside, made durable, and renamed; so a folder named step-N is always whole. Where it is there already
(the epoch's last step was a checkpoint, and now the epoch ends), its tensors stand and only the counters are replaced.
"""

from __future__ import annotations

import json
import os
import shutil
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from frostline.adapt.freeze import frozen_names
from frostline.errors import RunError
from frostline.files import separate, sync_folder, write_atomically


@dataclass(kw_only=True)
class Counters:
    """Where a run stands; everything else follows from the recipe."""

    epoch: int = 0
    """Epochs that are finished."""
    step_in_epoch: int = 0
    """Optimiser steps taken in the unfinished epoch."""
    step: int = 0
    """Optimiser steps taken in all."""
    sums: dict[str, float] = field(default_factory=dict)
    """Running sums of the unfinished epoch, for its line in the metrics."""
    best: float | None = None
    best_loss: float | None = None
    """The validation loss of that epoch, which decides between epochs that are equally good."""
    best_step: int | None = None
    epochs_without_gain: int = 0
    plateau: dict[str, Any] = field(default_factory=dict)
    ema_updates: int = 0


Snapshot = tuple[Counters, dict[str, dict[str, Tensor]], dict[str, Any]]
"""What :func:`load_checkpoint` reads: counters, tensors by file and name, and what else goes into JSON."""


def tensor_bytes(snapshot: Snapshot) -> int:
    """The size of a checkpoint, about."""
    return sum(tensor.nbytes for group in snapshot[1].values() for tensor in group.values())


def held(snapshot: Snapshot) -> Snapshot:
    """A copy in the host's memory, which further steps do not change."""
    counters, tensors, numbers = snapshot
    copies = {file: {name: tensor.detach().to("cpu", copy=True) for name, tensor in group.items()} for file, group in tensors.items()}
    return deepcopy(counters), copies, deepcopy(numbers)


def learning_tensors(module: nn.Module, *, everything: bool = False) -> dict[str, Tensor]:
    """Learning parameters and the buffers of what is not frozen (a learning BatchNorm's statistics), by name.

    ``everything``: what is frozen too, for a gradual run, in which the frozen part is the base's no more once it has thawed.
    """
    persistent = module.state_dict(keep_vars=True)
    if everything:
        return persistent
    frozen = set(frozen_names(module))
    return {
        name: tensor
        for name, tensor in persistent.items()
        if name not in frozen and (tensor.requires_grad or not isinstance(tensor, nn.Parameter))
    }


def save_checkpoint(folder: Path, counters: Counters, tensors: dict[str, dict[str, Tensor]], numbers: dict[str, Any]) -> Path:
    """Write ``folder/step-N``. ``tensors``: one safetensors file per name. Raises RunError when the disk is full."""
    final = folder / f"step-{counters.step:08d}"
    beside = folder / f".{final.name}.{os.getpid()}"
    state = json.dumps({"counters": asdict(counters), "numbers": numbers}).encode()
    try:
        if final.exists():
            write_atomically(final / "state.json", state)
            return final
        beside.mkdir(parents=True, exist_ok=True)
        for name, group in tensors.items():
            save_file(separate(group), beside / f"{name}.safetensors")
            with open(beside / f"{name}.safetensors", "rb") as file:
                os.fsync(file.fileno())
        write_atomically(beside / "state.json", state)
        os.replace(beside, final)
        sync_folder(folder)
    except Exception as error:
        shutil.rmtree(beside, ignore_errors=True)
        if isinstance(error, RunError):
            raise
        raise RunError(
            f"checkpoint {str(final)!r} could not be written: {error}. "
            f"Free space, then go on with: frostline train --resume {folder.parent}"
        ) from error
    return final


def load_checkpoint(path: Path) -> Snapshot:
    """Read what :func:`save_checkpoint` wrote. Raises RunError where something is missing or damaged."""
    try:
        state = json.loads((path / "state.json").read_text())
        tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
        return Counters(**state["counters"]), tensors, state["numbers"]
    except Exception as error:
        raise RunError(f"checkpoint {str(path)!r} cannot be read: {error}. Delete that folder to go on from an earlier one") from error


def checkpoints(folder: Path) -> list[Path]:
    """All whole checkpoints, oldest first."""
    return sorted(folder.glob("step-*"))


def keep_only(folder: Path, kept: set[int]) -> None:
    """Delete the checkpoints of other steps than ``kept``, and what writers that were killed left behind."""
    for path in folder.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in checkpoints(folder):
        if int(path.name.removeprefix("step-")) not in kept:
            shutil.rmtree(path, ignore_errors=True)


def copy_into(module: nn.Module, tensors: dict[str, Tensor], *, everything: bool = False) -> None:
    """Put saved learning tensors back. Raises RunError where names differ."""
    present = learning_tensors(module, everything=everything)
    if present.keys() != tensors.keys():
        differing = sorted(present.keys() ^ tensors.keys())
        raise RunError(f"the checkpoint does not fit the model: {differing[0]!r} is only in one of them. Was the recipe changed since?")
    with torch.no_grad():
        for name, tensor in tensors.items():
            present[name].copy_(tensor)
