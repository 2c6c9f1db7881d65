"""Preference: a language model learns to give the better of two answers, from pairs; no reward model, no sampling.

For prompt x, better answer w and worse answer l, with log p the sum over the answer's tokens, |y| their number, and q the frozen
reference (plan/passes/reference.py), r(y) = log p(y|x) - log q(y|x) is what training changed, and

dpo      -(1-e) ln σ(h) - e ln σ(-h),  h = β (r(w) - r(l)); e is train.label_smoothing, the share of pairs that are labelled the wrong
         way round (Rafailov et al., "Direct preference optimization", NeurIPS 2023; e: Mitchell, "A note on DPO with noisy
         preferences", 2023, cDPO)
ipo      (r(w)/|w| - r(l)/|l| - 1/(2β))²  (Azar et al., "A general theoretical paradigm to understand learning from human
         preferences", AISTATS 2024, with its τ as β; the mean over tokens, as its authors' code does, keeps long answers from ruling)
orpo     -ln p(w)/|w| - β ln σ(ln odds(w) - ln odds(l)),  odds(y) = P/(1-P), ln P = ln p(y)/|y|; no reference, and the first term
         teaches the answer itself (Hong et al., "ORPO: monolithic preference optimization without reference model", EMNLP 2024)
simpo    -ln σ(β ln p(w)/|w| - β ln p(l)/|l| - γ); no reference; γ is train.margin (Meng et al., "SimPO", NeurIPS 2024)
kto      for each answer alone: 1 - σ(β (r(w) - z)) or 1 - σ(β (z - r(l))), z = max(0, mean of r) of the batch, without a gradient
         (Ethayarajh et al., "KTO: model alignment as prospect theoretic optimization", ICML 2024)

Every loss is (sum, pairs); kto's is (sum, answers). All but kto are sums of terms that know nothing of other rows, so accumulating
equals one large batch (law 1). Kto's z couples the rows of one forward pass: it estimates the divergence from the reference by what
the batch has, so its value depends on ``train.batch``. The paper estimates z with answers of other rows put behind each prompt,
which would take a second forward pass; the batch's own answers are taken here.

Metrics are told in nats and without β, since they are to be compared between runs: the reward of an answer is r(y), or
ln p(y)/|y| where there is no reference (orpo, simpo). Accuracy is the share of pairs whose chosen reward is the larger one; an
answer without a partner is right if its reward has the sign of its label. Sums over tokens are taken in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from frostline.data.dataset import Schema
from frostline.device import finest
from frostline.recipe import TrainRecipe
from frostline.tasks.losses import beta_of, loss_name
from frostline.tasks.task import LossOptions, Task
from frostline.tasks.tokens import TokenScores

WITH_REFERENCE = ("dpo", "ipo", "kto")
"""The losses that compare with the model as it was."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a batch's answers got; the columns are chosen and rejected."""

    logp: Tensor
    """float64 (rows, 2): ln p of the whole answer, with its gradient; 0 where there is no answer."""
    tokens: Tensor
    """int64 (rows, 2): trained tokens; 0 where there is no answer."""
    reference: Tensor | None
    """float64 (rows, 2), or None."""

    @property
    def there(self) -> Tensor:
        """bool (rows, 2)."""
        return self.tokens > 0

    @property
    def ratio(self) -> Tensor:
        """float64 (rows, 2): ln p - ln q."""
        assert self.reference is not None, "the loss needs the reference's log-probabilities, and the batch has none"
        return self.logp - self.reference

    def pairs(self) -> Answers:
        """The rows with two answers."""
        both = self.there.all(dim=1)
        return Answers(logp=self.logp[both], tokens=self.tokens[both], reference=None if self.reference is None else self.reference[both])


def answers(outputs: TokenScores) -> Answers:
    """The sums of each answer's tokens."""
    logp = -outputs.row_sums(finest(outputs.nll)).view(-1, 2)
    tokens = torch.bincount(outputs.row, minlength=outputs.rows).view(-1, 2)
    reference = None if outputs.reference is None else outputs.reference.to(logp)
    return Answers(logp=logp, tokens=tokens, reference=reference)


def loss(outputs: TokenScores, labels: Tensor, options: LossOptions) -> tuple[Tensor, Tensor]:
    """The sum of the pairs' losses and their number, for the loss that the recipe names."""
    name, found = loss_name(options.recipe, options.schema), answers(outputs)
    terms = _LOSSES[name](found if name == "kto" else found.pairs(), beta_of(options.recipe, options.schema), options.recipe)
    return terms.sum(), terms.new_tensor(len(terms))


def _dpo(found: Answers, beta: float, recipe: TrainRecipe) -> Tensor:
    h, noise = beta * (found.ratio[:, 0] - found.ratio[:, 1]), recipe.label_smoothing
    return -(1 - noise) * F.logsigmoid(h) - noise * F.logsigmoid(-h)


def _ipo(found: Answers, beta: float, recipe: TrainRecipe) -> Tensor:
    mean = found.ratio / found.tokens
    return (mean[:, 0] - mean[:, 1] - 1 / (2 * beta)) ** 2


def _orpo(found: Answers, beta: float, recipe: TrainRecipe) -> Tensor:
    mean = found.logp / found.tokens
    certain = mean.clamp_max(-1e-12)  # an answer of probability 1 has infinite odds
    odds = certain - torch.log(-torch.expm1(certain))
    return -mean[:, 0] - beta * F.logsigmoid(odds[:, 0] - odds[:, 1])


def _simpo(found: Answers, beta: float, recipe: TrainRecipe) -> Tensor:
    mean = found.logp / found.tokens
    return -F.logsigmoid(beta * (mean[:, 0] - mean[:, 1]) - recipe.margin)


def _kto(found: Answers, beta: float, recipe: TrainRecipe) -> Tensor:
    there, ratio = found.there, found.ratio
    z = ratio.detach()[there].mean().clamp_min(0) if there.any() else ratio.new_zeros(())
    signs = ratio.new_tensor([1.0, -1.0])
    return 1 - torch.sigmoid(beta * signs * (ratio - z))[there]


_LOSSES: dict[str, Callable[[Answers, float, TrainRecipe], Tensor]] = {
    "dpo": _dpo,
    "ipo": _ipo,
    "orpo": _orpo,
    "simpo": _simpo,
    "kto": _kto,
}


def scores(schema: Schema, outputs: TokenScores, labels: Tensor | None) -> Tensor:
    """float32 (rows, 2): the reward of the chosen and of the rejected answer; NaN where there is no answer."""
    found = answers(outputs)
    rewards = found.logp / found.tokens if found.reference is None else found.ratio
    # Without a reference a reward has no zero: an answer alone cannot be judged (kto, evaluated without its reference)
    there = found.there if found.reference is not None else found.there.all(dim=1, keepdim=True)
    return rewards.detach().where(there, torch.nan).float()


def metrics(schema: Schema, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, margin and mean rewards of a split; what cannot be known is left out."""
    rewards = scores.astype(np.float64)
    right, judged = _right(rewards)
    found = {"accuracy": right.sum() / judged.sum()} if judged.any() else {}
    there = ~np.isnan(rewards)
    means = {name: rewards[there[:, side], side].mean() for side, name in enumerate(("chosen", "rejected")) if there[:, side].any()}
    if len(means) == 2:
        found["margin"] = means["chosen"] - means["rejected"]
    found |= {f"{name}_reward": mean for name, mean in means.items()}
    return {name: float(value) for name, value in found.items()}


def _right(rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """bool (rows,) each: which rows are right, and which have an answer at all."""
    chosen, rejected = np.nan_to_num(rewards[:, 0]), np.nan_to_num(rewards[:, 1])  # an answer that is not there stands for 0
    return chosen > rejected, ~np.isnan(rewards).all(axis=1)


def running(schema: Schema, outputs: Any, labels: Tensor) -> tuple[float, float]:
    """Right rows and rows."""
    right, judged = _right(scores(schema, outputs, labels).cpu().numpy())
    return float(right.sum()), float(judged.sum())


def running_name(schema: Schema) -> str:
    """What :func:`running` counts."""
    return "accuracy"


def best_by(schema: Schema) -> str:
    """The checkpoint with the lowest validation loss is kept: accuracy takes few values where pairs are few."""
    return "loss"


def show(schema: Schema, row: np.ndarray) -> dict[str, Any]:
    """One row's rewards, for a person."""
    found = {f"{name}_reward": float(value) for name, value in zip(("chosen", "rejected"), row, strict=True) if not np.isnan(value)}
    return {**found, "margin": float(row[0] - row[1])} if len(found) == 2 else found


def data_conflicts(recipe: TrainRecipe, schema: Schema, splits: dict[str, pa.Table]) -> list[str]:
    """What the recipe's loss cannot do with the rows: all but kto learn from pairs."""
    if schema.task != "preference" or (name := loss_name(recipe, schema)) == "kto":
        return []
    single = sum(table[answer].null_count for table in splits.values() for answer in ("chosen", "rejected"))
    if not single:
        return []
    rows = sum(table.num_rows for table in splits.values())
    return [f"train.loss got {name!r}, which learns from pairs, but {single} of {rows} rows have one answer alone. Use: train.loss=kto"]


TASK = Task(
    name="preference",
    input_column="prompt",
    per_token=True,
    sequences=2,
    loss=loss,
    scores=scores,
    metrics=metrics,
    epoch_metrics=metrics,
    best_by=best_by,
    running=running,
    running_name=running_name,
    decode=show,
)
