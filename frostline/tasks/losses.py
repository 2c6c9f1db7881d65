"""Losses as ``(sum, count)``: the sum of the rows' losses and the weight of those rows (law 1).

Only the training loop divides, by the count of a whole optimiser step. So accumulating 8 × 1, 4 × 2 or 1 × 8 rows gives one
and the same gradient, a ragged last batch weighs what it holds, and an empty batch adds nothing where a mean would be NaN.

Per row, with logits z, classes c, p = softmax(z) (or sigmoid for multi-label), class weights w (1 when there are none):

cross-entropy   class y: ``-w_y log p_y``, count ``w_y``. Label smoothing e (Szegedy et al., CVPR 2016, as torch defines it with
                weights): ``-(1-e) w_y log p_y - e/C sum_c w_c log p_c``. Soft labels t (mixup): ``-sum_c w_c t_c log p_c``, count 1.
bce             the mean over the labels of ``-w_c [t_c log p_c + (1-t_c) log(1-p_c)]``, count 1
focal           cross-entropy or bce with each ``log p`` times ``(1-p)^gamma``, which turns down rows that are already right
                (Lin et al., "Focal loss for dense object detection", ICCV 2017); gamma 0 is cross-entropy or bce itself
mse             ``(z - y)^2``, count 1

``sum / count`` equals torch's own mean, also with class weights. All is computed in float32, whatever the logits are (float64
stays float64). A row counts nothing and gets no gradient when its label is -100 (class, multi-label: the whole row) or NaN
(number, where -100 is a number like any other).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from frostline.data.dataset import Schema
from frostline.recipe import TrainRecipe
from frostline.tasks.task import LossOptions

IGNORED = -100
"""The label of a row that does not count, as in torch."""

_AUTO = {"class": "cross-entropy", "multi-label": "bce", "number": "mse", "tags": "cross-entropy", "none": "cross-entropy"}
_FITTING = {
    "class": ("cross-entropy", "focal"),
    "multi-label": ("bce", "focal"),
    "number": ("mse",),
    "tags": ("cross-entropy",),
    "none": ("cross-entropy",),
}
_OF_TASK = {
    "preference": ("dpo", "ipo", "orpo", "kto", "simpo"),
    "reward": ("bradley-terry",),
    "embedding": ("contrastive", "cosine", "triplet"),
}
"""Losses of tasks whose rows have no label; the first is what auto means. They are in the tasks' own files."""
_BETA = {"dpo": 0.1, "ipo": 0.1, "orpo": 0.1, "kto": 0.1, "simpo": 2.0}
"""What ``beta`` is when it is not given: as in the papers."""
_SMOOTHED = {"cross-entropy": 1.0, "dpo": 0.5}
"""The losses that know label smoothing, and what it must stay below: half the pairs the wrong way round teach nothing."""

SumAndCount = tuple[torch.Tensor, torch.Tensor]


def loss(logits: torch.Tensor, labels: torch.Tensor, options: LossOptions) -> SumAndCount:
    """The sum of the rows' losses and their weight, both scalars, for the loss that the recipe names."""
    logits, labels = _counted_rows(_at_least_float32(logits), labels, options.schema.target)
    weights = None if options.class_weights is None else options.class_weights.to(logits)
    return _LOSSES[loss_name(options.recipe, options.schema)](logits, labels, weights, options)


def loss_name(recipe: TrainRecipe, schema: Schema) -> str:
    """The recipe's loss, with ``auto`` resolved by what a label is.

    >>> loss_name(TrainRecipe(), Schema(task="text-classification", target="number"))
    'mse'
    """
    if recipe.loss != "auto":
        return recipe.loss
    return _OF_TASK[schema.task][0] if schema.task in _OF_TASK else _AUTO[schema.target]


def beta_of(recipe: TrainRecipe, schema: Schema) -> float:
    """The recipe's beta, or the loss's own."""
    return _BETA[loss_name(recipe, schema)] if recipe.beta is None else recipe.beta


def loss_conflicts(recipe: TrainRecipe, schema: Schema) -> list[str]:
    """Settings of the loss that exclude each other, each as one message; empty when all is well."""
    name = loss_name(recipe, schema)
    found = []
    fitting = _OF_TASK.get(schema.task, _FITTING[schema.target])
    if name not in fitting:
        of = f"data.task {schema.task!r}" if schema.task in _OF_TASK else f"data.target {schema.target!r}"
        found.append(f"train.loss: {name!r} does not fit {of}, expected {' or '.join(fitting)}. Use: train.loss=auto")
    found += _smoothing_conflicts(recipe, name)
    if recipe.label_smoothing and name == "cross-entropy" and schema.target == "none":
        found.append(
            f"train.label_smoothing: {recipe.label_smoothing!r} is not for tokens of a vocabulary, and data.task is {schema.task!r}. "
            "Use: train.label_smoothing=0"
        )
    if recipe.class_weights != "none" and (schema.target in ("number", "none") or schema.task in _OF_TASK):
        what = "data.target is 'number'" if schema.target == "number" else f"data.task is {schema.task!r}"
        found.append(f"train.class_weights: {recipe.class_weights!r} needs classes, and {what}. Use: train.class_weights=none")
    if name == "focal" and recipe.focal_gamma < 0:
        found.append(
            f"train.focal_gamma: {recipe.focal_gamma!r} would favour what is already right, expected 0 or more. Use: train.focal_gamma=2"
        )
    return [*found, *_preference_conflicts(recipe, name), *_temperature_conflicts(recipe, name)]


def _smoothing_conflicts(recipe: TrainRecipe, name: str) -> list[str]:
    found = []
    if not 0 <= recipe.label_smoothing < 1:
        found.append(
            f"train.label_smoothing: {recipe.label_smoothing!r} is not a share, expected 0 or more and below 1. "
            "Use: train.label_smoothing=0.1"
        )
    elif recipe.label_smoothing and name not in _SMOOTHED:
        known = "dpo" if name in _BETA else "cross-entropy"
        found.append(
            f"train.label_smoothing: {recipe.label_smoothing!r} has a meaning for {known} only, and the loss is {name!r}. "
            "Use: train.label_smoothing=0"
        )
    elif recipe.label_smoothing >= _SMOOTHED.get(name, 1.0):
        found.append(
            f"train.label_smoothing: {recipe.label_smoothing!r} of the pairs the wrong way round, expected below {_SMOOTHED[name]} "
            f"for {name}. Use: train.label_smoothing=0.1"
        )
    return found


def _preference_conflicts(recipe: TrainRecipe, name: str) -> list[str]:
    found = []
    if recipe.beta is not None and name not in _BETA:
        found.append(f"train.beta got {recipe.beta!r}, which only {', '.join(_BETA)} read, and the loss is {name!r}. Remove train.beta")
    elif recipe.beta is not None and not 0 < recipe.beta < float("inf"):
        found.append(f"train.beta got {recipe.beta!r}, expected more than 0. Use: train.beta={_BETA[name]}")
    if recipe.margin != TrainRecipe().margin and name not in ("simpo", "triplet"):
        reader = "triplet" if name in _OF_TASK["embedding"] else "simpo"
        found.append(
            f"train.margin got {recipe.margin!r}, which only {reader} reads, and the loss is {name!r}. Remove train.margin, or use: "
            f"train.loss={reader}"
        )
    return found


def _temperature_conflicts(recipe: TrainRecipe, name: str) -> list[str]:
    if recipe.temperature != TrainRecipe().temperature and name != "contrastive":
        found = f"train.temperature got {recipe.temperature!r}, which only contrastive reads, and the loss is {name!r}"
        return [f"{found}. Remove train.temperature"]
    if not 0 < recipe.temperature < float("inf"):
        return [f"train.temperature got {recipe.temperature!r}, expected more than 0. Use: train.temperature=0.05"]
    return []


def balanced_weights(labels: np.ndarray | torch.Tensor, classes: int) -> torch.Tensor:
    """Float32 (classes,): ``rows / (classes × rows of the class)``, as scikit-learn's "balanced"; 1 for a class without rows.

    ``labels``: class indices (rows,), or several labels as zeros and ones (rows, classes).

    >>> balanced_weights(torch.tensor([0, 0, 0, 1]), 2).tolist()
    [0.66..., 2.0]
    """
    labels = torch.as_tensor(labels)
    if labels.ndim == 1:
        labels = labels[labels != IGNORED].long()
        counts = torch.bincount(labels, minlength=classes)
    else:
        labels = labels[labels[:, 0] != IGNORED]
        counts = labels.sum(dim=0)
    weights = len(labels) / (classes * counts.double().clamp_min(1))
    return torch.where(counts > 0, weights, 1.0).float()


def _at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _counted_rows(logits: torch.Tensor, labels: torch.Tensor, target: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Drop the rows that do not count: multiplied by zero instead, a logit of infinity in one of them would still give NaN."""
    if target == "number":
        # (rows,) against (rows, 1) would broadcast to (rows, rows) without a word.
        labels = labels.reshape(logits.shape)
        counted = ~labels.isnan().any(dim=1)
    else:
        counted = (labels if labels.ndim == 1 else labels[:, 0]) != IGNORED
    return (logits, labels) if bool(counted.all()) else (logits[counted], labels[counted])


def _weight_of_rows(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """As torch's weighted mean divides: by the weights of the labels, but by the rows where labels are soft."""
    if weights is None or labels.is_floating_point():
        return logits.new_tensor(len(labels))
    return weights[labels].sum()


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None, options: LossOptions) -> SumAndCount:
    labels = labels.to(logits.dtype) if labels.is_floating_point() else labels
    total = F.cross_entropy(logits, labels, weights, reduction="sum", label_smoothing=options.recipe.label_smoothing)
    return total, _weight_of_rows(logits, labels, weights)


def _bce(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None, options: LossOptions) -> SumAndCount:
    total = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), weights, reduction="sum")
    return total / logits.shape[1], logits.new_tensor(len(logits))


def _mse(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None, options: LossOptions) -> SumAndCount:
    return F.mse_loss(logits, labels.to(logits.dtype), reduction="sum") / logits.shape[1], logits.new_tensor(len(logits))


def _focal(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None, options: LossOptions) -> SumAndCount:
    gamma = options.recipe.focal_gamma
    if options.schema.target == "multi-label":
        on, off = _turned_down(F.logsigmoid(logits), gamma), _turned_down(F.logsigmoid(-logits), gamma)
        labels = labels.to(logits.dtype)
        terms = labels * on + (1 - labels) * off
        terms = terms if weights is None else terms * weights
        return -terms.sum() / logits.shape[1], logits.new_tensor(len(logits))
    terms = _turned_down(F.log_softmax(logits, dim=1), gamma)
    terms = terms if weights is None else terms * weights
    if labels.is_floating_point():
        return -(labels.to(logits.dtype) * terms).sum(), logits.new_tensor(len(logits))
    return -terms.gather(1, labels[:, None]).sum(), _weight_of_rows(logits, labels, weights)


def _turned_down(log_p: torch.Tensor, gamma: float) -> torch.Tensor:
    """``(1-p)^gamma log p``. The clamp keeps the power's gradient finite at p = 1 for a gamma below 1, where it is infinite × 0."""
    return (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny) ** gamma * log_p


_LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, LossOptions], SumAndCount]] = {
    "cross-entropy": _cross_entropy,
    "bce": _bce,
    "mse": _mse,
    "focal": _focal,
}
