"""fuse_convolutions: compute a frozen convolution, the batch norm and the activation behind it as one operation, packed once
(kernels/packed_convolution.py).

Condition: convolutions on the CPU that no gradient passes. Saving: two of three passes over the images, and packing the weight at
every call. Exact: the same products in another order of their sums. Chosen by timing the real network on a few real rows both ways.
Cost: the packed copies.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from frostline.kernels.frozen_product import FrozenProduct
from frostline.kernels.packed_convolution import PackedConvolution
from frostline.kernels.packed_product import can_pack
from frostline.models.model import evaluating
from frostline.plan.decision import Decision
from frostline.plan.execution import Execution
from frostline.plan.frozen_layers import FrozenLayer, computed_in, form_megabytes
from frostline.plan.machine import best_seconds_each
from frostline.plan.passes.channels_last import affordable_batch
from frostline.recipe import Recipe

_FASTER = 0.95
_WORTH = 0.1
"""Seconds of the whole run: for less, runs that are done again had better compute as before, whatever the clock says."""


def propose(recipe: Recipe, execution: Execution, layers: list[FrozenLayer], steps: float) -> Decision | None:
    """Fuse them all where that is faster; None where hardly anything frozen convolves. ``steps``: of the whole run."""
    layers = [item for item in layers if item.unit and can_pack(item.layer.weight, computed_in(item, execution))]
    alone = [item for item in layers if item.unit and len(item.unit.members) == 1]
    if not layers or (recipe.plan.fuse_convolutions == "auto" and len(layers) == len(alone) == 1):
        return None  # a vision transformer convolves once, to cut the image into patches
    off = Decision(what="fuse_convolutions", on=False, why="switched off in the recipe")
    if recipe.plan.fuse_convolutions == "off":
        return off
    batch, plain = affordable_batch(execution, recipe.train.batch), execution.products
    fuse(execution, layers)
    packed = execution.products

    def forward(products: dict[str, FrozenProduct]) -> None:
        execution.products = products
        execution.forward(batch)

    with evaluating(execution.model.module), torch.no_grad():
        now, then = best_seconds_each([lambda: forward(plain), lambda: forward(packed)], budget=0.15)
    times = f"a forward pass of {len(batch.rows)} rows takes {then * 1e3:.1f} ms so, {now * 1e3:.1f} ms plainly"
    saved = max(0.0, steps * (now - then) * recipe.train.batch / len(batch.rows))
    if recipe.plan.fuse_convolutions == "auto" and (then > _FASTER * now or saved < _WORTH):
        execution.products = plain
        return replace(off, why=times)
    norms, activations = (sum(getattr(item.unit, name) is not None for item in layers) for name in ("norm", "activation"))
    why = f"{len(layers)} frozen convolutions with {norms} batch norms and {activations} activations behind them; {times}"
    return replace(off, on=True, why=why, costs=form_megabytes(layers, execution), saves_seconds=saved, saves_before_line=saved)


def fuse(execution: Execution, layers: list[FrozenLayer]) -> None:
    """Let these convolutions be computed so."""
    execution.products = execution.products | {
        item.name: PackedConvolution(item.unit, dtype=computed_in(item, execution), images=(item.rows, *item.row))
        for item in layers
        if item.unit
    }
