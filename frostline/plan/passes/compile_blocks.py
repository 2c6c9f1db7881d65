"""compile_blocks: the blocks that nothing else stands in for, by PyTorch's compiler (kernels/compiled_blocks.py).

Condition: a run so long that a trial, half a minute of compiling, is a small part of it; blocks that are computed in every step as their
modules say; and a step that the trial finds faster so, gradients and all. On a CPU this is rarely more than a tenth, for PyTorch's
products are the same; code that takes many small steps, as a loop over tokens, gains most. Exact: the same sums in another order, which
the trial checks, the same random numbers.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from frostline.data.loader import Batch, spread
from frostline.kernels.compiled_blocks import Functions, compile_blocks, graphs_made
from frostline.plan.decision import Decision
from frostline.plan.execution import TOLERANCE, Execution
from frostline.plan.frost_line import preserved
from frostline.plan.machine import best_seconds_each
from frostline.plan.probe import Loss, Probe, forward_and_backward, heaviest_rows
from frostline.recipe import Recipe

_TRIAL = 30.0
"""Seconds that compiling takes where nothing is in the cache yet, about."""
_SHARE = 0.02
"""Of a run's seconds, that a trial may take."""
_FASTER = 0.95
_TIMED = 2.0
"""Seconds that the batch of a trial takes at most."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a step takes plainly and with compiled blocks, in seconds, and how far its gradients are apart."""

    plain: float
    compiled: float
    difference: float
    first: float
    """Of the first two steps, which compile."""


def propose(recipe: Recipe, execution: Execution, loss: Loss, measured: Probe, steps: float) -> tuple[Decision | None, Probe]:
    """Compile the blocks where it pays; returns the probe with the seconds that steps then take. None for a run that is too short.

    ``steps``: of the whole run.
    """
    wish, length = recipe.plan.compile_blocks, steps * measured.step
    if wish == "off" or (wish == "auto" and _SHARE * length < _TRIAL):
        return None, measured
    off = Decision(what="compile_blocks", on=False, why="other passes stand in for parts of every block, or hand them to the store")
    if not (names := can_compile(execution)):
        return off, measured
    from torch._dynamo.exc import TorchDynamoException

    try:
        functions = compile_blocks(execution.model.module, names)
        tried = try_out(execution, loss, measured, functions)
    except (TorchDynamoException, OSError) as error:
        return replace(off, why=f"PyTorch's compiler cannot: {' '.join(str(error).split())[:160]}"), measured
    if tried is None:
        return replace(off, why="what stands in for their parts changes from step to step, so they would be compiled each time"), measured
    times = f"a step takes {tried.compiled:.3f} s so, {tried.plain:.3f} s plainly"
    limit = TOLERANCE[execution.precision]
    if not tried.difference <= limit:
        return replace(off, why=f"gradients differ by {tried.difference:.1e}, by more than {limit:.0e}"), measured
    if wish == "auto" and tried.compiled > _FASTER * tried.plain:
        return replace(off, why=times), measured
    execution.compiled = functions
    share = tried.compiled / tried.plain
    decision = replace(
        off, on=True, why=f"{len(names)} blocks; {times}; gradients differ by {tried.difference:.1e}",
        saves_seconds=max(0.0, (1 - share) * length), costs=f"{tried.first:.0f} s to compile", settings={"blocks": names},
    )  # fmt: skip
    return decision, replace(measured, step=share * measured.step)


def can_compile(execution: Execution) -> list[str]:
    """The blocks that gradients pass and nothing stands in for; of a network without blocks itself, as ``""``."""
    module, line = execution.model.module, execution.line
    if execution.pack:
        return []
    names = list(dict.fromkeys(execution.model.blocks)) or [""]
    with execution.kernels():
        return [
            name
            for name in names
            if not (line is not None and line.touches(name))
            and not any(own in vars(part) for part in module.get_submodule(name).modules() for own in ("forward", "kernel"))
        ]


def try_out(execution: Execution, loss: Loss, measured: Probe, functions: Functions) -> Trial | None:
    """Steps with and without; the execution is left as it was. None where steps compile again and again: those of one shape, or of each
    other number of rows, or width of texts, that comes.

    Raises TorchDynamoException where PyTorch's compiler cannot.
    """
    module = execution.model.module
    rows = int(measured.batch * min(1.0, _TIMED / max(1e-9, measured.step)))
    batch = heaviest_rows(execution, measured.batch, max(2, rows))

    def step(chosen: Functions, batch: Batch = batch) -> Tensor:
        execution.compiled = chosen
        return _gradients(execution, loss, batch)

    try:
        with preserved(module), execution.on_its_threads():
            module.train()
            began = time.perf_counter()
            step(functions)
            compiled, made = step(functions), graphs_made()
            first = time.perf_counter() - began
            step(functions)
            if graphs_made() > made:
                return None
            source = execution.sources["train"]
            for count in (4, 3):  # a second compilation may be for any number, a third is one for each
                made = graphs_made()
                step(functions, source.encode(spread(source.rows, count), None))
            if graphs_made() > made:
                return None
            plain = step({})
            difference = float((plain - compiled).norm() / plain.norm().clamp_min(1e-30))
            each = [functools.partial(step, {}), functools.partial(step, functions)]
            now, then = best_seconds_each(each, budget=_TIMED, most=10, warm=True)
    finally:
        execution.compiled = {}
        module.zero_grad()
    return Trial(plain=now, compiled=then, difference=difference, first=first)


def _gradients(execution: Execution, loss: Loss, batch: Batch) -> Tensor:
    """All gradients of a step, end to end, with the same random numbers each time."""
    module = execution.model.module
    module.zero_grad()
    torch.manual_seed(0)
    forward_and_backward(execution, loss, batch)
    return torch.cat([parameter.grad.flatten().float() for parameter in module.parameters() if parameter.grad is not None])
