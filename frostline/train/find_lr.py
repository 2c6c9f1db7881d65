"""The learning-rate finder (Smith, "Cyclical learning rates for training neural networks", WACV 2017, section 3.3).

The rate rises exponentially over the first batches while the loss is watched. The suggestion is the rate at which the
smoothed loss falls fastest; training ends where the loss has grown to four times its lowest value. The weights are put
back afterwards.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch

from frostline.data.loader import epoch_batches, load
from frostline.data.randomness import integer_seed
from frostline.errors import TrainingStopped
from frostline.plan.passes.cache_prefix import fill_stores
from frostline.plan.passes.reference import fill_reference
from frostline.plan.plan import Plan
from frostline.train.loop import start

_SMOOTHING = 0.9
_GIVE_UP = 4.0


@dataclass(frozen=True, kw_only=True)
class FoundRate:
    """The curve and what it suggests."""

    lrs: list[float]
    losses: list[float]
    """Smoothed, bias-corrected."""
    suggestion: float
    diverges_at: float | None
    """None where the loss did not blow up at any of the rates."""

    def svg(self) -> str:
        """The curve as a picture that stands alone."""
        width, height, left, bottom = 640, 360, 60, 40
        xs = [math.log10(lr) for lr in self.lrs]
        top, low = max(self.losses), min(self.losses)

        def point(lr: float, loss: float) -> tuple[float, float]:
            across = (math.log10(lr) - xs[0]) / ((xs[-1] - xs[0]) or 1)
            return left + across * (width - left - 20), 20 + (top - loss) / ((top - low) or 1) * (height - bottom - 20)

        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (point(lr, loss) for lr, loss in zip(self.lrs, self.losses, strict=True)))
        mark = point(self.suggestion, low)[0]
        ticks = "".join(
            f'<text x="{point(10.0**k, low)[0]:.0f}" y="{height - 14}" text-anchor="middle">1e{k}</text>'
            for k in range(math.ceil(xs[0]), math.floor(xs[-1]) + 1)
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
            f'<rect width="{width}" height="{height}" fill="#fff"/>'
            f'<line x1="{mark:.1f}" x2="{mark:.1f}" y1="20" y2="{height - bottom}" stroke="#d95f02"/>'
            f'<polyline points="{line}" fill="none" stroke="#1b6ca8" stroke-width="2"/>{ticks}'
            f'<text x="{mark + 6:.0f}" y="32" fill="#d95f02">{self.suggestion:.1e}</text><text x="8" y="24">{top:.2f}</text>'
            f'<text x="8" y="{height - bottom}">{low:.2f}</text>'
            f'<text x="{width / 2}" y="{height - 2}" text-anchor="middle">learning rate</text></svg>'
        )


def find_lr(plan: Plan, *, lowest: float = 1e-6, highest: float = 1.0, steps: int = 100) -> FoundRate:
    """Run up to ``steps`` batches with rates from ``lowest`` to ``highest``. Raises TrainingStopped where nothing is to be seen."""
    module = plan.model.module
    before = copy.deepcopy(module.state_dict())
    if plan.execution.line is not None:
        fill_stores(plan.recipe, plan.execution, quiet=True)
    fill_reference(plan.recipe, plan.execution)
    try:
        lrs, losses = _sweep(plan, lowest, highest, steps)
    finally:
        module.load_state_dict(before)
    if len(losses) < 10:
        raise TrainingStopped(
            f"find-lr: the loss blew up after {len(losses)} batches, expected 10; the data or the head is at fault: frostline check"
        )
    return FoundRate(lrs=lrs, losses=losses, suggestion=_suggestion(lrs, losses), diverges_at=lrs[-1] if len(lrs) < steps else None)


def _suggestion(lrs: list[float], losses: list[float]) -> float:
    """Where the loss falls fastest, the first losses left out, which are hardly averaged yet; at most a tenth of the rate at which it is
    lowest, where it is about to rise."""
    first = max(1, len(losses) // 5)
    slopes = [losses[i + 1] - losses[i - 1] for i in range(first, len(losses) - 1)]
    lowest = lrs[min(range(first, len(losses)), key=losses.__getitem__)]
    return min(lrs[first + slopes.index(min(slopes))], lowest / 10)


def _sweep(plan: Plan, lowest: float, highest: float, steps: int) -> tuple[list[float], list[float]]:
    state, recipe, source = start(plan), plan.recipe, plan.execution.sources["train"]
    batches: list = []
    while len(batches) < steps:
        batches += epoch_batches(source.rows, recipe.train.batch, recipe.seed, len(batches), source.lengths)
    lrs: list[float] = []
    losses: list[float] = []
    average = 0.0
    plan.model.module.train()
    for index, batch in enumerate(load(plan.execution.encoder("train"), batches[:steps], 0, plan.execution.workers)):
        lr = lowest * (highest / lowest) ** (index / (steps - 1))
        for group in state.optimizer.param_groups:
            group["lr"] = lr * group["initial_lr"] / recipe.train.lr
        torch.manual_seed(integer_seed(recipe.seed, 0, index, "find-lr"))
        total, count = plan.loss(plan.execution.forward(batch), batch.labels)
        loss = total / count
        average = _SMOOTHING * average + (1 - _SMOOTHING) * float(loss.detach())
        smooth = average / (1 - _SMOOTHING ** (index + 1))
        if not math.isfinite(smooth) or (losses and smooth > _GIVE_UP * min(losses)):
            break
        lrs.append(lr)
        losses.append(smooth)
        plan.execution.backward(loss)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
    return lrs, losses
