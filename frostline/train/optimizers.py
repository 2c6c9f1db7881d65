"""The optimisers, their learning rates, and their state as plain tensors.

sgd         Sutskever et al. 2013 (momentum, Nesterov)     torch
adam        Kingma & Ba 2015; weight decay as L2           torch
adamw       Loshchilov & Hutter 2019; decoupled decay      torch
adafactor   Shazeer & Stern 2018; factored second moment   torch
rmsprop     Tieleman & Hinton 2012                         torch
muon        Jordan et al. 2024; orthogonalised momentum    torch, and AdamW beside it
lion        Chen et al. 2023; the sign of the momentum     lion-pytorch

Muon is for the 2-D weights between embedding and head; the head, embeddings, biases, norms and convolution kernels (torch's
Muon takes matrices only) learn by AdamW at a tenth of the rate, and :class:`Both` holds the two.

sgd, adam and adamw run torch's fused kernels, on a CPU two to three times as fast as its loops. These walk memory, not
indices: with weights in channels_last and a gradient or a state in the usual order they are silently wrong. A hook before each
step brings both into the weight's layout.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from frostline.errors import RecipeError, RunError, require
from frostline.recipe import TrainRecipe

MUON_TO_ADAMW = 0.1
"""An update by Muon is about a third to a tenth of AdamW's in size at equal rate (1 / √inputs against ~0.2 per weight)."""


class Both:
    """Several optimisers over disjoint parameters, used as one."""

    def __init__(self, parts: list[torch.optim.Optimizer]):
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts; the dicts are the parts' own, so a rate set here holds there."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        """One step of each part."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)


Optimizer = torch.optim.Optimizer | Both


def build_optimizer(groups: list[dict[str, Any]], recipe: TrainRecipe) -> Optimizer:
    """The recipe's optimiser over the groups of :func:`frostline.adapt.groups.parameter_groups`, whose lr and decay it keeps.

    Each group's ``initial_lr`` is its full rate, for :func:`set_rate`.
    """
    for group in groups:
        group["initial_lr"] = group["lr"]
    if recipe.optimizer == "muon":
        return _muon(groups, recipe)
    optimizer = _single(groups, recipe)
    if recipe.optimizer in ("sgd", "adam", "adamw"):
        optimizer.register_step_pre_hook(_align_layouts)
    return optimizer


def set_rate(optimizer: Optimizer, multiplier: float) -> None:
    """Set every group's rate to its full rate times ``multiplier`` (see train/schedules.py)."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * multiplier


def state_to_tensors(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state as ``{"exp_avg.NAME OF PARAMETER": tensor}`` for safetensors and a dict for JSON; an exact round trip.

    The tensors are contiguous and may share memory with the optimiser's: write them before the next step.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for part, name, parameter in _parameters(optimizer):
        for key, value in part.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{key}.{name}"] = value.detach().contiguous()
            elif value is not None:
                numbers[f"{key}.{name}"] = value
    return tensors, {"kinds": _kinds(optimizer), "numbers": numbers}


def state_from_tensors(optimizer: Optimizer, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Put back what :func:`state_to_tensors` gave, by parameter name; a parameter without state begins anew.

    So a gradual thaw builds an optimiser over more groups and hands it the state of the one before. Raises RunError where the
    state is another optimiser's, or of a parameter that this one does not have, or of another shape.
    """
    if values.get("kinds") != _kinds(optimizer):
        raise RunError(
            f"optimiser state: got that of {values.get('kinds')!r}, expected {_kinds(optimizer)!r}. "
            "Resume with the recipe in the run's folder, or begin a new run"
        )
    parameters = {name: (part, parameter) for part, name, parameter in _parameters(optimizer)}
    for full_name, value in [*tensors.items(), *values["numbers"].items()]:
        key, _, name = full_name.partition(".")
        if name not in parameters:
            raise RunError(
                f"optimiser state: got {full_name!r}, but {name!r} does not learn in this run. Resume with the recipe in the run's folder"
            )
        part, parameter = parameters[name]
        part.state[parameter][key] = _as_state(value, parameter, full_name, part) if isinstance(value, Tensor) else value


def forget(optimizer: Optimizer) -> None:
    """Give back the memory of its state and of all gradients."""
    optimizer.zero_grad()
    for part in _parts(optimizer):
        part.state.clear()


def _as_state(value: Tensor, parameter: nn.Parameter, full_name: str, part: torch.optim.Optimizer) -> Tensor:
    """A copy of its own, in the parameter's memory layout where it has the parameter's shape. It is where the parameter is, but for a count
    of steps, which fused kernels alone keep there."""
    if value.shape == parameter.shape and value.dim() > 0:
        return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
    if value.dim() not in (0, parameter.dim()) or any(side not in (1, full) for side, full in zip(value.shape, parameter.shape)):
        raise RunError(
            f"optimiser state: {full_name!r} got shape {tuple(value.shape)}, expected one for a weight of {tuple(parameter.shape)}"
        )
    return value.detach().to(parameter.device if value.dim() or part.defaults.get("fused") else "cpu", copy=True)


def _single(groups: list[dict[str, Any]], recipe: TrainRecipe) -> torch.optim.Optimizer:
    optim = torch.optim
    builders: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "sgd": lambda: _light(optim.SGD)(groups, momentum=recipe.momentum, nesterov=_nesterov(recipe), fused=True),
        "adam": lambda: _light(optim.Adam)(groups, fused=True),
        "adamw": lambda: _light(optim.AdamW)(groups, fused=True),
        "adafactor": lambda: _light(optim.Adafactor)(groups),
        "rmsprop": lambda: _light(optim.RMSprop)(groups, momentum=recipe.momentum),
        "lion": lambda: _light(require("lion_pytorch", "lion", "the optimiser lion").Lion)(groups),
    }
    return builders[recipe.optimizer]()


@functools.cache
def _light(kind: Any) -> Any:
    """The class without the wrappers that tell torch's compiler what not to look into: their first call imports it, which takes a second
    and 74 MB that stay. What they wrap is the class's own."""
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in ("add_param_group", "zero_grad")}
    return type(kind.__name__, (kind,), {**plain, "step": torch.no_grad()(inspect.unwrap(kind.step))})


def _nesterov(recipe: TrainRecipe) -> bool:
    if recipe.nesterov and recipe.momentum <= 0:
        raise RecipeError(
            f"train.nesterov: got True with momentum {recipe.momentum!r}, expected a momentum above 0. Use: train.momentum=0.9"
        )
    return recipe.nesterov


def _muon(groups: list[dict[str, Any]], recipe: TrainRecipe) -> Both:
    hidden = [group for group in groups if group["kind"] == "hidden"]
    rest = [group for group in groups if group["kind"] != "hidden"]
    if not hidden:
        raise RecipeError(
            "train.optimizer: got 'muon', but no matrix between embedding and head learns, and muon is for these alone. "
            "Use: train.optimizer=adamw"
        )
    for group in rest:
        group["lr"] = group["initial_lr"] = group["lr"] * MUON_TO_ADAMW
    parts: list[torch.optim.Optimizer] = [_light(torch.optim.Muon)(hidden, momentum=recipe.momentum)]
    if rest:
        parts.append(_light(torch.optim.AdamW)(rest, fused=True))
        parts[1].register_step_pre_hook(_align_layouts)
    return Both(parts)


def _align_layouts(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Bring gradients and state into each weight's memory layout (a no-op, and cheap, where they are)."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None or parameter.dim() < 2:
                continue
            if parameter.grad.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter).copy_(parameter.grad).detach()
            state = optimizer.state.get(parameter, {})
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                    state[key] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _parts(optimizer: Optimizer) -> list[torch.optim.Optimizer]:
    return optimizer.parts if isinstance(optimizer, Both) else [optimizer]


def _kinds(optimizer: Optimizer) -> list[str]:
    return [type(part).__name__.lower() for part in _parts(optimizer)]


def _parameters(optimizer: Optimizer) -> list[tuple[torch.optim.Optimizer, str, nn.Parameter]]:
    return [
        (part, name, parameter)
        for part in _parts(optimizer)
        for group in part.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    ]
