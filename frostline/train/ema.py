"""An exponential moving average of the learning weights (Polyak & Juditsky 1992, in the form of Tarvainen & Valpola 2017).

After the t-th update (t = 0, 1, …) average ← d · average + (1 − d) · weight with d = min(decay, (1 + t) / (10 + t)), so that
the first weights are soon forgotten. The averages are what is validated and saved; training goes on with the live weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from frostline.errors import RunError


class Ema:
    """The averages by parameter name, float32 where the weights are narrower. A weight that thaws later joins as it is then."""

    averages: dict[str, Tensor]
    updates: int

    def __init__(self, module: nn.Module, decay: float):
        self.module = module
        self.decay = decay
        self.updates = 0
        self.averages = {name: _copy(parameter) for name, parameter in self._learning()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are after an optimiser step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, parameter in self._learning():
            if name in self.averages:
                self.averages[name].lerp_(parameter.to(self.averages[name].dtype), 1 - decay)
            else:
                self.averages[name] = _copy(parameter)
        self.updates += 1

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Within the block the module holds the averages; afterwards, whatever happened, exactly the weights of before."""
        parameters = dict(self.module.named_parameters())
        live = {name: parameters[name].detach().clone() for name in self.averages}
        try:
            _write(parameters, self.averages)
            yield
        finally:
            _write(parameters, live)

    def state_to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The averages by parameter name, for safetensors, and a dict for JSON."""
        return {name: average.contiguous() for name, average in self.averages.items()}, {"updates": self.updates}

    def state_from_tensors(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_to_tensors` gave. Raises RunError where a tensor fits no weight of this module."""
        parameters = dict(self.module.named_parameters())
        for name, tensor in tensors.items():
            if name not in parameters or parameters[name].shape != tensor.shape:
                raise RunError(
                    f"average {name!r}: got shape {tuple(tensor.shape)}, which fits no weight of this model. "
                    "Resume with the recipe in the run's folder"
                )
        self.averages = {name: tensor.detach().to(parameters[name].device, copy=True) for name, tensor in tensors.items()}
        self.updates = int(values["updates"])

    def _learning(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in self.module.named_parameters() if parameter.requires_grad)


def _copy(parameter: nn.Parameter) -> Tensor:
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)


@torch.no_grad()
def _write(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)
