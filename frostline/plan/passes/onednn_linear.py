"""onednn_linear: multiply with weights that learn by oneDNN where it is faster than what PyTorch has for matrices
(kernels/onednn_linear.py).

Condition: linear layers that learn, in float32 on a CPU, with enough work in the run. Saving: about half of their products' time where MKL
is slow, as on AMD's processors. Exact: the same products in another order of their sums. Chosen shape by shape, by timing both ways,
forward and back.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from frostline.data.loader import spread
from frostline.device import device_of
from frostline.kernels.onednn_linear import linear_by_convolution
from frostline.models.model import evaluating
from frostline.plan.decision import Decision
from frostline.plan.execution import Execution
from frostline.plan.frozen_layers import observed
from frostline.plan.machine import best_seconds_each
from frostline.recipe import Recipe

_FASTER = 0.95
_MOST_ROWS = 512
"""Timed with; more tell nothing new."""
_WORTH = 2e11
"""Floating-point operations of a shape in the whole run, a second or so, from which timing it is worth its time."""


def propose(recipe: Recipe, execution: Execution, batch: int, steps: float) -> Decision | None:
    """Let the shapes that are faster so be multiplied by oneDNN; None where little is. ``batch``: rows; ``steps``: of the whole run."""
    forced, module = recipe.plan.onednn_linear, execution.model.module
    if execution.precision != "fp32" or device_of(module).type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    off = Decision(what="onednn_linear", on=False, why="switched off in the recipe")
    rows = _rows(execution, batch)
    shapes: dict[tuple[int, int], list[str]] = {}
    for name in rows:
        layer: Any = module.get_submodule(name)
        shapes.setdefault((layer.out_features, layer.in_features), []).append(name)
    if forced != "on":
        shapes = {
            shape: names for shape, names in shapes.items() if 6 * math.prod(shape) * sum(rows[name] for name in names) * steps >= _WORTH
        }
    if not shapes or forced == "off":
        return off if shapes else None
    chosen, saved, before, after = list[str](), 0.0, 0.0, 0.0
    for (outputs, inputs), names in shapes.items():
        timed = min(rows[names[0]], _MOST_ROWS)
        now, then = seconds_now_and_then(timed, inputs, outputs)
        scale = sum(rows[name] for name in names) / timed
        if forced == "on" or then < _FASTER * now:
            chosen += names
            saved += scale * (now - then)
        before, after = before + scale * now, after + scale * min(now, then)
    if not chosen:
        return Decision(what="onednn_linear", on=False, why="no shape of the layers that learn is multiplied faster so on this machine")
    execution.by_convolution = chosen
    why = f"{len(chosen)} of {len(rows)} linear layers that learn; together they take {after / before:.0%} of their time"
    return Decision(what="onednn_linear", on=True, why=why, saves_seconds=steps * max(0.0, saved), settings={"layers": chosen})


def seconds_now_and_then(rows: int, inputs: int, outputs: int) -> tuple[float, float]:
    """Of a layer's three products by PyTorch's library for matrices, and by oneDNN."""
    x, weight = torch.randn(rows, inputs, requires_grad=True), torch.randn(outputs, inputs, requires_grad=True)
    grad = torch.randn(rows, outputs)

    def run(way: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> None:
        torch.autograd.grad(way(x, weight, None), [x, weight], grad)

    with torch.enable_grad():
        now, then = best_seconds_each([functools.partial(run, way) for way in (linear, linear_by_convolution)], budget=0.03)
    return now, then


def _rows(execution: Execution, batch: int) -> dict[str, int]:
    """What the learning linear layers multiply in one training batch, about, by the names of those that a few rows pass through."""
    module, source = execution.model.module, execution.sources["train"]
    layers = {name for name, part in module.named_modules() if type(part) is nn.Linear and _learns(part) and name != execution.model.output}
    if not layers:
        return {}
    few = source.encode(spread(source.rows, 1 if source.lengths is None else 3), None)  # images all have as many tokens
    rows = dict.fromkeys(layers, 0)

    def see(name: str, x: Tensor) -> None:
        rows[name] += x.shape[:-1].numel()

    with evaluating(module), observed(module, layers, see), torch.no_grad():
        execution.forward(few)
    return {name: max(1, round(count * batch / len(few.rows))) for name, count in sorted(rows.items()) if count}


def _learns(layer: nn.Linear) -> bool:
    """Its own weight in float32, made of nothing else; and nothing else stands in for it."""
    weight = layer._parameters.get("weight")
    return weight is not None and weight.requires_grad and weight.dtype == torch.float32 and "forward" not in vars(layer)
