"""lower_frozen: multiply with frozen weights in 8 bits: linear layers forward and for the gradient that passes through, in int8, or in
fp8 on a GPU that has it (kernels/lowered_product.py); on a CPU convolutions that no gradient passes as well, with what follows them, in
int8 (kernels/int8_convolution.py, int8_chain.py).

Condition: frozen layers that are timed faster so where the network is computed. Not exact, so taken with `plan.quality: fast` (or
`plan.int8: on`): before the run the loss on held-out rows is measured plain and lowered, and where it differs by more than ``LIMIT``
outliers of what comes in are smoothed, then the layers whose own outputs differ most are left as they are, until it does not. Before a
new head the loss hardly depends on them yet: what reaches the head must be near, too. Where nothing tells, those outputs decide.
The output layer is never lowered: the gradients of probabilities are too small for 8 bits. What learns stays in floating point.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from frostline.data.loader import Batch, spread
from frostline.kernels import int8_chain, row_kernels
from frostline.kernels.frozen_product import FrozenProduct
from frostline.kernels.int8_convolution import Int8Convolution
from frostline.kernels.int8_product import can_lower
from frostline.kernels.lowered_product import lowered_product
from frostline.kernels.smoothed_product import SmoothedProduct, smoothing
from frostline.models.model import evaluating
from frostline.plan.decision import Decision
from frostline.plan.execution import Execution
from frostline.plan.frozen_layers import FrozenLayer, alike, computed_in, form_megabytes, observed, seconds_now_and_with
from frostline.plan.machine import best_seconds_each
from frostline.recipe import Recipe

Loss = Callable[[Any, Tensor], tuple[Tensor, Tensor]]

LIMIT = 0.01
"""Largest relative difference of the held-out loss."""
_OUTPUT_LIMIT = 0.05
"""The same of what reaches a new head, and of a layer's own outputs where the loss does not depend on them yet."""
_SMALLEST_KERNEL = 2**10
"""Numbers of a convolution's weight that is worth it."""
_FASTER = 0.9
_BETTER = 0.7
"""A smoothed layer's error, against that of the same unsmoothed, from which smoothing is worth its pass over what comes in."""
_FEW, _ROWS = 4, 32
"""Held-out rows that are looked at, at least and at most, as long as a pass of them takes about ``_SECONDS``."""
_SECONDS = 0.25


def propose(recipe: Recipe, execution: Execution, layers: list[FrozenLayer], loss: Loss, steps: float) -> Decision | None:
    """Lower the layers that are faster so and keep the loss; None where nothing frozen multiplies. ``steps``: of the whole run."""
    layers = [item for item in layers if item.name != execution.model.output and not (item.convolves and _not_lowered(item))]
    if not layers:
        return None
    off = Decision(what="lower_frozen", on=False, why="switched off in the recipe", exact=False)
    if recipe.plan.int8 == "off":
        return off
    if recipe.plan.int8 == "auto" and recipe.plan.quality == "exact":
        return replace(off, why="products in 8 bits are not exact; plan.quality=fast takes them where they pay")
    products = {item.name: product for item in layers if (product := _product(item, *_numbers(item))) is not None}
    if not products:
        return replace(off, why="this build of PyTorch has no fast products in 8 bits for them here")
    saved = _seconds_saved([item for item in layers if item.name in products], products, execution, forced=recipe.plan.int8 == "on")
    chosen = [item for item in layers if item.name in saved]
    if not chosen:
        return replace(off, why="no shape of the frozen layers is multiplied faster in 8 bits on this machine")
    kept, before, after = _within_limit(chosen, products, execution, loss)
    if not kept:
        why = f"the loss on held-out rows would change from {before.loss:.4f} to {after.loss:.4f}, by more than {LIMIT:.0%}"
        by_loss = _change(before.loss, after.loss) > LIMIT
        return replace(off, why=why if by_loss else f"what each layer gives would change by more than {_OUTPUT_LIMIT:.0%}")
    execution.products |= {item.name: products[item.name] for item in kept}
    kinds = [name for name, there in (("linear layers", False), ("convolutions", True)) if any(item.convolves == there for item in layers)]
    numbers = " and ".join(sorted({products[item.name].lowered_to for item in kept}))
    change = f"loss on held-out rows {after.loss:.4f}, plain {before.loss:.4f} ({_change(before.loss, after.loss):.2%} off)"
    if before.at_head is not None:
        change += f"; what reaches the new head {_off(before, after):.1%} off"
    if smooth := sum(isinstance(products[item.name], SmoothedProduct) for item in kept):
        change += f"; outliers of {smooth} are smoothed"
    by_processor = any(not item.convolves and item.layer.weight.device.type == "cpu" for item in kept)
    if by_processor and (slow := row_kernels.library.missing):
        change += f"; PyTorch rounds the rows, which C++ would do in less time, but {slow}"
    return replace(
        off, on=True, why=f"{len(kept)} of {len(layers)} frozen {' and '.join(kinds)} in {numbers}; {change}",
        costs=form_megabytes(kept, execution), saves_seconds=steps * sum(saved[item.name] for item in kept),
        saves_before_line=steps * sum(saved[item.name] for item in kept if not item.passes_gradient),
        settings={"layers": {item.name: _numbers(item, products[item.name]) for item in kept}},
    )  # fmt: skip


def lower(execution: Execution, layers: list[FrozenLayer], ranges: Mapping[str, list[float]]) -> None:
    """Let the layers of these names multiply in 8 bits; of a convolution, the range of what comes in, of a smoothed layer its exponents.

    In the numbers of the device that the run goes on on, which may be another: where it has none, a layer multiplies as it is."""
    for item in layers:
        if item.name in ranges and (product := _product(item, *ranges[item.name])) is not None:
            execution.products[item.name] = product


def _not_lowered(item: FrozenLayer) -> bool:
    """Of a convolution: a gradient passes, or it hardly multiplies."""
    return item.unit is None or item.layer.weight.numel() < _SMALLEST_KERNEL


def _product(item: FrozenLayer, *numbers: float) -> FrozenProduct | None:
    """None where there is none on this device, or none for such sizes."""
    if item.unit:
        return Int8Convolution(item.unit, low=numbers[0], high=numbers[1]) if can_lower(item.layer.weight) else None
    plain = lowered_product(item.layer.weight)
    return SmoothedProduct(plain, [int(n) for n in numbers]) if plain is not None and numbers else plain


def _numbers(item: FrozenLayer, product: FrozenProduct | None = None) -> list[float]:
    """What a product is made of beside its layer: of a convolution the range of what comes in; a linear layer finds it row by row."""
    if isinstance(product, SmoothedProduct):
        return list(product.exponents)
    return [item.low, item.high] if item.convolves else []


def _seconds_saved(
    layers: list[FrozenLayer], products: Mapping[str, FrozenProduct], execution: Execution, forced: bool
) -> dict[str, float]:
    """What a layer saves in a step, by the names of those that are faster in 8 bits than as they multiply now."""
    times: dict[str, tuple[float, float]] = {}
    convolutions = {item.name: item for item in layers if item.convolves}
    for chain in int8_chain.find(execution.model.module, {name: products[name] for name in convolutions}):
        first, count = convolutions[chain.links[0].name], len(chain.links)
        now, then = _chain_now_and_lowered(first, chain, execution)
        times |= {link.name: (now / count, then / count) for link in chain.links}
    for group in alike(item for item in layers if item.name not in times).values():
        times |= dict.fromkeys((item.name for item in group), seconds_now_and_with(group[0], execution, products[group[0].name]))
    return {name: now - then for name, (now, then) in times.items() if forced or then < _FASTER * now}


def _chain_now_and_lowered(first: FrozenLayer, chain: int8_chain.Chain, execution: Execution) -> tuple[float, float]:
    """Seconds of a batch's images through a chain as it computes now, and in int8; ``first``: its first convolution."""
    shape = (first.rows_to_time, *first.row)
    images = torch.empty(shape, dtype=computed_in(first, execution)).uniform_(first.low, first.high)

    def as_now() -> None:
        y: Any = images
        with execution.autocast():
            for link in chain.links:
                current = execution.products.get(link.name)
                y = link.product.unit(y) if current is None else current.forward(y, None)
                for pool in link.pools:
                    y = pool(y)

    with torch.no_grad():
        now, then = best_seconds_each([as_now, lambda: chain(images)], budget=0.1)
    return first.rows / len(images) * now, first.rows / len(images) * then


def _within_limit(
    chosen: list[FrozenLayer], products: dict[str, FrozenProduct], execution: Execution, loss: Loss
) -> tuple[list[FrozenLayer], _HeldOut, _HeldOut]:
    """As many of the layers as keep the held-out rows within the limits, these without them, and with them.

    Where all do not, layers with outliers are smoothed first; then the worst quarter is left as it is, and so on.
    """
    plain = dict(execution.products)
    errors: dict[str, float] = {}
    with evaluating(execution.model.module), torch.no_grad():
        batch, before = _held_out(execution, loss)
        kept = chosen
        while kept:
            execution.products = plain | {item.name: products[item.name] for item in kept}
            after = _look(execution, loss, batch)
            execution.products = plain
            tells = after.loss != before.loss or before.at_head is not None
            if tells and _change(before.loss, after.loss) <= LIMIT and _off(before, after) <= _OUTPUT_LIMIT:
                return kept, before, after
            if not errors:
                errors = _output_errors(chosen, products, execution, batch)
                if _smooth(chosen, products, errors, execution, batch):
                    continue
            if not tells:  # to the last bit: what they give does not count yet, as before a layer of zeros
                return [item for item in kept if errors[item.name] <= _OUTPUT_LIMIT], before, after
            kept = sorted(kept, key=lambda item: errors[item.name])[: len(kept) * 3 // 4]
    return [], before, after


def _smooth(
    layers: list[FrozenLayer], products: dict[str, FrozenProduct], errors: dict[str, float], execution: Execution, batch: Batch
) -> bool:
    """Whether a linear layer is nearer to its plain output with its outliers smoothed; such products and errors replace theirs."""
    linear = {item.name: item for item in layers if not item.convolves}
    largest: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        columns = x.detach().reshape(-1, x.shape[-1]).abs().amax(0)
        largest[name] = torch.maximum(largest.get(name, columns), columns)

    with observed(execution.model.module, linear, see):
        execution.forward(batch)
    exponents = {name: smoothing(item.layer.weight, largest[name]) for name, item in linear.items()}
    smoothed = {name: product for name, item in linear.items() if (product := _product(item, *exponents[name])) is not None}
    better = {
        name: error
        for name, error in _output_errors(list(linear.values()), smoothed, execution, batch).items()
        if error < _BETTER * errors[name]
    }
    products |= {name: smoothed[name] for name in better}
    errors |= better
    return bool(better)


@dataclass(frozen=True, kw_only=True)
class _HeldOut:
    """What a pass of held-out rows gives."""

    loss: float
    at_head: Tensor | None
    """What reaches a new head; None without one."""


def _held_out(execution: Execution, loss: Loss) -> tuple[Batch, _HeldOut]:
    """As many rows as are affordable, and what they give."""
    source = execution.sources.get("validation") or execution.sources["train"]
    batch = source.encode(spread(source.rows, _FEW), None)
    start = time.perf_counter()
    seen = _look(execution, loss, batch)
    affordable = min(_ROWS, int(_SECONDS * len(batch.rows) / (time.perf_counter() - start)))
    if affordable < 2 * _FEW:
        return batch, seen
    batch = source.encode(spread(source.rows, affordable), None)
    return batch, _look(execution, loss, batch)


def _change(before: float, after: float) -> float:
    """Relative; a loss that is not finite is over every limit."""
    change = abs(after - before) / max(abs(before), 1e-9)
    return change if math.isfinite(change) else math.inf


def _off(before: _HeldOut, after: _HeldOut) -> float:
    """How far from its plain values what reaches a new head is, relative; 0 without one."""
    if before.at_head is None or after.at_head is None:
        return 0.0
    return float((after.at_head - before.at_head).norm() / before.at_head.norm().clamp_min(1e-12))


def _look(execution: Execution, loss: Loss, batch: Batch) -> _HeldOut:
    reached: list[Tensor] = []
    with observed(execution.model.module, execution.model.head, lambda _, x: reached.append(x.detach().float())):
        mean = _mean_loss(execution, loss, batch)
    return _HeldOut(loss=mean, at_head=reached[0] if reached else None)


def _mean_loss(execution: Execution, loss: Loss, batch: Batch) -> float:
    total, count = loss(execution.forward(batch), batch.labels)
    return float(total) / max(1.0, float(count))


def _output_errors(
    layers: list[FrozenLayer], products: Mapping[str, FrozenProduct], execution: Execution, batch: Batch
) -> dict[str, float]:
    """Of each layer alone: how much its output in 8 bits differs from the plain one, relative; the largest of its calls."""
    by_name = {item.name: item for item in layers}
    errors = dict.fromkeys(by_name, 0.0)

    def see(name: str, x: Tensor) -> None:
        item = by_name[name]
        rows = (x if item.convolves else x.reshape(-1, x.shape[-1])).to(item.layer.weight.dtype)
        plain = item.plain(rows)
        lowered = products[name].forward(rows, item.layer.bias)
        errors[name] = max(errors[name], float((lowered - plain).norm() / plain.norm().clamp_min(1e-12)))

    with observed(execution.model.module, by_name, see):
        execution.forward(batch)
    return errors
