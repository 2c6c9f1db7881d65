"""threads: on how many cores a step is computed, where reading and encoding the rows takes a good part of the time.

A product that all cores work on waits for the core that a thread of the loader has taken, and a small one gains little from a second
core; then fewer cores for the network are faster. Condition: a network on the CPU, rows that are read and encoded in every epoch in
threads beside it, and a run that is long enough for a trial: the loop itself over a few batches, with each number in turn. Exact: the
same sums in another order. Where a recipe names a number, it is taken.

On one or two cores rows that take little to encode are encoded between the steps: a thread beside them takes a core that every product
waits for, and of what it does half would be saved at best. The same numbers.
"""

from __future__ import annotations

import functools
import os
from dataclasses import replace

import torch

from frostline.data.loader import epoch_batches, load
from frostline.device import device_of
from frostline.plan.decision import Decision
from frostline.plan.execution import Execution
from frostline.plan.frost_line import preserved
from frostline.plan.machine import best_seconds_each
from frostline.plan.probe import Loss, Probe, forward_and_backward
from frostline.recipe import Recipe

_ENCODING = 0.1
"""The least share of a step that encoding its rows, divided among all cores, takes where a trial is worth it."""
_BATCHES = 6
"""Of one trial: the first is waited for, as at the start of an epoch."""
_ROUNDS = 2
_SHARE = 0.04
"""Of a run's steps, that all trials may take."""
_FASTER = 0.95
_LITTLE = 0.25
"""Of the seconds that a row is computed in, those of its encoding."""


def propose(recipe: Recipe, execution: Execution, loss: Loss, measured: Probe, steps: float) -> tuple[Decision | None, Probe]:
    """Choose the cores; returns the probe with the seconds that steps and rows then take. None where all cores compute, as usual, and
    threads beside them encode.

    ``steps``: of the whole run.
    """
    decision, faster = _fewer(recipe, execution, loss, measured, steps)
    return decision or _between_steps(recipe, execution, measured), faster


def _fewer(recipe: Recipe, execution: Execution, loss: Loss, measured: Probe, steps: float) -> tuple[Decision | None, Probe]:
    usual, wanted = torch.get_num_threads(), recipe.plan.threads
    if execution.line is not None or wanted == usual or device_of(execution.model.module).type != "cpu":
        return None, measured
    fewer = [usual >> halved for halved in range(1, usual.bit_length())] if wanted is None else [wanted]
    encoding = measured.batch * measured.encode_row / usual
    trials = _ROUNDS * (1 + len(fewer)) * _BATCHES
    if wanted is None and (not fewer or not execution.workers or encoding < _ENCODING * measured.step or trials > _SHARE * steps):
        return None, measured
    now, *then = _seconds(execution, loss, measured.batch, [usual, *fewer])
    best = min(range(len(fewer)), key=then.__getitem__)
    if wanted is None and then[best] > _FASTER * now:
        return None, measured
    execution.threads = fewer[best]
    why = f"{fewer[best]} of {usual} cores compute and the others load: {_BATCHES} batches take {then[best]:.3f} s so, {now:.3f} s on all"
    decision = Decision(
        what="threads", on=True, why=why if wanted is None else f"{why}; the recipe asks for it",
        saves_seconds=max(0.0, steps * (now - then[best]) / _BATCHES), settings={"threads": fewer[best]},
    )  # fmt: skip
    share = then[best] / now
    faster = {name: share * getattr(measured, name) for name in ("step", "forward", "encode_row")}
    return decision, replace(measured, **faster)


def _between_steps(recipe: Recipe, execution: Execution, measured: Probe) -> Decision | None:
    if recipe.data.workers is not None or (os.cpu_count() or 1) > 2 or device_of(execution.model.module).type != "cpu":
        return None
    computing = measured.prefix_row if execution.line is not None else measured.step / measured.batch
    if measured.encode_row > _LITTLE * computing:
        return None
    execution.workers = 0
    why = f"a row takes {1000 * measured.encode_row:.2g} ms to encode and {1000 * computing:.2g} ms to compute: encoded between the steps, "
    return Decision(what="threads", on=True, why=why + "for beside them it would hold them up", settings={"workers": 0})


def _seconds(execution: Execution, loss: Loss, batch: int, numbers: list[int]) -> list[float]:
    """Of the loop over a few batches on so many cores; nothing is learned."""
    source = execution.sources["train"]
    batches = epoch_batches(source.rows, batch, 0, 0, source.lengths)
    batches = [batches[index % len(batches)] for index in range(_BATCHES)]

    def run(number: int) -> None:
        execution.threads = number
        with execution.on_its_threads():
            for made in load(execution.encoder("train"), batches, 0, execution.workers):
                forward_and_backward(execution, loss, made)

    try:
        with preserved(execution.model.module):
            execution.model.module.train()
            return best_seconds_each([functools.partial(run, number) for number in numbers], budget=1e9, most=_ROUNDS, warm=True)
    finally:
        execution.threads = None
        execution.model.module.zero_grad()
