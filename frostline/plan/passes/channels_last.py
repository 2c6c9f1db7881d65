"""channels_last: keep images and convolution weights with the channels innermost, where this machine is faster so.

Condition: the network convolves images, more than once. Exact: the same sums in another order. Chosen by timing the real network on a few
real rows both ways: forward, and back as well where convolutions learn, whose gradients may want the other layout.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from frostline.data.loader import Batch
from frostline.errors import RecipeError
from frostline.models import model
from frostline.models.model import evaluating
from frostline.plan.decision import Decision
from frostline.plan.execution import Execution
from frostline.plan.machine import best_seconds
from frostline.recipe import Recipe


def propose(recipe: Recipe, execution: Execution) -> Decision | None:
    """Time the network in both layouts and leave it in the faster one; None where hardly anything convolves."""
    module, forced = execution.model.module, recipe.plan.channels_last
    convolutions = [child for child in module.modules() if isinstance(child, nn.Conv2d)]
    if len(convolutions) < 2:
        return None  # a vision transformer convolves once, to cut the image into patches
    if forced == "off":
        lay_out(execution, False)
        return Decision(what="channels_last", on=False, why="switched off in the recipe")
    source = execution.sources["train"]
    batch = affordable_batch(execution, recipe.train.batch) if forced == "auto" else source.encode(np.arange(1), None)

    learns = any(parameter.requires_grad for one in convolutions for parameter in one.parameters())

    def run() -> None:
        outputs = execution.forward(batch)
        if learns:
            execution.backward(outputs.sum())
            module.zero_grad(set_to_none=True)

    def seconds() -> float:
        with torch.set_grad_enabled(learns):
            return best_seconds(run, budget=0.1)

    with evaluating(module):
        plain = seconds() if forced == "auto" else None
        lay_out(execution, True)
        try:
            inner = seconds()
        except RuntimeError as error:  # x.view(len(x), -1), say, needs the usual one
            lay_out(execution, False)
            why = f"the network cannot compute so: {str(error).splitlines()[0]}"
            if forced == "on":
                raise RecipeError(f"plan.channels_last got 'on', but {why}. Use: plan.channels_last=auto") from error
            return Decision(what="channels_last", on=False, why=why)
    if plain is None:
        return Decision(what="channels_last", on=True, why="switched on in the recipe")
    faster = inner < 0.95 * plain
    if not faster:
        lay_out(execution, False)
    rows, what = "one row" if len(batch.rows) == 1 else f"{len(batch.rows)} rows", "step" if learns else "forward pass"
    why = f"a {what} of {rows} takes {inner * 1e3:.1f} ms with channels innermost, {plain * 1e3:.1f} ms as usual"
    return Decision(what="channels_last", on=faster, why=why)


def affordable_batch(execution: Execution, batch: int) -> Batch:
    """As many rows as one forward pass takes a tenth of a second for: few rows measure the calls, not the arithmetic."""
    source = execution.sources["train"]
    one = source.encode(np.arange(1), None)
    with evaluating(execution.model.module), torch.no_grad():
        row = best_seconds(lambda: execution.forward(one), budget=5e-3, most=1)
    return source.encode(np.arange(min(source.rows, batch, max(1, round(0.1 / row)))), None)


def lay_out(execution: Execution, on: bool) -> None:
    """Put the network's weights and, from now on, its images into one layout or the other."""
    execution.channels_last = on
    model.lay_out(execution.model.module, channels_last=on)
