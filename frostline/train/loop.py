"""The training loop, written once. Tasks, adapt methods and planner passes come in through the plan; nothing is copied.

A loss is ``(sum, count)`` and only :func:`_take_step` divides, by the count of all micro-batches of one optimiser step, so
that accumulating equals one large batch (law 1). Before each forward pass the random state is set from (seed, epoch, row)
(law 2): a run that was killed at any step goes on bit for bit, whatever the number of worker threads.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from frostline.adapt.freeze import frozen_hash
from frostline.adapt.gradual import thaw
from frostline.adapt.groups import parameter_groups
from frostline.data.loader import Batch, epoch_batches, load
from frostline.data.randomness import integer_seed
from frostline.errors import TrainingStopped
from frostline.plan.passes.cache_prefix import fill_stores
from frostline.plan.passes.micro_batch import pieces
from frostline.plan.passes.reference import fill_reference, prove_reference
from frostline.plan.plan import Plan
from frostline.progress import progress, say_nothing
from frostline.train.checkpoint import Counters
from frostline.train.doctor import GradientWatch, diagnose, stop_without_labels
from frostline.train.ema import Ema
from frostline.train.interrupt import StopRequest, stop_on_interrupt
from frostline.train.optimizers import Optimizer, build_optimizer, forget, set_rate, state_from_tensors, state_to_tensors
from frostline.train.out_of_memory import divided, halved, ran_out
from frostline.train.record import Recorder
from frostline.train.run import Run, in_use
from frostline.train.schedules import Plateau, learning_rate
from frostline.train.validate import validate

Say = Callable[[str], None]


@dataclass(kw_only=True)
class State:
    """All that changes while training."""

    plan: Plan
    optimizer: Optimizer
    total_steps: int
    counters: Counters = field(default_factory=Counters)
    ema: Ema | None = None
    plateau: Plateau = field(default_factory=Plateau)

    @property
    def frozen(self) -> str:
        """Hash of everything that must not change."""
        return frozen_hash(self.plan.model.module)

    def release(self) -> None:
        """Give back the memory of what no step will need again: gradients, the optimiser's state, forms of weights to multiply by."""
        forget(self.optimizer)
        for product in self.plan.execution.products.values():
            product.drop_forms()


def train_into(run: Run, plan: Plan, recorder: Recorder, *, say: Say = say_nothing, quiet: bool = True) -> None:
    """Train in a run's folder, from the recorder's last checkpoint on. Raises TrainingStopped, Interrupted."""
    epochs = plan.recipe.train.epochs
    plan.execution.say = say
    with in_use(run), stop_on_interrupt(run.folder, say) as stop, plan.execution.on_its_threads():
        if plan.execution.line is not None:
            fill_stores(plan.recipe, plan.execution, quiet, stop.stop_before_training)
        # Before the weights become those of a checkpoint.
        fill_reference(plan.recipe, plan.execution, run.folder, quiet, stop.stop_before_training)
        state = recorder.restore(start(plan, recorder.epoch_to_go_on_from))
        frozen = state.frozen
        for epoch in range(state.counters.epoch, epochs):
            if recorder.out_of_patience(state.counters):
                say(f"Stopped early: {plan.recipe.train.early_stopping} epochs without a better {recorder.best_by}.")
                break
            if thaw(plan.model, plan.recipe.adapt, epoch):
                state = _with_more_learning(state)
                frozen = state.frozen
            began, done = time.perf_counter(), state.counters.sums.get("rows", 0.0)
            _train_epoch(state, epoch, recorder, stop, say, quiet)
            results = _validate(state)
            if state.frozen != frozen:
                raise TrainingStopped(
                    f"epoch {epoch + 1}: a frozen tensor changed, expected every one as it was. A module writes to its own weights"
                )
            rows = state.counters.sums.get("rows", 0.0) - done
            recorder.end_epoch(state, results, seconds=time.perf_counter() - began, rows=rows)
            say(recorder.epoch_line(epoch))
        recorder.finish(state, say)


def start(plan: Plan, epoch: int = 0) -> State:
    """Optimiser and counters of a run that begins; for a gradual run that goes on, thawed as far as it was."""
    recipe = plan.recipe.train
    for earlier in range(epoch + 1):
        thaw(plan.model, plan.recipe.adapt, earlier)
    batches = -(-plan.execution.sources["train"].rows // recipe.batch)
    steps = -(-batches // recipe.accumulate) * recipe.epochs
    ema = None if recipe.ema is None else Ema(plan.model.module, recipe.ema)
    return State(plan=plan, optimizer=_optimizer(plan), total_steps=steps, ema=ema)


def _optimizer(plan: Plan) -> Optimizer:
    recipe = plan.recipe
    assert recipe.train.lr is not None, "the plan settles the learning rate"
    return build_optimizer(parameter_groups(plan.model, recipe.adapt, recipe.train.lr, recipe.train.weight_decay), recipe.train)


def _with_more_learning(state: State) -> State:
    """After a thaw: an optimiser over what learns now, with the state of what learned before."""
    tensors, numbers = state_to_tensors(state.optimizer)
    state.optimizer = _optimizer(state.plan)
    state_from_tensors(state.optimizer, tensors, numbers)
    return state


def _train_epoch(state: State, epoch: int, recorder: Recorder, stop: StopRequest, say: Say, quiet: bool) -> None:
    plan, counters = state.plan, state.counters
    module, recipe, source = plan.model.module, plan.recipe.train, plan.execution.sources["train"]
    module.train()
    plan.execution.prove("train", epoch=epoch)
    prove_reference(plan.recipe, plan.execution, "train", epoch)
    batches = epoch_batches(source.rows, recipe.batch, plan.recipe.seed, epoch, source.lengths)
    rest = batches[counters.step_in_epoch * recipe.accumulate :]
    watch = GradientWatch(module) if counters.step == 0 else None
    done = source.rows - sum(len(rows) for rows in rest)
    with progress(total=source.rows, label=f"epoch {epoch + 1}/{recipe.epochs}", quiet=quiet) as bar:
        bar.update(done)
        steps = _steps(rest, recipe.accumulate, plan.execution.micro_batch)
        loader = load(plan.execution.encoder("train"), list(itertools.chain.from_iterable(steps)), epoch, plan.execution.workers)
        for step in steps:
            group = list(itertools.islice(loader, len(step)))
            sums = _take_step_that_fits(state, group, epoch, recorder.kept, watch, say)
            if watch is not None and (warning := watch.verdict()):
                say(warning)
            recorder.step(state, sums)
            bar.update(sum(len(batch.rows) for batch in group))
            bar.set_postfix(recorder.running(counters), refresh=False)
            if stop.requested:
                recorder.checkpoint(state)
                raise stop.error(counters.step)
            if recipe.checkpoint_every and counters.step % recipe.checkpoint_every == 0:
                recorder.checkpoint(state)


def _steps(batches: list[np.ndarray], accumulate: int, micro_batch: int | None) -> list[list[np.ndarray]]:
    """For each optimiser step the rows of its forward passes."""
    groups = [batches[start : start + accumulate] for start in range(0, len(batches), accumulate)]
    return [[piece for rows in group for piece in pieces(rows, micro_batch)] for group in groups]


def _take_step_that_fits(
    state: State, group: list[Batch], epoch: int, kept: str, watch: GradientWatch | None, say: Say
) -> dict[str, float]:
    """As :func:`_take_step`; where memory runs out, again in halves."""
    group = divided(state.plan, group, epoch)
    while True:
        try:
            return _take_step(state, group, epoch, kept, watch)
        except RuntimeError as error:
            if not ran_out(error):
                raise
        state.optimizer.zero_grad(set_to_none=True)  # not within the except clause: there the error holds all that was computed
        group = halved(state.plan, group, epoch, state.counters.step + 1, kept)
        say(f"step {state.counters.step + 1}: memory ran out; from here on {state.plan.execution.micro_batch} rows are computed at a time")


def _take_step(state: State, group: list[Batch], epoch: int, kept: str, watch: GradientWatch | None) -> dict[str, float]:
    """Forward and backward over the micro-batches of one optimiser step, then the update. Returns the step's sums."""
    plan = state.plan
    sums = {"loss": 0.0, "count": 0.0, "score": 0.0, "scored": 0.0, "rows": 0.0}
    for batch in group:
        torch.manual_seed(integer_seed(plan.recipe.seed, epoch, int(batch.rows[0]), "forward"))
        with plan.execution.kernels(batch):
            outputs = plan.execution.forward(batch)
            total, count = plan.loss(outputs, batch.labels)
            sums["loss"] += (value := float(total.detach()))
            if value - value != 0:  # inf or NaN
                raise diagnose(plan, batch, value, state.counters.step + 1, kept)
            with torch.no_grad():
                score, scored = plan.task.running(plan.data.schema, outputs, batch.labels)
            plan.execution.backward(total)
        sums["count"] += float(count)
        sums["score"] += score
        sums["scored"] += scored
        sums["rows"] += len(batch.rows)
    if sums["count"] == 0:
        raise stop_without_labels(state.counters.step + 1)
    if watch is not None:
        watch.look()
    norm = _update(state, sums["count"])
    if not math.isfinite(norm):
        raise diagnose(plan, group[-1], norm, state.counters.step + 1, kept, what="norm of the gradient")
    return sums


def _update(state: State, count: float) -> float:
    """Divide, clip and take the step; returns the gradient's norm. Where it is not finite, the weights are left as they are."""
    recipe, counters = state.plan.recipe.train, state.counters
    set_rate(state.optimizer, learning_rate(recipe, counters.step, state.total_steps, state.plateau.multiplier))
    parameters = [p for group in state.optimizer.param_groups for p in group["params"] if p.grad is not None]
    gradients = [p.grad for p in parameters]
    torch._foreach_div_(gradients, count)
    norm = torch.nn.utils.get_total_norm(gradients)
    if not norm.isfinite():
        return float(norm)
    if recipe.clip is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, recipe.clip, norm)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    counters.step += 1
    counters.step_in_epoch += 1
    if state.ema is not None:
        state.ema.update()
    return float(norm)


def _validate(state: State) -> dict[str, float]:
    """Validation metrics, of the averaged weights where there are any; empty without a validation split."""
    if "validation" not in state.plan.execution.sources:
        return {}
    if state.counters.epoch == 0:  # validation rows come from the same prefix as the training rows, which are proved every epoch
        state.plan.execution.prove("validation")
    if state.ema is None:
        return validate(state.plan)
    with state.ema.swapped_in():
        return validate(state.plan)
