"""What the tests of planning and training share: fewer rows, small plans, and a stop at a chosen step."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import frostline as fl
from frostline import api
from frostline.data.dataset import Dataset
from frostline.models.model import Model
from frostline.plan.plan import Plan
from frostline.train import loop
from frostline.train.interrupt import Interrupted, StopRequest
from frostline.train.run import Run


def first_rows(data: Dataset, count: int) -> Dataset:
    """The first rows of each split, read in the main thread."""
    splits = {name: table.slice(0, count) for name, table in data.splits.items()}
    return dataclasses.replace(data, splits=splits, recipe={**data.recipe, "workers": 0})


def cnn(data: Dataset, **options: Any) -> Model:
    """A few thousand weights, with learning BatchNorm and dropout."""
    return fl.load("cnn", data=data, **{"width": 32, "depth": 1, "dropout": 0.3, **options})


def plan(model: Model, data: Dataset, folder: Path, **options: Any) -> Plan:
    """A plan whose layout and convolutions are not chosen by timing."""
    usual = {"channels_last": "off", "fuse_convolutions": "off", "epochs": 2, "batch": 24, "lr": 1e-2}
    return fl.plan(model, data, **{"out": str(folder), **usual, **options})


def stopping(step: int) -> Callable[[Path], contextlib.AbstractContextManager[StopRequest]]:
    """In place of ``stop_on_interrupt``: the user asks to stop during the step of that number, from 1, of this process."""

    class Counting(StopRequest):
        seen = 0

        @property
        def requested(self) -> bool:
            self.seen += 1
            return self.seen == step

        @requested.setter
        def requested(self, value: bool) -> None:
            pass

        def stop_before_training(self) -> None:
            """Not counted: no step is taken yet."""

    @contextlib.contextmanager
    def stop_on_interrupt(folder: Path, say: object = None) -> Iterator[StopRequest]:
        yield Counting(folder)

    return stop_on_interrupt


def stopped_and_resumed(made: Plan, step: int, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Train, stop after ``step``, and go on from what the folder holds."""
    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_on_interrupt", stopping(step))
        with pytest.raises(Interrupted):
            fl.train(made, quiet=True)
    return api.resume(str(made.recipe.out), quiet=True)


def saved(run: Run | Path) -> dict[str, Tensor]:
    """The weights of the model that a run saved."""
    return fl.load(run).module.state_dict()
