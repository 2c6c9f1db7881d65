"""Each adapter's own head and ``modules_to_save``, where a model holds several adapters.

Those in the network are one adapter's (``modules_of`` in the settings). The others' are parked beside the first LoRA layer, as buffers,
and change places with it when another adapter is switched on: bit for bit, and in place, so that a weight that two layers share stays
shared. A new adapter begins with what is in the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from frostline.adapt import wrapper
from frostline.adapt.lora_layers import DEFAULT, Lora
from frostline.adapt.settings import in_place
from frostline.adapt.targets import saved_modules
from frostline.adapt.wrapper import wrappers
from frostline.errors import ModelError
from frostline.models.model import Model


class Parked(nn.Module):
    """The tensors of one adapter's modules, in the order of the modules' own."""

    FROZEN_BUFFERS = True
    """They must not change while another adapter learns."""

    def __init__(self, tensors: Iterable[Tensor]):
        super().__init__()
        for index, tensor in enumerate(tensors):
            self.register_buffer(str(index), tensor.detach().clone())


def places(model: Model) -> list[str]:
    """Full names of the modules that each adapter has for itself."""
    return (in_place(model) or {}).get("modules") or saved_modules(model, model.recipe.adapt)


def module_tensors(model: Model, name: str) -> dict[str, Tensor]:
    """The tensors of an adapter's modules, in the network or parked, under the names that they have in the network."""
    live = _live(model.module, places(model))
    parking = _parking(model.module)
    return dict(zip(live, parking[name].buffers(), strict=True)) if name in parking else live


def learning_names(model: Model) -> set[str]:
    """Full names of what learns with the adapters that are on: theirs, and what is in their modules."""
    return {*wrapper.learning_names(model.module), *_live(model.module, places(model))}


def begin(model: Model, name: str, like: str | None = None) -> None:
    """A new adapter's modules: those of ``like``, else those in the network."""
    settings = in_place(model)
    assert settings is not None, "a further adapter without a first one"
    if not places(model):
        return
    settings.setdefault("modules", places(model))
    settings.setdefault("modules_of", DEFAULT)
    parking, owner = _parking(model.module), settings["modules_of"]
    for other in (*settings.get("adapters", {}), name):
        if other != owner and other not in parking:
            source = (like if other == name else None) or owner
            parking[other] = Parked(module_tensors(model, source).values())


def switch(model: Model, name: str) -> None:
    """Put an adapter's modules into the network, and park those that are there."""
    settings = in_place(model) or {}
    owner, parking = settings.get("modules_of", name), _parking(model.module)
    if owner == name:
        return
    live, own = list(_live(model.module, places(model)).values()), list(parking[name].buffers())
    before = [tensor.detach().clone() for tensor in live]
    with torch.no_grad():  # all of them first: one that stands in two places is met twice
        for pairs in (zip(live, own, strict=True), zip(own, before, strict=True)):
            for tensor, other in pairs:
                tensor.copy_(other)
    parking[owner] = parking.pop(name)
    settings["modules_of"] = name


def forget(model: Model, name: str) -> None:
    """Drop what is parked for an adapter."""
    settings, parking = in_place(model) or {}, _parking(model.module)
    if name in parking:
        parking.pop(name)
    if not len(parking):
        settings.pop("modules_of", None)


def refuse_differing(model: Model, names: Sequence[str]) -> None:
    """Raises ModelError where adapters that are to be on together have modules of their own that differ."""
    first = module_tensors(model, names[0]) if names else {}
    for name in names[1:]:
        for key, tensor in module_tensors(model, name).items():
            if not torch.equal(tensor, first[key]):
                raise ModelError(
                    f"adapter: got {names[0]!r} and {name!r} at once, whose {key!r} differ, expected the same. Switch one of them on, or "
                    f"take the first one's: combine(model, 'both', {{{names[0]!r}: 1.0, {name!r}: 1.0}})"
                )


def inject(module: nn.Module, settings: dict[str, Any]) -> None:
    """Places for what a saved model has parked. Raises ModelError where the settings do not fit the module."""
    found, owner, known = settings.get("modules", []), settings.get("modules_of", DEFAULT), dict(module.named_modules())
    names = [DEFAULT, *settings.get("adapters", {})]
    if not isinstance(found, list) or not all(isinstance(place, str) and place and place in known for place in found) or owner not in names:
        raise ModelError(f"adapt.modules: got {found!r} of {owner!r}, expected names of modules and of an adapter. Save the model again")
    for name in names if "modules_of" in settings and settings.get("method") == "lora" else []:
        if name != owner:
            _parking(module)[name] = Parked(_live(module, found).values())


def _live(module: nn.Module, found: list[str]) -> dict[str, Tensor]:
    return {f"{place}.{leaf}": t for place in found for leaf, t in module.get_submodule(place).state_dict(keep_vars=True).items()}


def _parking(module: nn.Module) -> nn.ModuleDict:
    first = next((part for _, part in wrappers(module) if isinstance(part, Lora)), None)
    return nn.ModuleDict() if first is None else first.parked
