"""fuse_attention: attention of rows that are all as long, as images are, in C++ (kernels/batch_attention.py).

Condition: a CPU, a C++ compiler, and attention without mask and dropout that goes through ``scaled_dot_product_attention``. Saving: about
half of attention's time, forward and back. Exact: the same sums in another order. Chosen by timing both ways on the shape that a few rows
show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from frostline.data.loader import spread
from frostline.kernels.batch_attention import Attend, attending_in_sequences, exchanged, options_of, takes
from frostline.kernels.precision import cast
from frostline.models.model import evaluating
from frostline.plan.decision import Decision
from frostline.plan.execution import Execution
from frostline.plan.machine import best_seconds_each
from frostline.recipe import Recipe

_FASTER = 0.95
_ROWS = 4


@dataclass(frozen=True, kw_only=True)
class Call:
    """One attention of a few rows."""

    operands: tuple[Tensor, Tensor, Tensor]
    """Query, key and value: (rows, heads, tokens, size)."""
    options: dict[str, Any]
    learns: bool
    """Whether a gradient passes."""


def propose(recipe: Recipe, execution: Execution, batch: int, steps: float) -> Decision | None:
    """Let the run compute it so where that is faster; None where no attention can be. ``batch``: rows; ``steps``: of the whole run."""
    if not (calls := attentions(execution)):
        return None
    off = Decision(what="fuse_attention", on=False, why="switched off in the recipe")
    if recipe.plan.fuse_attention == "off":
        return off
    with execution.kernels():
        now, then = seconds_now_and_then(next((call for call in calls if call.learns), calls[0]))
    rows, _, tokens, _ = calls[0].operands[0].shape
    times = f"{rows} rows of {tokens} tokens take {then * 1e3:.1f} ms in C++, {now * 1e3:.1f} ms in PyTorch"
    if recipe.plan.fuse_attention == "auto" and then > _FASTER * now:
        return Decision(what="fuse_attention", on=False, why=times)
    execution.attends_in_sequences = True
    before = sum(not call.learns for call in calls)
    saved = steps * batch / rows * max(0.0, now - then)
    return Decision(
        what="fuse_attention", on=True, why=f"{len(calls)} attentions; {times}",
        saves_seconds=saved * len(calls), saves_before_line=saved * before,
    )  # fmt: skip


def attentions(execution: Execution) -> list[Call]:
    """Those of a pass of a few rows that C++ can compute."""
    source, calls = execution.sources["train"], list[Call]()
    few = source.encode(spread(source.rows, 1 if source.lengths is None else _ROWS), None)  # images all have as many tokens

    def see(plain: Attend, *args: Any, **kwargs: Any) -> Tensor:
        (query, key, value), options = cast(*args[:3]), options_of(args[3:], kwargs)
        assert query is not None and key is not None and value is not None
        if takes(query, key, value, options):
            learns = any(part.requires_grad for part in (query, key, value))
            query, key, value = (part.detach().repeat(max(1, _ROWS // len(part)), 1, 1, 1) for part in (query, key, value))
            calls.append(Call(operands=(query, key, value), options=options, learns=learns))
        return plain(*args, **kwargs)

    with evaluating(execution.model.module), execution.kernels(), exchanged(see), torch.enable_grad():
        execution.forward(few)
    return calls


def seconds_now_and_then(call: Call) -> tuple[float, float]:
    """Of one attention by PyTorch, and in C++; forward, and back where a gradient passes."""
    query, key, value = (part.clone().requires_grad_(call.learns) for part in call.operands)

    def run() -> None:
        with torch.set_grad_enabled(call.learns):
            output = functional.scaled_dot_product_attention(query, key, value, **call.options)
            if call.learns:
                torch.autograd.grad(output.sum(), [query, key, value])

    def in_cpp() -> None:
        with attending_in_sequences(True):
            run()

    now, then = best_seconds_each([run, in_cpp], budget=0.05)
    return now, then
