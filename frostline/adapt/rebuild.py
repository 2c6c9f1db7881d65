"""A saved model's adapters put back: the layers that the settings in its card describe, for the weights that are read afterwards.

The settings come from a file. They name one of the methods below and give it plain values, each checked before memory is taken
by it (law 11); no expression, class or path of theirs is used.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from frostline.adapt import adapter, ia3, lora, parked, peft_config, prefix, prompt, vera
from frostline.adapt.quantize import quantize
from frostline.errors import ModelError

_METHODS: dict[str, Any] = {
    "lora": lora, "vera": vera, "ia3": ia3, "adapter": adapter, "prefix": prefix, "prompt": prompt, "p-tuning": prompt, "peft": peft_config,
}  # fmt: skip


def rebuild(module: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """Put the adapter of ``card.arguments["adapt"]`` in place; returns ``module``. Raises ModelError where the settings do not fit."""
    method = settings.get("method")
    if "base" in settings:
        names = settings.get("quantized")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ModelError(f"adapt.base: got the layers {names!r}, expected a list of names. Save the model again")
        quantize(module, names, str(settings["base"]), fill=False)
    if isinstance(method, str) and method in _METHODS:
        for key, kind in (("adapters", dict), ("active", list), ("ranks", dict), ("alphas", dict)):
            if key in settings and not isinstance(settings[key], kind):
                raise ModelError(f"adapt.{key}: got {settings[key]!r}, expected a {kind.__name__}. Save the model again")
        made: nn.Module = _METHODS[method].inject(module, settings)
        parked.inject(made, settings)
        return made
    if "base" not in settings:
        raise ModelError(f"adapt.method: got {method!r}, expected one of {', '.join(_METHODS)}. Save the model again")
    return module
