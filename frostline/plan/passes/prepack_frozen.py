"""prepack_frozen: pack frozen weights once, for the fastest of this machine's matrix products (kernels/packed_product.py).

Condition: frozen linear layers on the CPU. Saving: ``F.linear`` packs a weight anew at every call, and under autocast casts it
first. Exact: the same products in another order of their sums. Chosen shape by shape, by timing both ways at the rows of a
training batch. Cost: the packed copies, one more for a gradient that passes through.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from frostline.kernels.packed_product import PackedProduct, can_pack
from frostline.plan.decision import Decision
from frostline.plan.execution import Execution
from frostline.plan.frozen_layers import FrozenLayer, alike, computed_in, form_megabytes, seconds_now_and_with
from frostline.recipe import Recipe

_FASTER = 0.95


def propose(recipe: Recipe, execution: Execution, layers: list[FrozenLayer], steps: float) -> Decision | None:
    """Pack the shapes that are faster packed; None where nothing frozen multiplies. ``steps``: of the whole run."""
    layers = [item for item in layers if not item.convolves and can_pack(item.layer.weight, computed_in(item, execution))]
    if not layers:
        return None
    off = Decision(what="prepack_frozen", on=False, why="switched off in the recipe")
    if recipe.plan.prepack == "off":
        return off
    chosen: dict[str, int] = {}
    saved = before_line = total = 0.0
    for shape, group in alike(layers).items():
        now, then = seconds_now_and_with(group[0], execution, _product(group[0], execution, group[0].rows))
        total += now * len(group)
        if recipe.plan.prepack == "on" or then < _FASTER * now:
            chosen[shape] = group[0].rows
            saved += (now - then) * len(group)
            before_line += 0.0 if group[0].passes_gradient else (now - then) * len(group)
    if not chosen:
        return replace(off, why="no shape of the frozen layers is multiplied faster so on this machine")
    pack(execution, layers, chosen)
    packed = [item for item in layers if item.shape in chosen]
    why = f"{len(packed)} of {len(layers)} frozen linear layers; together they take {(total - saved) / total:.0%} of their time"
    return replace(
        off, on=True, why=why, saves_seconds=steps * saved, saves_before_line=steps * before_line,
        costs=form_megabytes(packed, execution), settings=chosen,
    )  # fmt: skip


def pack(execution: Execution, layers: Iterable[FrozenLayer], rows: dict[str, int]) -> None:
    """Let the layers of these shapes multiply by packed weights, packed for so many rows; a run that goes on on a GPU has none."""
    for item in layers:
        if item.shape in rows and item.layer.weight.device.type == "cpu":
            execution.products[item.name] = _product(item, execution, rows[item.shape])


def _product(item: FrozenLayer, execution: Execution, rows: int) -> PackedProduct:
    return PackedProduct(item.layer.weight, dtype=computed_in(item, execution), rows=rows)
