"""Which layers a method is put around: by name, by glob, or ``all-linear``; and what learns besides.

A target is a module's full name, the end of one, or a glob of either; ``all-linear`` means every linear layer but the output
layer, as in PEFT. None at all means the method's own choice. The head, an output layer that is not named outright, and what
``modules_to_save`` names are left out. A target that matches nothing is an error that lists what is near.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from frostline.adapt.freeze import freeze
from frostline.adapt.quantize import QuantizedLinear
from frostline.adapt.wrapper import Wrapper, is_transposed
from frostline.errors import ModelError
from frostline.models.model import Model
from frostline.recipe import AdaptRecipe

ALL_LINEAR = "all-linear"
LARGEST = 4096
"""Of a rank, a bottleneck, a number of virtual tokens: settings may come from a file, and memory is taken by them."""

Kind = Callable[[nn.Module], bool]


def is_linear(module: nn.Module) -> bool:
    """A linear layer: torch's, GPT-2's ``Conv1D``, or one in few bits."""
    return isinstance(module, nn.Linear | QuantizedLinear) or is_transposed(module)


def is_convolution(module: nn.Module) -> bool:
    """A convolution in one or two dimensions."""
    return isinstance(module, nn.Conv1d | nn.Conv2d)


def match(model: Model, recipe: AdaptRecipe, kind: Kind, what: str, usual: Kind | None = None) -> list[str]:
    """Full names of the modules of a ``kind`` that ``recipe.targets`` means; wrapped ones count as what they wrap.

    ``usual``: the kind that is taken where nothing is named. Raises ModelError for a target, or a model, without a match.
    """
    known = known_targets(model, recipe, kind)
    for target in recipe.targets:
        if target != ALL_LINEAR and not any(matches(name, target) for name in known):
            raise ModelError(f"adapt.targets: got {target!r}, which is no {what} outside the head. {near(target, known)}")
    chosen = [name for name, part in known.items() if _is_chosen(model, recipe, name, part, usual or kind)]
    if not chosen:
        raise ModelError(f"adapt: got {recipe.method!r}, but the model {model.card.name!r} has no {what} outside its head. Use: adapt=full")
    return chosen


def known_targets(model: Model, recipe: AdaptRecipe, kind: Kind) -> dict[str, nn.Module]:
    """All modules of a kind outside the head and ``modules_to_save``, by full name; what is wrapped in place of its wrapper."""
    found: dict[str, nn.Module] = {}
    inside: tuple[str, ...] = ()
    for name, part in model.module.named_modules(remove_duplicate=False):
        if inside and name.startswith(inside):
            continue
        base = part.base if isinstance(part, Wrapper) else part
        if isinstance(part, Wrapper):
            inside = (*inside, f"{name}.")
        if name and kind(base) and not model.in_head(name) and not _is_below(name, recipe.modules_to_save):
            found[name] = base
    return found


def let_learn(model: Model, recipe: AdaptRecipe, own: Iterable[str]) -> None:
    """Freeze all but the parameters named in ``own``, the head, and what ``modules_to_save`` names."""
    own = set(own)
    freeze(model.module, lambda name: name in own or model.in_head(name) or _is_below(name, recipe.modules_to_save))


def check_modules_to_save(model: Model, recipe: AdaptRecipe) -> None:
    """Raises ModelError for a name in ``modules_to_save`` that no module has."""
    names = [name for name, _ in model.module.named_modules() if name]
    for wanted in recipe.modules_to_save:
        if not any(matches(name, wanted) for name in names):
            raise ModelError(f"adapt.modules_to_save: got {wanted!r}, which names no module. {near(wanted, names)}")


def saved_modules(model: Model, recipe: AdaptRecipe) -> list[str]:
    """Full names of the modules that learn whole and travel with an adapter: the head's, and those of ``modules_to_save``."""
    named = [name for name, part in model.module.named_modules() if name and any(matches(name, m) for m in recipe.modules_to_save)]
    outermost = [name for name in [*model.head, *named] if not any(name.startswith(f"{other}.") for other in [*model.head, *named])]
    return [name for name in dict.fromkeys(outermost) if any(True for _ in model.module.get_submodule(name).parameters())]


def matches(name: str, target: str) -> bool:
    """Whether a full name, or the end of one, is what a target means."""
    return fnmatch.fnmatchcase(name, target) or fnmatch.fnmatchcase(name, f"*.{target}")


def near(target: str, known: Iterable[str]) -> str:
    """Advice: names that are spelt like ``target``, or what there is."""
    known = list(known)
    last = list(dict.fromkeys(name.rpartition(".")[2] for name in known))
    close = difflib.get_close_matches(target, known, 3, 0.5) + difflib.get_close_matches(target.rpartition(".")[2], last, 3, 0.5)
    return f"Near it: {', '.join(dict.fromkeys(close))}" if close else f"Targets of this model end in: {', '.join(last[:12])}"


def read_whole(settings: dict[str, Any], key: str, largest: int = LARGEST) -> int:
    """A whole number from 1 on, from settings that may come from a file. Raises ModelError for anything else."""
    value = settings.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        raise ModelError(f"adapt.{key}: got {value!r}, expected a whole number from 1 to {largest}. Use: adapt.{key}=8")
    return value


def read_dropout(settings: dict[str, Any]) -> float:
    """A share from 0 to below 1. Raises ModelError for anything else."""
    value = settings.get("dropout", 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ModelError(f"adapt.dropout: got {value!r}, expected a share from 0 to below 1. Use: adapt.dropout=0.0")
    return float(value)


def read_targets(module: nn.Module, settings: dict[str, Any], kind: Kind, what: str) -> dict[str, nn.Module]:
    """The modules that ``settings["targets"]`` names. Raises ModelError where one is not there or is of another kind."""
    names = settings.get("targets")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(f"adapt.targets: got {names!r}, expected a list of names. Load the weights that fit the adapter")
    known = dict(module.named_modules(remove_duplicate=False))
    for name in names:
        if name not in known or not kind(known[name]):
            found = "no such module" if name not in known else type(known[name]).__name__
            raise ModelError(f"adapt.targets: {name!r} is {found}, expected a {what}. Load the weights that fit the adapter")
    return {name: known[name] for name in names}


def _is_chosen(model: Model, recipe: AdaptRecipe, name: str, part: nn.Module, usual: Kind) -> bool:
    output = model.output != "" and name == model.output
    if not recipe.targets:
        return usual(part) and not output
    if ALL_LINEAR in recipe.targets and is_linear(part) and not output:
        return True
    return any(matches(name, target) for target in recipe.targets if target != ALL_LINEAR)


def _is_below(name: str, wanted: list[str]) -> bool:
    """Whether a module or parameter lies at or below a module that ``wanted`` means."""
    parts = name.split(".")
    return any(matches(".".join(parts[:end]), target) for target in wanted for end in range(1, len(parts) + 1))
