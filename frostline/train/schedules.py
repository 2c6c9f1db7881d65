"""Learning-rate schedules as functions of the step alone, so that a resumed run needs no state.

With w warm-up steps of T steps in all and p = (step − w) / (T − w), the full rate is multiplied by

warm-up     (step + 1) / w while step < w
constant    1
linear      1 − p
cosine      (1 + cos πp) / 2                                  (Loshchilov & Hutter 2017, one period, to zero)
one-cycle   straight lines through (0, 1/25), (0.45, 1), (0.9, 1/25), (1, 0) of T    (Smith 2018, "A disciplined approach
            to neural network hyper-parameters"); its rise is its warm-up, and `warmup` sets where it ends
plateau     1, halved whenever validation has not got better for two results (:class:`Plateau`)
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from frostline.recipe import TrainRecipe

_LOW = 1 / 25
_RISE, _FALL = 0.45, 0.9


def learning_rate(recipe: TrainRecipe, step: int, total_steps: int, plateau_factor: float = 1.0) -> float:
    """What the full learning rate is multiplied by in ``step`` (from 0) of ``total_steps``: from 0 to 1.

    ``plateau_factor``: :attr:`Plateau.multiplier`, for the schedule ``plateau``.

    >>> [learning_rate(TrainRecipe(schedule="linear", warmup=2), step, 10) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    warmup = warmup_steps(recipe, total_steps)
    if recipe.schedule == "one-cycle":
        return _one_cycle(step / max(1, total_steps), warmup / max(1, total_steps) or _RISE)
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    if recipe.schedule == "linear":
        return 1 - progress
    if recipe.schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return plateau_factor if recipe.schedule == "plateau" else 1.0


def warmup_steps(recipe: TrainRecipe, total_steps: int) -> int:
    """``warmup`` in steps: below 1 it is a share of all steps.

    >>> warmup_steps(TrainRecipe(warmup=0.06), 500), warmup_steps(TrainRecipe(warmup=100), 500)
    (30, 100)
    """
    steps = recipe.warmup * total_steps if recipe.warmup < 1 else recipe.warmup
    return min(total_steps, round(steps))


def _one_cycle(progress: float, peak: float) -> float:
    fall = max(_FALL, (1 + peak) / 2)
    for (left, low), (right, high) in ([(0.0, _LOW), (peak, 1.0)], [(peak, 1.0), (fall, _LOW)], [(fall, _LOW), (1.0, 0.0)]):
        if progress <= right and left < right:
            return low + (high - low) * (progress - left) / (right - left)
    return 0.0


@dataclass(kw_only=True)
class Plateau:
    """Lowers the rate where validation stands still; as plain values (``to_dict``) it is part of a checkpoint."""

    factor: float = 0.5
    patience: int = 2
    """Results in a row without a better one that lower the rate (counted as Keras's ReduceLROnPlateau does)."""
    multiplier: float = 1.0
    """What the full rate is multiplied by now."""
    best: float | None = None
    waited: int = 0

    def update(self, value: float, larger_is_better: bool) -> float:
        """Take one validation result and return the new multiplier. A result that is not a number is not better."""
        better = not math.isnan(value) and (self.best is None or (value > self.best if larger_is_better else value < self.best))
        if better:
            self.best, self.waited = value, 0
            return self.multiplier
        self.waited += 1
        if self.waited >= self.patience:
            self.multiplier, self.waited = self.multiplier * self.factor, 0
        return self.multiplier

    def to_dict(self) -> dict[str, float | int | None]:
        """Plain JSON values; ``Plateau(**values)`` is the same again."""
        return dataclasses.asdict(self)
