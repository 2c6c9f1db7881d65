"""VeRA (Kopiczko, Blankevoort & Asano, "VeRA: vector-based random matrix adaptation", ICLR 2024) for linear layers.

One pair of random matrices A (r × inputs), B (outputs × r) is drawn for the whole network and frozen; each target takes as many
of their columns and rows as it needs, and learns two vectors:

    y = W x + b ⊙ B (d ⊙ A dropout(x))

b begins at zero and d at 0.1, so the network begins as the base it adapts. A rank of 256 costs what LoRA's rank 1 does. The pair
lies in the network once, as ``vera_projections``, and is saved with it, since a drawing is only as stable as torch's generator.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from frostline.adapt.settings import install, refuse_another
from frostline.adapt.targets import check_modules_to_save, is_linear, match, read_dropout, read_targets, read_whole
from frostline.adapt.wrapper import Wrapper, is_transposed, replace
from frostline.data.randomness import integer_seed
from frostline.errors import ModelError
from frostline.models.model import Model
from frostline.recipe import AdaptRecipe

PROJECTIONS = "vera_projections"
_BEGIN = 0.1


def check(model: Model, recipe: AdaptRecipe) -> None:
    """Raises ModelError for numbers out of range, targets that match nothing, or another adapter in place."""
    settings = _settings(model, recipe, 0)
    read_whole(settings, "rank")
    read_dropout(settings)
    check_modules_to_save(model, recipe)
    refuse_another(model, settings)


def apply(model: Model, recipe: AdaptRecipe, seed: int) -> None:
    """Wrap the targets and freeze all but the vectors and the head."""
    install(model, recipe, inject, _settings(model, recipe, seed))


def inject(module: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """Wrap ``settings["targets"]``; returns ``module``. Raises ModelError where the settings do not fit the module."""
    rank, dropout = read_whole(settings, "rank"), read_dropout(settings)
    bases: dict[str, Any] = read_targets(module, settings, is_linear, "linear layer")
    shapes = [_shape(base) for base in bases.values()]
    seed = settings.get("seed")
    if not isinstance(seed, int) or not shapes or hasattr(module, PROJECTIONS):
        raise ModelError(f"adapt: got vera with the seed {seed!r} on {len(shapes)} targets, expected a new adapter. Load the model anew")
    generator = torch.Generator().manual_seed(integer_seed(seed, 0, 0, "vera"))
    pair = Projections(rank, max(inputs for _, inputs in shapes), max(outputs for outputs, _ in shapes), generator)
    module.add_module(PROJECTIONS, pair.to(next(iter(bases.values())).weight.device))
    made = {base: Vera(base, pair, dropout).train(base.training) for base in bases.values()}
    for name, base in bases.items():
        replace(module, name, made[base])
    return module


class Projections(nn.Module):
    """The random pair. Parameters and not buffers, so that they count among what is frozen and are watched like it."""

    def __init__(self, rank: int, inputs: int, outputs: int, generator: torch.Generator):
        super().__init__()
        self.vera_A = nn.Parameter(torch.empty(rank, inputs), requires_grad=False)
        self.vera_B = nn.Parameter(torch.empty(outputs, rank), requires_grad=False)
        for matrix in (self.vera_A, self.vera_B):
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5), generator=generator)


class Vera(Wrapper):
    """A linear layer and its two vectors."""

    LEARNING = ("vera_lambda_b", "vera_lambda_d")

    def __init__(self, base: nn.Module, pair: Projections, dropout: float):
        super().__init__(base)
        object.__setattr__(self, "pair", pair)  # registered once, at the root
        outputs, self.inputs = _shape(base)
        self.vera_lambda_b = nn.Parameter(torch.zeros(outputs))
        self.vera_lambda_d = nn.Parameter(torch.full((len(pair.vera_A),), _BEGIN))
        self.dropout = nn.Dropout(dropout)
        self.to(base.weight.device)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        if self.off:
            return self.base(x)
        a, b = self._pair()
        hidden = self.vera_lambda_d * functional.linear(self.dropout(x), a)
        return self.base(x) + self.vera_lambda_b * functional.linear(hidden, b)

    @property
    def weight(self) -> Tensor:
        """The folded weight."""
        if self.off:
            return self.base.weight
        a, b = self._pair()
        delta = (self.vera_lambda_b[:, None] * b) @ (self.vera_lambda_d[:, None] * a)
        return self.base.weight + (delta.T if is_transposed(self.base) else delta)

    def as_product(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.off or not (self.dropout.training and self.dropout.p):
            return x, self.weight
        a, b = self._pair()
        hidden = self.vera_lambda_d * functional.linear(self.dropout(x), a)
        return torch.cat([x, hidden], dim=1), torch.cat([self.base.weight, self.vera_lambda_b[:, None] * b], dim=1)

    def _pair(self) -> tuple[Tensor, Tensor]:
        pair: Projections = self.pair  # type: ignore[assignment]
        return pair.vera_A[:, : self.inputs], pair.vera_B[: len(self.vera_lambda_b)]


def _shape(base: Any) -> tuple[int, int]:
    """Outputs and inputs."""
    outputs, inputs = reversed(base.weight.shape) if is_transposed(base) else base.weight.shape
    return outputs, inputs


def _settings(model: Model, recipe: AdaptRecipe, seed: int) -> dict[str, Any]:
    targets = match(model, recipe, is_linear, "linear layer")
    return {"method": "vera", "rank": recipe.rank, "dropout": recipe.dropout, "targets": targets, "seed": seed}
