"""IA³ (Liu et al., "Few-shot parameter-efficient fine-tuning is better and cheaper than in-context learning", NeurIPS 2022).

Each target learns one vector l that begins at one: keys and values are scaled after the layer, and what stands between the two
layers of a feed-forward part is scaled before the second:

    y = l ⊙ (W x + b)          y = W (l ⊙ x) + b   for the layers in ``feedforward``

Both fold into W (and b). Without ``targets`` the keys, values and second feed-forward layers are found by the names that the
families of Transformers give them, those that PEFT lists. Without ``feedforward`` the targets with the names of second feed-forward
layers are those, whether ``targets`` named them, a glob or ``all-linear`` did; so does PEFT.
"""

from __future__ import annotations

from dataclasses import replace as replaced
from typing import Any

import torch
from torch import Tensor, nn

from frostline.adapt.settings import in_place, install, refuse_another
from frostline.adapt.targets import (
    ALL_LINEAR,
    check_modules_to_save,
    is_convolution,
    is_linear,
    known_targets,
    match,
    matches,
    near,
    read_targets,
)
from frostline.adapt.wrapper import Wrapper, is_transposed, replace
from frostline.errors import ModelError
from frostline.models.model import Model
from frostline.recipe import AdaptRecipe

ATTENTION = ("k", "v", "key", "value", "k_proj", "v_proj", "key_proj", "value_proj", "k_lin", "v_lin", "query_key_value", "c_attn")
FEEDFORWARD = ("down_proj", "wo", "fc2", "lin2", "linear2", "w2", "mlp.c_proj", "output.dense", "dense_4h_to_h", "down")
_WHAT = "linear layer or convolution"


def check(model: Model, recipe: AdaptRecipe) -> None:
    """Raises ModelError for targets that match nothing, feed-forward ones that are no targets, or another adapter in place."""
    settings = _settings(model, recipe)
    check_modules_to_save(model, recipe)
    refuse_another(model, settings)


def apply(model: Model, recipe: AdaptRecipe, seed: int) -> None:
    """Wrap the targets and freeze all but the vectors and the head."""
    install(model, recipe, inject, _settings(model, recipe))


def inject(module: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """Wrap ``settings["targets"]``; returns ``module``. Raises ModelError where the settings do not fit the module."""
    bases = read_targets(module, settings, is_target, _WHAT)
    before = settings.get("feedforward")
    if not isinstance(before, list) or not all(isinstance(name, str) and name in bases for name in before):
        raise ModelError(f"adapt.feedforward: got {before!r}, expected names out of the targets. Load the weights that fit the adapter")
    made: dict[nn.Module, IA3] = {}
    for name, base in bases.items():
        if base not in made:
            made[base] = IA3(base, scales_input=name in before).train(base.training)  # type: ignore[assignment]
        replace(module, name, made[base])
    return module


class IA3(Wrapper):
    """A layer whose output, or input, is scaled."""

    LEARNING = ("ia3_l",)

    def __init__(self, base: nn.Module, scales_input: bool):
        super().__init__(base)
        self.scales_input = scales_input
        weight: Tensor = self.base.weight
        outputs, inputs = reversed(weight.shape) if is_transposed(base) else weight.shape[:2]
        if is_convolution(base):
            inputs *= self.base.groups
            shape = (1, inputs if scales_input else outputs, *[1] * (weight.dim() - 2))
        else:
            shape = (1, inputs) if scales_input else (outputs, 1)  # as PEFT stores them
        self.ia3_l = nn.Parameter(torch.ones(shape, device=weight.device))

    def forward(self, x: Tensor) -> Tensor:
        if self.off:
            return self.base(x)
        scale = self.ia3_l if is_convolution(self.base) else self.ia3_l.flatten()
        return self.base(x * scale) if self.scales_input else self.base(x) * scale

    @property
    def weight(self) -> Tensor:
        """The folded weight."""
        weight, scale = self.base.weight, self.ia3_l
        if self.off:
            return weight
        if is_convolution(self.base):
            if not self.scales_input:
                return weight * scale.transpose(0, 1)
            groups = self.base.groups
            per_group = scale.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))  # (groups, 1, inputs of a group, 1, 1)
            return (weight.reshape(groups, -1, *weight.shape[1:]) * per_group).reshape(weight.shape)
        return weight * (scale.T if is_transposed(self.base) else scale)

    @property
    def bias(self) -> Tensor | None:
        """The folded bias: an output that is scaled takes its bias along."""
        bias = self.base.bias
        return bias if bias is None or self.off or self.scales_input else bias * self.ia3_l.flatten()


def is_target(module: nn.Module) -> bool:
    """What IA³ can stand around."""
    return is_linear(module) or is_convolution(module)


def _settings(model: Model, recipe: AdaptRecipe) -> dict[str, Any]:
    known = known_targets(model, recipe, is_target)
    if not recipe.targets:
        usual = [name for name in (*ATTENTION, *FEEDFORWARD) if any(matches(target, name) for target in known)]
        if not usual:
            raise ModelError(
                f"adapt: got 'ia3', but no keys, values or feed-forward layers are known by name in the model {model.card.name!r}. "
                f"Name them: adapt.targets=…; {near('', known)}"
            )
        recipe = replaced(recipe, targets=usual)
    targets = match(model, recipe, is_target, _WHAT)
    return {"method": "ia3", "targets": targets, "feedforward": _feedforward(model, recipe, targets)}


def _feedforward(model: Model, recipe: AdaptRecipe, targets: list[str]) -> list[str]:
    """Those of the targets whose input is scaled: the ones that the recipe means, else those of an adapter in place, else by name."""
    present = in_place(model) or {}
    if not recipe.feedforward and present.get("method") == "ia3" and present.get("targets") == targets:
        return present["feedforward"]
    known = {name: model.module.get_submodule(name) for name in targets}
    for name in recipe.feedforward:
        if not any(_means(model, name, target, part) for target, part in known.items()):
            raise ModelError(f"adapt.feedforward: got {name!r}, which is none of the targets. {near(name, targets)}")
    wanted = recipe.feedforward or FEEDFORWARD
    return [target for target, part in known.items() if any(_means(model, name, target, part) for name in wanted)]


def _means(model: Model, wanted: str, target: str, part: nn.Module) -> bool:
    if wanted == ALL_LINEAR:
        return is_linear(part.base if isinstance(part, Wrapper) else part) and target != model.output
    return matches(target, wanted)
