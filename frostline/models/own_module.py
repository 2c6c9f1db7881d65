"""A network that the user hands over: any ``nn.Module``, or a Keras 3 model on the torch back end."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from frostline.data.dataset import Schema
from frostline.errors import ModelError
from frostline.models.keras import from_keras_model

_IMAGE_INPUTS, _TEXT_INPUTS = ("pixel_values",), ("input_ids", "attention_mask")


class CallByPosition(nn.Module):
    """A module whose ``forward`` has argument names of its own, called with the values of ``names`` in their order."""

    def __init__(self, module: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module = module
        self.names = names

    def forward(self, **inputs: Tensor) -> Any:
        return self.module(*(inputs[name] for name in self.names))


def adopt(module: Any, schema: Schema) -> nn.Module:
    """``module`` such that it takes the task's inputs by name. Raises ModelError where it cannot."""
    if type(module).__module__.partition(".")[0] == "keras":
        return from_keras_model(module)
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"module got {type(module).__name__!r}, expected an instance of torch.nn.Module, as in fl.load(MyNet(), "
            "task=data.task, size=224)"
        )
    names = _IMAGE_INPUTS if schema.task == "image-classification" else _TEXT_INPUTS
    parameters = inspect.signature(module.forward).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters) or names[0] in {p.name for p in parameters}:
        return module
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return CallByPosition(module, names[:1])
    needed = [p for p in positional if p.default is p.empty]
    if not positional or len(needed) > len(names):
        raise ModelError(f"module {type(module).__name__!r} takes {[p.name for p in positional]!r}, expected forward({', '.join(names)})")
    # The mask only goes where forward asks for a second value: a default there means something of the module's own
    return CallByPosition(module, names[: max(1, len(needed))])
