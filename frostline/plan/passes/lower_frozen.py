"""lower_frozen: multiply with frozen weights in int8, forward and for the gradient that passes through (kernels/int8_product.py).

Condition: frozen linear layers on a CPU that multiplies int8 faster. Not exact, so taken with `plan.quality: fast` (or
`plan.int8: on`): before the run the loss on held-out rows is measured plain and lowered, and where it differs by more than
``LIMIT`` the layers whose own outputs differ most are left as they are, until it does not. The output layer is never lowered: the
gradients of probabilities are too small for 8 bits. What learns stays in floating point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from frostline.data.loader import Batch
from frostline.kernels.int8_product import Int8Product, can_lower
from frostline.models.model import evaluating
from frostline.plan.decision import Decision
from frostline.plan.execution import Execution
from frostline.plan.frozen_layers import FrozenLayer, alike, form_megabytes, observed, seconds_plain, seconds_with
from frostline.recipe import Recipe

Loss = Callable[[Any, Tensor], tuple[Tensor, Tensor]]

LIMIT = 0.01
"""Largest relative difference of the held-out loss."""
_FASTER = 0.9
_ROWS = 32
"""Held-out rows that are looked at."""


def propose(recipe: Recipe, execution: Execution, layers: list[FrozenLayer], loss: Loss, steps: float) -> Decision | None:
    """Lower the layers that are faster so and keep the loss; None where nothing frozen multiplies. ``steps``: of the whole run."""
    layers = [item for item in layers if item.name != execution.model.output]
    if not layers:
        return None
    off = Decision(what="lower_frozen", on=False, why="switched off in the recipe", exact=False)
    if recipe.plan.int8 == "off":
        return off
    if recipe.plan.int8 == "auto" and recipe.plan.quality == "exact":
        return replace(off, why="int8 is not exact; plan.quality=fast takes it where it pays")
    layers = [item for item in layers if can_lower(item.layer.weight)]
    if not layers:
        return replace(off, why="this processor has no fast products of int8 (VNNI)")
    saved = _seconds_saved(layers, execution, forced=recipe.plan.int8 == "on")
    chosen = [item for item in layers if item.shape in saved]
    if not chosen:
        return replace(off, why="no shape of the frozen layers is multiplied faster in int8 on this machine")
    kept, before, after = _within_limit(chosen, execution, loss)
    if not kept:
        return replace(off, why=f"the loss on held-out rows would change from {before:.4f} to {after:.4f}, by more than {LIMIT:.0%}")
    lower(execution, [item.name for item in kept])
    change = f"loss on held-out rows {after:.4f}, plain {before:.4f} ({_change(before, after):.2%} off)"
    return replace(
        off, on=True, why=f"{len(kept)} of {len(layers)} frozen linear layers; {change}", costs=form_megabytes(kept, execution),
        saves_seconds=steps * sum(saved[item.shape] for item in kept), settings={"layers": [item.name for item in kept]},
    )  # fmt: skip


def lower(execution: Execution, names: Iterable[str]) -> None:
    """Let these layers multiply in int8."""
    for name in names:
        weight: Any = execution.model.module.get_submodule(name).weight
        execution.products[name] = Int8Product(weight)


def _seconds_saved(layers: list[FrozenLayer], execution: Execution, forced: bool) -> dict[str, float]:
    """What a layer saves in a step, for the shapes that are faster in int8 than as they multiply now."""
    saved = {}
    for shape, group in alike(layers).items():
        now = seconds_plain(group[0], execution)
        then = seconds_with(group[0], execution, Int8Product(group[0].layer.weight))
        if forced or then < _FASTER * now:
            saved[shape] = now - then
    return saved


def _within_limit(chosen: list[FrozenLayer], execution: Execution, loss: Loss) -> tuple[list[FrozenLayer], float, float]:
    """As many of the layers as keep the held-out loss within the limit, that loss without them, and with them."""
    source = execution.sources.get("validation") or execution.sources["train"]
    batch = source.encode(np.linspace(0, source.rows - 1, num=min(_ROWS, source.rows), dtype=int), None)
    plain = dict(execution.products)
    with evaluating(execution.model.module), torch.no_grad():
        before = _mean_loss(execution, loss, batch)
        errors = _output_errors(chosen, execution, batch)
        kept = sorted(chosen, key=lambda item: errors[item.name])
        while kept:
            lower(execution, [item.name for item in kept])
            after = _mean_loss(execution, loss, batch)
            execution.products = dict(plain)
            if _change(before, after) <= LIMIT:
                return kept, before, after
            kept = kept[: len(kept) * 3 // 4]
    return [], before, after


def _change(before: float, after: float) -> float:
    """Relative; a loss that is not finite is over every limit."""
    change = abs(after - before) / max(abs(before), 1e-9)
    return change if math.isfinite(change) else math.inf


def _mean_loss(execution: Execution, loss: Loss, batch: Batch) -> float:
    total, count = loss(execution.forward(batch), batch.labels)
    return float(total) / max(1.0, float(count))


def _output_errors(layers: list[FrozenLayer], execution: Execution, batch: Batch) -> dict[str, float]:
    """Of each layer alone: how much its output in int8 differs from the plain one, relative; the largest of its calls."""
    weights = {item.name: item.layer.weight for item in layers}
    errors = dict.fromkeys(weights, 0.0)

    def see(name: str, x: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1]).float()
        plain = functional.linear(rows, weights[name].float())
        lowered = Int8Product(weights[name]).forward(rows, None)
        errors[name] = max(errors[name], float((lowered - plain).norm() / plain.norm().clamp_min(1e-12)))

    with observed(execution.model.module, weights, see):
        execution.forward(batch)
    return errors
