"""Outline: a network's parts in the order in which they run, what each is to the plan, and how much it multiplies.

A part is a block of the model, its head, or the largest module beside them that holds none of these; what stands in a container
itself (a class token, say) is a part of its own. A few real rows are run once, and the products of each part are counted as they
are dispatched (``torch.utils.flop_counter``), attention and recurrent cells included. A part that has matrices and shows no
product was computed by a kernel that cannot be counted: then no part's work is taken as known.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from frostline.adapt.quantize import QuantizedLinear
from frostline.models.model import Model, evaluating
from frostline.plan.execution import Execution
from frostline.plan.frost_line import preserved

CACHED, FROZEN, PACKED, INT8, LEARNING = "cached", "frozen", "packed", "int8", "learning"
"""What numbers are to the plan: run once, run each step, the same with packed weights, the same in 8 bits, and what learns."""
STATES = (CACHED, FROZEN, PACKED, INT8, LEARNING)
_ROWS = 2


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of the network."""

    name: str
    """Of the module, as in ``named_modules``; "" for what stands in the network itself."""
    kind: str
    """Its class."""
    numbers: int
    """Its weights; those of tied layers are counted where they stand first."""
    work: int
    """Multiply-adds of the forward pass for one row."""
    shares: dict[str, int]
    """State → numbers, in the order of ``STATES``, tied ones included."""


@dataclass(frozen=True, kw_only=True)
class Outline:
    """The parts in the order of their first calls."""

    parts: list[Part]
    counted: bool
    """Whether the parts' ``work`` is known."""
    line: int | None
    """Index of the first part in which something learns; None where that is the first of all, or nothing learns."""


def outline(execution: Execution) -> Outline:
    """Look at the network of a plan; nothing in it is changed."""
    module = execution.model.module
    around = list(dict.fromkeys(name for name, _ in _containers(execution.model) if _own_numbers(module.get_submodule(name))))
    names = [*around, *_names(execution.model)]
    inside = _part_of(module, set(names) - set(around))
    order, work = _observe(execution, inside, around)
    shares, numbers = _count(execution, {**inside, **{name: name for name in around}})
    parts = [
        Part(
            name=name,
            kind=type(module.get_submodule(name)).__name__,
            numbers=numbers.get(name, 0),
            work=work.get(name, 0),
            shares={state: shares[name][state] for state in STATES if state in shares.get(name, {})},
        )
        for name in sorted(names, key=lambda name: order.get(name, _place(name, shares, execution.model, len(order))))
    ]
    parts = [part for part in parts if part.numbers or part.work or part.shares or part.name in execution.model.blocks]
    counted = any(part.work for part in parts) and all(part.work or not _multiplies(module, part, order) for part in parts)
    first = next((index for index, part in enumerate(parts) if LEARNING in part.shares), 0)
    return Outline(parts=parts, counted=counted, line=first or None)


def _place(name: str, shares: dict[str, dict[str, int]], model: Model, last: int) -> int:
    """Of a part that is not called: where it takes part is not known, so what learns is taken to stand at the input."""
    return -1 if LEARNING in shares.get(name, {}) and name != model.output else last


def _containers(model: Model) -> Iterator[tuple[str, nn.Module]]:
    """The modules around blocks, head and output layer, the network itself first."""
    whole = {*model.blocks, *model.head, *([model.output] if model.output else [])}
    for name, part in model.module.named_modules():
        within = any(name == one or name.startswith(f"{one}.") for one in whole)
        if not within and (not name or any(one.startswith(f"{name}.") for one in whole)):
            yield name, part


def _names(model: Model) -> Iterator[str]:
    containers = dict(_containers(model))
    for name, part in containers.items():
        children = (f"{name}.{child}" if name else child for child, _ in part.named_children())
        yield from (child for child in children if child not in containers)


def _part_of(module: nn.Module, names: set[str]) -> dict[str, str]:
    """Every module within a part → the part."""
    found: dict[str, str] = {}
    for name, _ in module.named_modules():
        above = name.rpartition(".")[0]
        if name in names:
            found[name] = name
        elif above in found:
            found[name] = found[above]
    return found


def _own_numbers(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters(recurse=False))


def _observe(execution: Execution, inside: dict[str, str], around: list[str]) -> tuple[dict[str, int], dict[str, int]]:
    """One forward pass: the place of each part among the parts, and its multiply-adds for one row."""
    module, source = execution.model.module, execution.sources["train"]
    batch = source.encode(np.arange(min(_ROWS, source.rows)), None)
    plain = replace(execution, products={}, pack=False, precision="fp32")  # as products that can be counted
    counter = FlopCounterMode(display=False)
    order: dict[str, int] = {}
    work: dict[str, int] = {}
    open_calls: list[int] = []

    def start(name: str, *_: Any) -> None:
        order.setdefault(name, len(order))

    def enter(name: str, *_: Any) -> None:
        start(name)
        open_calls.append(counter.get_total_flops())

    def leave(name: str, *_: Any) -> None:
        before = open_calls.pop()
        if not open_calls:
            work[name] = work.get(name, 0) + counter.get_total_flops() - before

    with contextlib.ExitStack() as stack:
        for manager in (preserved(module), evaluating(module), _countable()):
            stack.enter_context(manager)
        for name, part in inside.items():
            child = module.get_submodule(name)
            stack.callback(child.register_forward_pre_hook(functools.partial(enter, part)).remove)
            stack.callback(child.register_forward_hook(functools.partial(leave, part)).remove)
        for name in around:
            stack.callback(module.get_submodule(name).register_forward_pre_hook(functools.partial(start, name)).remove)
        with counter, torch.no_grad():  # with gradients a loss in chunks would make some of them at once
            plain.forward(batch)
    rest = execution.model.output or next(iter(around), "")  # the output layer is not called where its product is made in chunks
    work[rest] = work.get(rest, 0) + counter.get_total_flops() - sum(work.values())
    return order, {name: count // 2 // len(batch.rows) for name, count in work.items()}


@contextlib.contextmanager
def _countable() -> Iterator[None]:
    """Within, recurrent cells and attention are made of products that the counter knows."""
    onednn, fused = torch.backends.mkldnn.set_flags(False, _fp32_precision=None)[0], torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mkldnn.set_flags(onednn, _fp32_precision=None)
        torch.backends.mha.set_fastpath_enabled(fused)


def _count(execution: Execution, parts: dict[str, str]) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """Of each part: state → numbers, and how many of its own."""
    shares: dict[str, dict[str, int]] = {}
    numbers: dict[str, int] = {}
    seen: set[int] = set()

    def add(part: str, state: str, count: int, own: bool) -> None:
        shares.setdefault(part, {})
        shares[part][state] = shares[part].get(state, 0) + count
        numbers[part] = numbers.get(part, 0) + count * own

    for name, child in execution.model.module.named_modules():
        if name not in parts:
            continue
        for parameter in child.parameters(recurse=False):
            state = LEARNING if parameter.requires_grad else _frozen_state(execution, name)
            add(parts[name], state, parameter.numel(), id(parameter) not in seen)
            seen.add(id(parameter))
        if isinstance(child, QuantizedLinear):
            add(parts[name], _frozen_state(execution, name), child.in_features * child.out_features, True)
    return shares, numbers


def _frozen_state(execution: Execution, name: str) -> str:
    line, product = execution.line, execution.products.get(name)
    if line is not None and any(name == before or name.startswith(f"{before}.") for before in line.names):
        return CACHED
    return FROZEN if product is None else PACKED if product.exact else INT8


def _multiplies(module: nn.Module, part: Part, called: dict[str, int]) -> bool:
    """Whether a part that was called has matrices; looking up embeddings multiplies nothing."""
    if not part.name or part.name not in called:
        return False
    inside = module.get_submodule(part.name).modules()
    return any(p.dim() > 1 for child in inside if not isinstance(child, nn.Embedding) for p in child.parameters(recurse=False))
