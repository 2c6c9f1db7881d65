"""Run: a folder that holds all that there is to know about one training run.

recipe.yaml    the exact recipe, defaults included
data/          the rows of each split, as the run saw them
plan.json      decisions and predictions
metrics.jsonl  one line per step and per epoch
checkpoints/   step-N: what learns, the optimiser's state, counters
model/         the trained model, in the Hugging Face folder layout
cost.json      predicted beside actual seconds, memory and disk
report.*       what `evaluate` found
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frostline.data.dataset import Dataset, load_dataset
from frostline.errors import RunError
from frostline.files import write_atomically
from frostline.recipe import Recipe


@dataclass(frozen=True)
class Run:
    """A run's folder; every property is read from it anew."""

    folder: Path

    @property
    def recipe(self) -> Recipe:
        return Recipe.from_yaml(self.folder / "recipe.yaml")

    @property
    def data(self) -> Dataset:
        return load_dataset(self.folder / "data")

    @property
    def plan(self) -> dict[str, Any]:
        """What plan.json says."""
        return self.read_json("plan.json")

    @property
    def cost(self) -> dict[str, Any]:
        """Predicted beside actual; empty before the run's end."""
        return self.read_json("cost.json") if (self.folder / "cost.json").exists() else {}

    @property
    def model_folder(self) -> Path:
        return self.folder / "model"

    @property
    def history(self) -> list[dict[str, Any]]:
        """One dict per finished epoch: loss, accuracy, val_loss, val_accuracy, seconds, …"""
        return [record for record in self.records() if "epoch" in record]

    def records(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl; half a line at the end, of a run that was killed, is left out."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").splitlines()
        records = []
        for number, line in enumerate(lines, 1):
            try:
                records.append(json.loads(line))
            except ValueError as error:
                if number < len(lines):
                    raise RunError(f"{path}:{number}: not JSON ({error}). The file was changed by hand; delete that line") from error
        return records

    def read_json(self, name: str) -> dict[str, Any]:
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{str(self.folder / name)!r} cannot be read ({error}). Is {str(self.folder)!r} a run's folder?") from error

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        write_atomically(self.folder / name, json.dumps(content, ensure_ascii=False, indent=1).encode())

    def __str__(self) -> str:
        last = self.history[-1] if self.history else {}
        shown = ", ".join(f"{name} {value:.4g}" for name, value in last.items() if isinstance(value, float) and name != "seconds")
        return f"run {self.folder}: {len(self.history)} epochs{', ' + shown if shown else ''}"


def open_run(folder: str | os.PathLike[str]) -> Run:
    """The run in ``folder``. Raises RunError when there is none."""
    folder = Path(folder)
    if not (folder / "recipe.yaml").is_file() or not (folder / "plan.json").is_file():
        raise RunError(
            f"{str(folder)!r} is not a run's folder: it has no recipe.yaml and plan.json. "
            f"Make a run with: frostline train DATA --out {folder}"
        )
    return Run(folder)


def create_run(recipe: Recipe, name: str) -> Run:
    """Claim an empty folder: ``recipe.out``, or runs/NAME-N with the first N that is free. Raises RunError."""
    if recipe.out is None:
        number = 1
        while (folder := Path("runs") / f"{name}-{number}").exists():
            number += 1
    else:
        folder = Path(recipe.out)
    if folder.is_file():
        raise RunError(f"out={str(folder)!r} is a file, expected a folder that is new or empty. Choose another with --out")
    if folder.exists() and any(folder.iterdir()):
        owner = "holds another run" if (folder / "recipe.yaml").exists() else "is not empty and holds no run"
        advice = (
            f"go on with it (frostline train --resume {folder}) or choose another with --out"
            if "another" in owner
            else "choose another with --out"
        )
        raise RunError(f"out={str(folder)!r} {owner}; nothing was written. You can {advice}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"out={str(folder)!r} cannot be made: {error.strerror}. Choose another folder with --out") from error
    return Run(folder)


@contextlib.contextmanager
def in_use(run: Run) -> Iterator[None]:
    """Hold the folder's lock; the system lets go of it when the process ends, however it ends. Raises RunError when held."""
    with open(run.folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                f"{str(run.folder)!r} is in use by another process. Wait for it, stop it, or choose another folder with --out"
            ) from error
        yield


def truncate_metrics(run: Run, step: int, epoch: int) -> None:
    """Drop what a run that goes on after ``step``, with ``epoch`` epochs finished, writes again."""
    kept = [record for record in run.records() if record["step"] <= step and record.get("epoch", 0) <= epoch]
    text = "".join(json.dumps(record) + "\n" for record in kept)
    write_atomically(run.folder / "metrics.jsonl", text.encode())
