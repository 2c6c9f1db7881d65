"""Bottleneck adapters: a small network beside or behind what is frozen.

    A(h) = U relu(D h + b) + c        D: bottleneck × width, U begins at zero, so the network begins as its base

houlsby    y = h + A(h) behind attention and behind the feed-forward part (Houlsby et al., "Parameter-efficient transfer learning
           for NLP", ICML 2019), before the residual connection: around the last linear layer of each
pfeiffer   the same behind the feed-forward part alone (Pfeiffer et al., "AdapterFusion", EACL 2021): half as many, about as good
parallel   y = h + 4 · A(x), with x what enters the feed-forward part (He et al., "Towards a unified view of parameter-efficient
           transfer learning", ICLR 2022)

Where the parts end is known by the names that families of Transformers give these layers; ``targets`` names them for others.
With ``parallel``, x is seen at the feed-forward part's first layer, which may stand in another module (as in BERT) than the last.
"""

from __future__ import annotations

import math
from dataclasses import replace as replaced
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from frostline.adapt.settings import install, refuse_another
from frostline.adapt.targets import (
    check_modules_to_save,
    is_linear,
    known_targets,
    match,
    matches,
    near,
    read_targets,
    read_whole,
)
from frostline.adapt.wrapper import Wrapper, is_transposed, replace
from frostline.data.randomness import integer_seed
from frostline.errors import ModelError
from frostline.models.model import Model
from frostline.recipe import AdaptRecipe

ATTENTION = ("attention.output.dense", "o_proj", "out_proj", "o", "out_lin", "attn.c_proj", "attention.dense")
FEEDFORWARD = {
    "down_proj": "up_proj", "wo": "wi", "fc2": "fc1", "lin2": "lin1", "linear2": "linear1", "w2": "w1", "mlp.c_proj": "mlp.c_fc",
    "dense_4h_to_h": "dense_h_to_4h", "down": "up", "output.dense": "intermediate.dense",
}  # fmt: skip
"""The last linear layer of a feed-forward part, and its first, by the ends of their names."""
PARALLEL_SCALE = 4.0
"""He et al.'s scale."""


def check(model: Model, recipe: AdaptRecipe) -> None:
    """Raises ModelError for a width out of range, targets that match nothing, or another adapter in place."""
    settings = _settings(model, recipe, 0)
    read_whole(settings, "bottleneck")
    check_modules_to_save(model, recipe)
    refuse_another(model, settings)


def apply(model: Model, recipe: AdaptRecipe, seed: int) -> None:
    """Put the adapters in place and freeze all but them and the head."""
    install(model, recipe, inject, _settings(model, recipe, seed))


def inject(module: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """Wrap ``settings["targets"]``; returns ``module``. Raises ModelError where the settings do not fit the module."""
    bases, width = read_targets(module, settings, is_linear, "linear layer"), read_whole(settings, "bottleneck")
    entries, seed = settings.get("entries", {}), settings.get("seed")
    if not isinstance(entries, dict) or not set(entries) <= set(bases) or type(seed) is not int:
        raise ModelError(f"adapt: got the entries {entries!r} and the seed {seed!r}, expected names. Load the weights that fit the adapter")
    firsts = read_targets(module, {"targets": list(entries.values())}, is_linear, "linear layer")
    for name, base in bases.items():
        generator = torch.Generator().manual_seed(integer_seed(seed, 0, 0, f"adapter {name}"))
        if name not in entries:
            replace(module, name, Bottleneck(base, width, generator).train(base.training))
            continue
        entry = Entry(firsts[entries[name]], width, generator)
        replace(module, entries[name], entry.train(base.training))
        replace(module, name, Exit(base, entry).train(base.training))
    return module


class _Half(Wrapper):
    """What the wrappers here share. No weight can take them up."""

    FOLDS = False

    def draw_down(self, inputs: int, width: int, generator: torch.Generator) -> None:
        """D and b."""
        self.adapter_down = nn.Parameter(torch.empty(width, inputs))
        nn.init.kaiming_uniform_(self.adapter_down, a=math.sqrt(5), generator=generator)
        self.adapter_down_bias = nn.Parameter(torch.zeros(width))

    def draw_up(self, outputs: int, width: int) -> None:
        """U and c."""
        self.adapter_up = nn.Parameter(torch.zeros(outputs, width))
        self.adapter_up_bias = nn.Parameter(torch.zeros(outputs))

    def down(self, hidden: Tensor) -> Tensor:
        """relu(D h + b)."""
        return functional.relu(functional.linear(hidden, self.adapter_down, self.adapter_down_bias))

    def up(self, inner: Tensor) -> Tensor:
        """U z + c."""
        return functional.linear(inner, self.adapter_up, self.adapter_up_bias)

    @property
    def weight(self) -> Tensor:
        """The base's: code that reads it goes past the adapter, and is refused by :func:`check`."""
        return self.base.weight


class Bottleneck(_Half):
    """A linear layer with a small network behind it."""

    LEARNING = ("adapter_down", "adapter_down_bias", "adapter_up", "adapter_up_bias")

    def __init__(self, base: nn.Module, width: int, generator: torch.Generator):
        super().__init__(base)
        outputs = _shape(base)[0]
        self.draw_down(outputs, width, generator)
        self.draw_up(outputs, width)
        self.to(self.base.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.base(x)
        return hidden if self.off else hidden + self.up(self.down(hidden))


class Entry(_Half):
    """The first layer of a feed-forward part, and the first half of the network beside the part.

    It holds what learns there, so that whatever looks for the frozen part of a network finds that this is none of it.
    """

    LEARNING = ("adapter_down", "adapter_down_bias")

    def __init__(self, base: nn.Module, width: int, generator: torch.Generator):
        super().__init__(base)
        self.draw_down(_shape(base)[1], width, generator)
        self.inner: Tensor | None = None
        self.to(self.base.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        self.inner = None if self.off else self.down(x)
        return self.base(x)


class Exit(_Half):
    """The last layer of a feed-forward part, and the second half."""

    LEARNING = ("adapter_up", "adapter_up_bias")

    def __init__(self, base: nn.Module, entry: Entry):
        super().__init__(base)
        object.__setattr__(self, "entry", entry)  # registered once, where it stands
        self.draw_up(_shape(base)[0], len(entry.adapter_down))
        self.to(self.base.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.base(x)
        entry: Entry = self.entry  # type: ignore[assignment]
        inner, entry.inner = entry.inner, None
        if self.off:
            return hidden
        assert inner is not None, "the feed-forward part's last layer was called before its first"
        return hidden + PARALLEL_SCALE * self.up(inner)


def _shape(layer: Any) -> tuple[int, int]:
    """Outputs and inputs."""
    outputs, inputs = reversed(layer.weight.shape) if is_transposed(layer) else layer.weight.shape
    return outputs, inputs


def _settings(model: Model, recipe: AdaptRecipe, seed: int) -> dict[str, Any]:
    known = known_targets(model, recipe, is_linear)
    if not recipe.targets:
        usual = [*FEEDFORWARD, *(ATTENTION if recipe.placement == "houlsby" else ())]
        found = [name for name in known if any(matches(name, end) for end in usual)]
        if recipe.placement != "houlsby":  # BERT's attention ends in output.dense too
            found = [name for name in found if not any(matches(name, end) for end in ATTENTION)]
        if not found:
            raise ModelError(
                f"adapt: got 'adapter', but no ends of attention or feed-forward parts are known by name in the model "
                f"{model.card.name!r}. Name them: adapt.targets=…; {near('', known)}"
            )
        recipe = replaced(recipe, targets=found)
    targets = match(model, recipe, is_linear, "linear layer")
    _refuse_read_weights(model, targets)
    entries = {name: _entry(name, known) for name in targets} if recipe.placement == "parallel" else {}
    return {"method": "adapter", "bottleneck": recipe.bottleneck, "targets": targets, "entries": entries, "seed": seed}


def _entry(last: str, known: dict[str, nn.Module]) -> str:
    """The first layer of the feed-forward part that ends in ``last``."""
    for end, first in FEEDFORWARD.items():
        if not matches(last, end):
            continue
        before = last.removesuffix(end)
        found = [name for name in known if name.startswith(f"{before}{first}")]
        if found:
            return found[0]
    raise ModelError(
        f"adapt.placement: got 'parallel', but the first layer of the feed-forward part that ends in {last!r} is not known by name. "
        "Use: adapt.placement=pfeiffer"
    )


def _refuse_read_weights(model: Model, targets: list[str]) -> None:
    """Some of torch's own layers read their weights and never call them: an adapter there would learn nothing."""
    for name in targets:
        if name == model.output:
            raise ModelError(
                f"adapt.targets: got {name!r}, the output layer, whose weight the loss reads without calling it, expected a layer that is "
                "called. Use: adapt=lora, or leave it out"
            )
        parent = model.module.get_submodule(name.rpartition(".")[0])
        if isinstance(parent, nn.MultiheadAttention | nn.TransformerEncoderLayer):
            raise ModelError(
                f"adapt.targets: {name!r} lies in torch's own {type(parent).__name__}, which reads the layer's weight and does not call "
                "it, expected a layer that is called. Use: adapt=lora"
            )
