"""The recorder: what a run writes while it trains. Metrics, checkpoints, the best result, and at the end the model."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from frostline.adapt.peft_files import save_adapter
from frostline.adapt.peft_keys import PEFT_METHODS
from frostline.adapt.rebuild import rebuild
from frostline.data.preprocess import with_prompt
from frostline.device import device_of
from frostline.errors import ModelError, RunError
from frostline.models.save import save_model
from frostline.plan.cost import Cost, checkpoint_pause
from frostline.plan.plan import Plan
from frostline.plan.store import store_bytes
from frostline.progress import say_nothing
from frostline.tasks.metrics import higher_is_better
from frostline.train.checkpoint import (
    Counters,
    Snapshot,
    checkpoints,
    copy_into,
    held,
    keep_only,
    learning_tensors,
    load_checkpoint,
    save_checkpoint,
    tensor_bytes,
)
from frostline.train.memory import peak_bytes, reset_peak
from frostline.train.optimizers import set_rate, state_from_tensors, state_to_tensors
from frostline.train.run import Run, truncate_metrics
from frostline.train.schedules import Plateau, learning_rate

if TYPE_CHECKING:
    from frostline.train.loop import State


class Recorder:
    """One run's books. Made anew for a run that goes on; then it reads the last checkpoint."""

    run: Run
    plan: Plan
    best_by: str
    """The validation metric that chooses the checkpoint to keep, without its `val_`."""
    epoch_to_go_on_from: int
    everything: bool
    """Whether checkpoints hold frozen tensors too; see :func:`frostline.train.checkpoint.learning_tensors`."""
    kept: str
    """What an error should say about the last good checkpoint."""
    best: Snapshot | None
    """The best epoch where no checkpoint was due at its end: held in memory until the next one."""

    def __init__(self, run: Run, plan: Plan, *, resume: bool = False):
        self.run, self.plan = run, plan
        self.best_by = plan.recipe.train.best_by or plan.task.best_by(plan.data.schema)
        self.began = time.perf_counter()
        found = checkpoints(self.folder) if resume else []
        self.resumed = load_checkpoint(found[-1]) if found else None
        self.epoch_to_go_on_from = self.resumed[0].epoch if self.resumed else 0
        self.everything = plan.recipe.adapt.method == "gradual"
        self.kept = f"The last good checkpoint is {found[-1]}" if found else "No checkpoint was written yet."
        self.best, self._due = None, 0.0
        reset_peak(device_of(plan.model.module))

    @property
    def folder(self) -> Path:
        return self.run.folder / "checkpoints"

    def restore(self, state: State) -> State:
        """Put the last checkpoint into a fresh state; without one, the state as it is."""
        if self.resumed is None:
            truncate_metrics(self.run, 0, 0)  # what a run wrote that was stopped before its first checkpoint
            return state
        state.counters, tensors, numbers = self.resumed
        if numbers["frozen"] != state.frozen and not self.everything:
            raise RunError(
                f"{self.run.folder}: the frozen weights are not those that the run began with. Was the base model's file changed since?"
            )
        copy_into(self.plan.model.module, tensors["learning"], everything=self.everything)
        state_from_tensors(state.optimizer, tensors.get("optimizer", {}), numbers["optimizer"])
        state.plateau = Plateau(**state.counters.plateau)
        rate = learning_rate(self.plan.recipe.train, state.counters.step - 1, state.total_steps, state.plateau.multiplier)
        set_rate(state.optimizer, rate)  # as the last step left it: where the epoch has no more steps, its record shows it
        if state.ema is not None:
            state.ema.state_from_tensors(tensors.get("ema", {}), numbers["ema"])
        truncate_metrics(self.run, state.counters.step, state.counters.epoch)
        return state

    def step(self, state: State, sums: dict[str, float]) -> None:
        """Note one optimiser step."""
        counters = state.counters
        for name, value in sums.items():
            counters.sums[name] = counters.sums.get(name, 0.0) + value
        self._note({"step": counters.step, "loss": sums["loss"] / sums["count"], "lr": state.optimizer.param_groups[0]["lr"]})

    def running(self, counters: Counters) -> dict[str, str]:
        """Loss and score of the epoch so far, for the progress bar."""
        return {name: f"{value:.4f}" for name, value in self._means(counters).items()}

    def end_epoch(self, state: State, results: dict[str, float], seconds: float, rows: float) -> None:
        """Note the epoch, judge whether it is the best, and write a checkpoint where the last one is old enough to be worth another.

        ``seconds``, ``rows``: since the start or the resume.
        """
        counters = state.counters
        counters.epoch += 1
        record = {"step": counters.step, "epoch": counters.epoch, **self._means(counters), **results, "seconds": seconds}
        record["lr"] = state.optimizer.param_groups[0]["lr"]
        record["rows_per_second"] = rows / max(seconds, 1e-9)
        self._judge(counters, record)
        if f"val_{self.best_by}" in record:
            state.plateau.update(record[f"val_{self.best_by}"], higher_is_better(self.best_by))
        counters.plateau = state.plateau.to_dict()
        counters.sums, counters.step_in_epoch = {}, 0
        self._note(record)
        if record.get("best"):
            self.best = None
        train = self.plan.recipe.train
        last = counters.epoch == train.epochs or self.out_of_patience(counters)
        if last or train.checkpoint_every or time.perf_counter() >= self._due:
            self.checkpoint(state)
        elif record.get("best"):
            self.best = held(self._snapshot(state))

    def out_of_patience(self, counters: Counters) -> bool:
        """Whether early stopping ends the run here."""
        patience = self.plan.recipe.train.early_stopping
        return patience is not None and counters.epochs_without_gain >= patience

    def epoch_line(self, epoch: int) -> str:
        """One line about a finished epoch, for people."""
        record = self.run.history[-1]
        running = self.plan.task.running_name(self.plan.data.schema)
        names = ("loss", running, "val_loss", f"val_{self.best_by}", f"val_{running}", "val_accuracy", "val_f1_macro")
        shown = "  ".join(f"{name} {record[name]:.4f}" for name in dict.fromkeys(names) if name in record)
        best = "  (best so far)" if record.get("best") else ""
        rate = record["rows_per_second"]
        pace = f"{record['seconds']:.1f} s  {rate:.{0 if rate >= 10 else 2}f} rows/s"
        return f"epoch {epoch + 1}/{self.plan.recipe.train.epochs}  {shown}  {pace}{best}"

    def checkpoint(self, state: State) -> None:
        """Write a checkpoint; the one before goes, unless it is the best."""
        began, counters = time.perf_counter(), state.counters
        if self.best is not None:
            save_checkpoint(self.folder, *self.best)
        snapshot = self._snapshot(state)
        path, self.best = save_checkpoint(self.folder, *snapshot), None
        keep_only(self.folder, {counters.step} | ({counters.best_step} if counters.best_step is not None else set()))
        self.kept, now = f"The last good checkpoint is {path}", time.perf_counter()
        self._due = now + checkpoint_pause(now - began, tensor_bytes(snapshot))

    def _snapshot(self, state: State) -> Snapshot:
        optimizer, numbers = state_to_tensors(state.optimizer)
        tensors = {"learning": learning_tensors(self.plan.model.module, everything=self.everything), "optimizer": optimizer}
        values: dict[str, Any] = {"optimizer": numbers, "frozen": state.frozen}
        if state.ema is not None:
            tensors["ema"], values["ema"] = state.ema.state_to_tensors()
        return state.counters, {name: group for name, group in tensors.items() if group}, values

    def finish(self, state: State, say: Callable[[str], None] = say_nothing) -> None:
        """Put the best weights back, save the model (read back and compared), and set predicted beside actual."""
        began, device = time.perf_counter(), device_of(self.plan.model.module)
        state.release()
        self.plan.execution.come_home()
        self._put_back_best(state.counters)
        card = self.plan.model.card
        card.preprocess = with_prompt(card.preprocess, self.plan.recipe.data.prompt)
        save_model(self.plan.model, self.run.model_folder, self._held_rows(), rebuild=rebuild)
        self._save_adapter(say)
        now = time.perf_counter()
        parts = {"epochs": sum(epoch["seconds"] for epoch in self.run.history), "saving": now - began}
        actual = Cost(seconds=now - self.began, peak_bytes=peak_bytes(device), disk_bytes=self._disk_bytes(), parts=parts)
        cost = {"predicted": self.plan.predicted.to_dict(), "actual": actual.to_dict(), "whole_run": self.resumed is None}
        self.run.write_json("cost.json", cost)

    def _put_back_best(self, counters: Counters) -> None:
        """The weights of the best epoch, or their average; after the last step they are there already where it was the best."""
        if counters.best_step in (None, counters.step) and self.plan.recipe.train.ema is None:
            return
        _, tensors, _ = load_checkpoint(self.folder / f"step-{counters.best_step or counters.step:08d}")
        copy_into(self.plan.model.module, tensors["learning"], everything=self.everything)
        averages, parameters = tensors.get("ema", {}), dict(self.plan.model.module.named_parameters())
        with torch.no_grad():  # after, not merged into, the others: a tied weight stands there under another name as well
            for name, average in averages.items():
                parameters[name].copy_(average)

    def _save_adapter(self, say: Callable[[str], None]) -> None:
        """Beside the whole model the adapter alone, as PEFT reads it, where the method has a place in PEFT's format."""
        if self.plan.recipe.adapt.method not in PEFT_METHODS:
            return
        try:
            save_adapter(self.plan.model, self.run.folder / "adapter")
        except ModelError as reason:  # the model itself is saved
            say(f"No adapter folder was written beside the model: {reason}")

    def _held_rows(self) -> dict[str, Any]:
        sources = self.plan.execution.sources
        source = sources.get("validation", sources["train"])
        return source.encode(np.arange(min(2, source.rows)), None).inputs

    def _disk_bytes(self) -> int:
        files = sum(path.stat().st_size for path in self.run.folder.rglob("*") if path.is_file())
        stores = self.plan.execution.stores.values()
        return files + sum(store_bytes(store.border, len(store.sums), int(store.offsets[-1])) for store in stores)

    def _means(self, counters: Counters) -> dict[str, float]:
        sums = counters.sums
        if not sums.get("count"):
            return {}
        name = self.plan.task.running_name(self.plan.data.schema)
        return {"loss": sums["loss"] / sums["count"], name: sums["score"] / max(sums["scored"], 1e-9)}

    def _judge(self, counters: Counters, record: dict[str, Any]) -> None:
        value = record.get(f"val_{self.best_by}")
        if value is None:
            return
        sign = 1 if higher_is_better(self.best_by) else -1
        gain = counters.best is None or sign * value > sign * counters.best
        loss, best_loss = record.get("val_loss"), counters.best_loss
        counters.epochs_without_gain = 0 if gain else counters.epochs_without_gain + 1
        if gain or (value == counters.best and loss is not None and best_loss is not None and loss < best_loss):
            counters.best, counters.best_loss, counters.best_step, record["best"] = value, loss, counters.step, True

    def _note(self, record: dict[str, Any]) -> None:
        path = self.run.folder / "metrics.jsonl"
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
                if "epoch" in record:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            advice = f"Free space, then go on with: frostline train --resume {self.run.folder}"
            raise RunError(f"{str(path)!r} could not be written: {error.strerror or error}. {advice}") from error
