"""Several adapters on one model, switching them off, and merging.

    add_adapter(model, "b")              a second LoRA adapter on the same layers, not switched on
    use_adapters(model, "b")             that one alone; use_adapters(model, "default", "b"): their updates add up
    with adapters_off(module): …         the base, bit for bit: the reference of preference tuning, with no second copy of the weights
    merge(module)                        folded into the weights, for speed; unmerge(module) puts the very weights back that were there
    merge_into_base(model)               for good: the model is an ordinary one again, in full precision
    merge_into_few_bits(model)           for good, and back into the few bits of its base; says how much of the change is left
    combine(model, "ab", {"a": 0.7, "b": 0.3})    a new adapter out of others

Merging adds what is on, each times its weight: W + Σ w_i ΔW_i. The original weights are kept aside and never computed back.
Combining concatenates, B = [B₁ B₂], A = [w₁ s₁ A₁; w₂ s₂ A₂], which is exactly that sum in a rank that is the sum of the ranks; or,
``linear``, adds the factors, each times the root of w s, which keeps the rank, has to have it in common, and mixes B₁ with A₂ too.

Each adapter has a head and ``modules_to_save`` of its own, which are switched with it (parked.py).

An adapter that is merged twice, was never trained, or holds NaN is an error: each of them goes on without a word otherwise.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from frostline.adapt import lora, parked, virtual
from frostline.adapt.lora_layers import DEFAULT, Lora, LoRAConv
from frostline.adapt.peft_config import is_tuner
from frostline.adapt.quantize import QuantizedLinear, quantize, shares_left
from frostline.adapt.settings import in_place
from frostline.adapt.targets import let_learn
from frostline.adapt.wrapper import Wrapper, fold, folded, learning_names, refuse_what_cannot_fold, replace, wrappers
from frostline.errors import ModelError
from frostline.models.model import Model


def adapter_names(model: Model) -> list[str]:
    """The adapters that a LoRA model holds."""
    return [DEFAULT, *_settings(model).get("adapters", {})]


def add_adapter(model: Model, name: str, *, rank: int | None = None, alpha: float | None = None, seed: int = 0) -> None:
    """A further LoRA adapter on the same layers; not switched on. Numbers that are not given are the first adapter's."""
    settings = _settings(model)
    if name in adapter_names(model):
        raise ModelError(f"adapter: got the name {name!r}, which the model {model.card.name!r} holds already. Choose another name")
    own: dict[str, Any] = {"seed": seed}
    own |= {"rank": rank, "ranks": {}} if rank is not None else {}
    own |= {"alpha": alpha, "alphas": {}} if alpha is not None else {}
    lora.add(model.module, name, {**settings, **own})
    parked.begin(model, name)
    settings["adapters"] = {**settings.get("adapters", {}), name: own}
    let_learn(model, model.recipe.adapt, parked.learning_names(model))


def use_adapters(model: Model, *names: str) -> None:
    """Switch on these adapters and no others, with the head and ``modules_to_save`` that are theirs; what is on learns.

    Raises ModelError where two of them are one and the same, or have modules of their own that differ.
    """
    settings = _settings(model)
    for first, second in itertools.combinations(names, 2):
        if _are_the_same(model.module, first, second):
            raise ModelError(f"adapter: got {first!r} and {second!r} at once, which are the same. One of them is enough")
    lora.check_names(model.module, names)
    parked.refuse_differing(model, names)
    lora.switch(model.module, names)
    if names:
        parked.switch(model, names[0])
    settings["active"] = list(names)
    let_learn(model, model.recipe.adapt, parked.learning_names(model))


@contextlib.contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """Within, the module computes what its base does. Raises ModelError where something beside an adapter learns, or there is none."""
    _refuse_merged(list(wrappers(module)))
    found: list[Any] = [*{part for _, part in wrappers(module)}, *virtual.find(module)]
    of_peft: list[Any] = [part for part in module.modules() if is_tuner(part)]
    if not found and not of_peft:
        raise ModelError("adapters_off: got a model without an adapter, expected one. Use: fl.adapt(model, 'lora')")
    own = {*learning_names(module), *virtual.learning_names(module)}
    other = next((n for n, p in module.named_parameters() if p.requires_grad and n not in own and not of_peft), None)
    if other is not None:
        raise ModelError(
            f"adapters_off: {other!r} learns beside the adapter, so that without it the model would not be the base. "
            "Leave modules_to_save empty, or keep a second copy of the model"
        )
    before = [part.off for part in found]
    disabled = [part._disable_adapters for part in of_peft]
    try:
        for part in found:
            part.off = True
        for layer in of_peft:
            layer._disable_adapters = True  # enable_adapters() would touch what learns
        yield
    finally:
        for part, was in zip(found, before, strict=True):
            part.off = was
        for layer, was in zip(of_peft, disabled, strict=True):
            layer._disable_adapters = was


def merge(module: nn.Module, weights: Mapping[str, float] | None = None) -> None:
    """Fold what is on into the bases' weights until :func:`unmerge`. ``weights``: adapters by name, each times its weight.

    A quantised base becomes one of full precision meanwhile (law 9); the head and ``modules_to_save`` stay those of what is on.
    Raises ModelError for an adapter that is merged already, was never trained, holds NaN, or cannot be merged.
    """
    found = list(wrappers(module))
    _refuse_merged(found)
    if weights is None:
        refuse_what_cannot_fold(found)
    else:
        _refuse_weights(found, weights)
        refuse_what_cannot_fold(found, functools.partial(_weighted, weights=weights))
    for part in dict.fromkeys(part for _, part in found):
        twin = copy.copy(part.base)  # the same tensors; what is folded goes into new ones
        twin._parameters = dict(part.base._parameters)
        twin.__dict__.pop("train", None)  # a frozen base's is bound to the base
        result = folded(part, twin, None if weights is None else _weighted(part, weights))
        part.__dict__["kept"] = part.base
        part.base = result
        part.off = True


def unmerge(module: nn.Module) -> None:
    """Put back the very weights that were there before :func:`merge`."""
    found = [part for _, part in wrappers(module) if "kept" in part.__dict__]
    if not found:
        raise ModelError("unmerge: got a model that is not merged, expected one after merge(module)")
    for part in dict.fromkeys(found):
        part.base = part.__dict__.pop("kept")
        part.off = False


def merge_into_base(model: Model) -> None:
    """Fold the adapter for good: the model is an ordinary one, in full precision, and is saved as one."""
    _refuse_merged(list(wrappers(model.module)))
    fold(model.module)
    for name, part in list(model.module.named_modules()):
        if isinstance(part, QuantizedLinear):  # what no adapter stood around
            replace(model.module, name, part.full())
    _forget_adapter(model, {})


def merge_into_few_bits(model: Model, *, limit: float = 0.5) -> dict[str, float]:
    """Fold the adapter for good, and put the layers back into the few bits in which the base is kept (law 9).

    Returns the share of each layer's change that is left, and of all of it under "total": 1 is all, 0 none (see quantize.py).
    Raises ModelError, and changes nothing, where less than ``limit`` would be left or the base is in full precision.
    """
    present = model.card.arguments.get("adapt", {})
    left = {key: present[key] for key in ("base", "quantized") if key in present}
    found = list(wrappers(model.module))
    if not left:
        raise ModelError(
            f"merge_into_few_bits: {model.card.name!r} holds its base in 'full', expected int8, int4 or nf4. Use: merge_into_base(model)"
        )
    _refuse_merged(found)
    refuse_what_cannot_fold(found)
    packed = {name: part for name, part in found if isinstance(part.base, QuantizedLinear)}
    with torch.no_grad():
        shares = shares_left(left["base"], ((name, part.base.weight, part.weight) for name, part in packed.items()), limit)
    fold(model.module)
    quantize(model.module, list(packed), left["base"])
    _forget_adapter(model, left)
    return shares


def _forget_adapter(model: Model, left: dict[str, Any]) -> None:
    """After folding: the card without the adapter, with what is ``left`` of its settings."""
    model.card.arguments.pop("adapt", None)
    if left:
        model.card.arguments["adapt"] = left
    config = getattr(model.module, "config", None)
    if isinstance(model.card.arguments.get("config"), dict) and config is not None and not getattr(config, "tie_word_embeddings", True):
        model.card.arguments["config"]["tie_word_embeddings"] = False  # a tied layer that was changed is tied no more
    if hasattr(model.module, "vera_projections"):
        del model.module.vera_projections


def combine(model: Model, name: str, weights: Mapping[str, float], how: Literal["concatenate", "linear"] = "concatenate") -> None:
    """A new adapter ``name`` out of others, not switched on, with the head and ``modules_to_save`` of the first of them.

    Raises ModelError where they cannot be combined so.
    """
    settings = _settings(model)
    if name in adapter_names(model):
        raise ModelError(f"combine: got the name {name!r}, which the model {model.card.name!r} holds already. Choose another name")
    parts = {place: part for place, part in wrappers(model.module) if isinstance(part, Lora)}
    _refuse_combination(parts, weights, how)
    ranks = {}
    for place, part in parts.items():
        sizes = [len(part.piece(other).factors()[0]) for other in weights]
        if how == "linear" and len(set(sizes)) > 1:
            raise ModelError(
                f"combine: got the ranks {sizes!r} of {', '.join(weights)} at {place!r}, expected one rank. Use: how='concatenate'"
            )
        ranks[place] = sum(sizes) if how == "concatenate" else sizes[0]
    own = {"rank": max(ranks.values()), "ranks": ranks, "alphas": {p: float(r) for p, r in ranks.items()}, "alpha": 1.0, "seed": 0}
    own |= {"rslora": False, "dora": False, "init": "default"}  # alpha = rank: the new factors are taken as they are
    lora.add(model.module, name, {**settings, **own})
    for part in parts.values():
        a, b = _combined([(part.piece(other), weight) for other, weight in weights.items()], how)
        with torch.no_grad():
            part.piece(name).lora_A.copy_(a)
            part.piece(name).lora_B.copy_(b)
    parked.begin(model, name, like=next(iter(weights)))
    settings["adapters"] = {**settings.get("adapters", {}), name: own}
    let_learn(model, model.recipe.adapt, parked.learning_names(model))


def _combined(pieces: list[tuple[Lora, float]], how: str) -> tuple[Tensor, Tensor]:
    if how == "concatenate":
        scaled = [(weight * piece.scaling, *piece.factors()) for piece, weight in pieces]
        return torch.cat([scale * a for scale, a, _ in scaled]), torch.cat([b for _, _, b in scaled], dim=1)
    a_sum, b_sum = torch.zeros(()), torch.zeros(())
    for piece, weight in pieces:
        a, b = piece.factors()
        root = math.sqrt(abs(weight) * piece.scaling)
        a_sum, b_sum = a_sum + root * a, b_sum + math.copysign(root, weight) * b
    return a_sum, b_sum


def _refuse_combination(parts: Mapping[str, Lora], weights: Mapping[str, float], how: str) -> None:
    if how not in ("concatenate", "linear") or not weights:
        raise ModelError(f"combine: got how={how!r} and {dict(weights)!r}, expected 'concatenate' or 'linear', and weights by name")
    for place, part in parts.items():
        missing = next((name for name in weights if name != DEFAULT and name not in part.others), None)
        if missing is not None:
            raise ModelError(f"combine: got {missing!r}, expected one of {', '.join([DEFAULT, *part.others])}")
        if isinstance(part, LoRAConv) and part.base.groups > 1:
            raise ModelError(f"combine: {place!r} is a grouped convolution, whose factors do not go together. Use: merge(module, weights)")
        if any(part.piece(name).variant.dora for name in weights):
            raise ModelError("combine: got a DoRA adapter, whose updates do not add up, expected plain ones. Merge it alone")


def _refuse_weights(found: list[tuple[str, Wrapper]], weights: Mapping[str, float]) -> None:
    for _, part in found:
        if not isinstance(part, Lora):
            raise ModelError(f"merge: got weights for a {type(part).__name__!r}, expected LoRA adapters. Use: merge(module)")
        there = (DEFAULT, *part.others)
        for name, factor in weights.items():
            if name not in there or not math.isfinite(factor):
                raise ModelError(f"merge: got {name!r} with the weight {factor!r}, expected a number for one of {', '.join(there)}")
        if len(weights) > 1 and any(part.piece(name).variant.dora for name in weights):
            raise ModelError(f"merge: got {', '.join(weights)!r} at once, but DoRA's updates do not add up. Merge one of them")


def _weighted(part: Wrapper, weights: Mapping[str, float]) -> Tensor:
    assert isinstance(part, Lora), "checked before"
    total = weight = part.base.weight
    for name, factor in weights.items():
        total = total + factor * part.piece(name).change(weight)
    return total


def _refuse_merged(found: list[tuple[str, Wrapper]]) -> None:
    merged = next((name for name, part in found if "kept" in part.__dict__), None)
    if merged is not None:
        raise ModelError(
            f"merge: {merged!r} holds its adapter in its weight already; a second time would add it twice. Use: unmerge(module)"
        )


def _are_the_same(module: nn.Module, first: str, second: str) -> bool:
    pairs = [
        (part.piece(first), part.piece(second)) for _, part in wrappers(module) if isinstance(part, Lora) and _has(part, first, second)
    ]
    same = [torch.equal(a.lora_A, b.lora_A) and torch.equal(a.lora_B, b.lora_B) and bool(a.lora_B.any()) for a, b in pairs]
    return first == second or (bool(same) and all(same))


def _has(part: Lora, *names: str) -> bool:
    return all(name == DEFAULT or name in part.others for name in names)


def _settings(model: Model) -> dict[str, Any]:
    settings = in_place(model)
    if settings is None or settings["method"] != "lora":
        raise ModelError(
            f"adapter: the model {model.card.name!r} holds no LoRA adapter, expected one, since only these can be several. "
            "Use: fl.adapt(model, 'lora')"
        )
    return settings
