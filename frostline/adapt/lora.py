"""LoRA (Hu et al., "LoRA: low-rank adaptation of large language models", ICLR 2022) for linear layers and convolutions.

A target's weight W stays as it is; beside it learns an update of rank r:

    y = W x + (alpha / r) · B A dropout(x)

A is drawn (Kaiming uniform), B begins at zero, so the network begins as the base it adapts. A convolution's A has the base's
kernel, stride and padding, and its B is a 1×1 convolution; a grouped one has a pair per group, of a rank no larger than the
group's outputs, so that the update always folds into W. The wrapper stands around its target from outside: the base is the
very module that was there. Its ``weight`` is the folded weight, so code that reads a layer's weight instead of calling the
layer (``nn.MultiheadAttention``, the fast path of ``nn.TransformerEncoderLayer``) computes the same.

Names are ``TARGET.base.*``, ``TARGET.lora_A`` and ``TARGET.lora_B``, which map one to one to those of PEFT's format.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from frostline.adapt.freeze import freeze
from frostline.data.randomness import integer_seed
from frostline.errors import ModelError
from frostline.models.model import Model
from frostline.recipe import AdaptRecipe

LEARNING = ("lora_A", "lora_B")
LARGEST_RANK = 4096
"""Settings may come from a file, and memory is taken by them."""


def check(model: Model, recipe: AdaptRecipe) -> None:
    """Raises ModelError for a rank or dropout out of range, targets that match nothing, or other settings than are in place."""
    settings = settings_of(model, recipe)
    _check_numbers(settings)
    present = model.card.arguments.get("adapt")
    if present is not None and any(present.get(key) != settings[key] for key in settings if key != "seed"):
        raise ModelError(
            f"adapt: got lora with {_brief(settings)}, but the model {model.card.name!r} already holds lora with {_brief(present)}. "
            "Load the model anew, or fold what it holds with frostline.adapt.lora.merge(model.module)"
        )


def apply(model: Model, recipe: AdaptRecipe, seed: int) -> None:
    """Wrap the targets, freeze all but the updates and the head, and note the settings in the card."""
    if "adapt" not in model.card.arguments:
        settings = settings_of(model, recipe, seed)
        inject(model.module, settings)
        model.card.arguments["adapt"] = settings
    freeze(model.module, lambda name: model.in_head(name) or name.rpartition(".")[2] in LEARNING)


def settings_of(model: Model, recipe: AdaptRecipe, seed: int = 0) -> dict[str, Any]:
    """Plain JSON values with the targets' full names: what :func:`inject` takes, now and when a saved model is built again."""
    targets = _match(model, recipe.targets)
    return {"method": "lora", "rank": recipe.rank, "alpha": recipe.alpha, "dropout": recipe.dropout, "targets": targets, "seed": seed}


def inject(module: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """Wrap ``settings["targets"]``; returns ``module``. Raises ModelError where the settings do not fit the module.

    What A begins as depends on the seed and the target's name alone.
    """
    _check_numbers(settings)
    known = dict(module.named_modules(remove_duplicate=False))
    wrappers: dict[nn.Module, Lora] = {}  # a module that stands in two places is wrapped once
    for name in settings["targets"]:
        base = known.get(name)
        if base is None or not _is_target(base):
            found = "no such module" if base is None else type(base).__name__
            raise ModelError(
                f"adapt.targets: {name!r} is {found}, expected a linear layer or a convolution. Load the weights that fit the adapter"
            )
        if base not in wrappers:
            generator = torch.Generator().manual_seed(integer_seed(settings["seed"], 0, 0, f"lora {name}"))
            wrappers[base] = _wrap(base, settings, generator)
    for name in settings["targets"]:
        parent, _, child = name.rpartition(".")
        setattr(known[parent], child, wrappers[known[name]])
    return module


def merge(module: nn.Module) -> None:
    """Fold every update into its base's weight and put the base back; the outputs are the same to rounding. Not reversible."""
    parts = list(module.modules())
    for wrapper in (part for part in parts if isinstance(part, Lora)):
        with torch.no_grad():
            wrapper.base.weight.copy_(wrapper.weight)
    for parent in parts:
        for name, child in list(parent._modules.items()):  # named_children would leave out a module's second place
            if isinstance(child, Lora):
                setattr(parent, name, child.base)


class Lora(nn.Module):
    """A target and its update; subclasses say how the update is computed and what it adds to the weight."""

    base: Any
    lora_A: nn.Parameter
    lora_B: nn.Parameter

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float):
        super().__init__()
        self.base = base
        self.scaling = alpha / rank
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scaling * self.update(self.dropout(x))

    def update(self, x: Tensor) -> Tensor:
        """B A x."""
        raise NotImplementedError

    def delta(self) -> Tensor:
        """B A in the shape of the base's weight."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The folded weight."""
        return self.base.weight + self.scaling * self.delta()

    @property
    def bias(self) -> Tensor | None:
        """The base's bias."""
        return self.base.bias

    def _draw(self, a: tuple[int, ...], b: tuple[int, ...], generator: torch.Generator | None) -> None:
        weight = self.base.weight
        self.lora_A = nn.Parameter(torch.empty(a, dtype=weight.dtype))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5), generator=generator)
        self.lora_B = nn.Parameter(torch.zeros(b, dtype=weight.dtype))
        self.to(weight.device)


class LoRALinear(Lora):
    """Around ``nn.Linear``, or around the ``Conv1D`` of GPT-2, a linear layer whose weight is stored transposed."""

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float, generator: torch.Generator | None = None):
        super().__init__(base, rank, alpha, dropout)
        self.transposed = not isinstance(base, nn.Linear)
        outputs, inputs = reversed(self.base.weight.shape) if self.transposed else self.base.weight.shape
        self._draw((rank, inputs), (outputs, rank), generator)

    def update(self, x: Tensor) -> Tensor:
        return functional.linear(functional.linear(x, self.lora_A), self.lora_B)

    def delta(self) -> Tensor:
        delta = self.lora_B @ self.lora_A
        return delta.T if self.transposed else delta


class LoRAConv(Lora):
    """Around ``nn.Conv1d`` or ``nn.Conv2d``."""

    def __init__(self, base: nn.Conv1d | nn.Conv2d, rank: int, alpha: float, dropout: float, generator: torch.Generator | None = None):
        super().__init__(base, rank, alpha, dropout)
        outputs, inputs, *kernel = base.weight.shape  # inputs: of one group
        if base.groups > 1:
            rank = min(rank, outputs // base.groups)
        self._draw((base.groups * rank, inputs, *kernel), (outputs, rank, *[1] * len(kernel)), generator)

    def update(self, x: Tensor) -> Tensor:
        # The base's own _conv_forward, since its padding mode and its padding "same" have to hold for A too.
        hidden = self.base._conv_forward(x, self.lora_A, None)
        pointwise = functional.conv2d if self.lora_B.dim() == 4 else functional.conv1d
        return pointwise(hidden, self.lora_B, groups=self.base.groups)

    def delta(self) -> Tensor:
        groups = self.base.groups
        a = self.lora_A.reshape(groups, -1, math.prod(self.lora_A.shape[1:]))  # (groups, rank, inputs × kernel)
        b = self.lora_B.reshape(groups, -1, self.lora_B.shape[1])  # (groups, outputs of a group, rank)
        return (b @ a).reshape(self.base.weight.shape)


def _wrap(base: nn.Module, settings: Mapping[str, Any], generator: torch.Generator) -> Lora:
    numbers = (settings["rank"], settings["alpha"], settings["dropout"], generator)
    wrapper = LoRAConv(base, *numbers) if isinstance(base, nn.Conv1d | nn.Conv2d) else LoRALinear(base, *numbers)
    wrapper.train(base.training)
    return wrapper


def _is_target(module: nn.Module) -> bool:
    kind = type(module)
    transposed = kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"  # named, to leave transformers unimported
    return transposed or isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)


def _match(model: Model, targets: list[str]) -> list[str]:
    """Full names of the modules that the names and globs mean; wrapped ones count as what they wrap."""
    known = []
    for name, part in model.module.named_modules(remove_duplicate=False):
        parent = name.rpartition(".")[0]
        inside = parent and isinstance(model.module.get_submodule(parent), Lora)
        if name and not inside and not model.in_head(name) and (isinstance(part, Lora) or _is_target(part)):
            known.append(name)
    for target in targets:
        if not any(_matches(name, target) for name in known):
            raise ModelError(
                f"adapt.targets: got {target!r}, which is no linear layer or convolution outside the head. {_near(target, known)}"
            )
    chosen = [name for name in known if not targets or any(_matches(name, target) for target in targets)]
    if not chosen:
        raise ModelError(
            f"adapt: got 'lora', but the model {model.card.name!r} has no linear layer or convolution outside its head. Use: adapt=full"
        )
    return chosen


def _matches(name: str, target: str) -> bool:
    return fnmatch.fnmatchcase(name, target) or fnmatch.fnmatchcase(name, f"*.{target}")


def _near(target: str, known: list[str]) -> str:
    last = list(dict.fromkeys(name.rpartition(".")[2] for name in known))
    near = difflib.get_close_matches(target, known, 3, 0.5) + difflib.get_close_matches(target.rpartition(".")[2], last, 3, 0.5)
    return f"Near it: {', '.join(dict.fromkeys(near))}" if near else f"Targets of this model end in: {', '.join(last[:12])}"


def _check_numbers(settings: Mapping[str, Any]) -> None:
    rank, alpha, dropout = (settings.get(key) for key in ("rank", "alpha", "dropout"))
    if not isinstance(rank, int) or not 1 <= rank <= LARGEST_RANK:
        raise ModelError(f"adapt.rank: got {rank!r}, expected a whole number from 1 to {LARGEST_RANK}. Use: adapt.rank=8")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ModelError(f"adapt.alpha: got {alpha!r}, expected a number. Use: adapt.alpha=16")
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ModelError(f"adapt.dropout: got {dropout!r}, expected a share from 0 to below 1. Use: adapt.dropout=0.0")


def _brief(settings: Mapping[str, Any]) -> str:
    numbers = ", ".join(f"{key} {settings.get(key)!r}" for key in ("rank", "alpha", "dropout"))
    return f"{numbers} on {len(settings.get('targets', []))} targets"
