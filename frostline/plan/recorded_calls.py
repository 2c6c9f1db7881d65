"""What every call of every submodule returns in one forward pass, and whether autograd saw anything that learns behind it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from frostline.models.model import logits_of

Inputs = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Call:
    """The ``index``-th call of the submodule ``name`` within one forward pass."""

    name: str
    index: int


@dataclass(kw_only=True)
class Recorded:
    """What one call returned: tensors, the structure around them, and whether autograd saw anything that learns."""

    parent: Call | None
    tensors: list[Tensor] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    """Of the tensors when they were returned: what the model changes in place later has another."""
    leaves: list[Any] = field(default_factory=list)
    """The flattened output, with ``_TENSOR`` where a tensor stood."""
    structure: Any = None
    frozen: bool = False
    per_token: list[bool] = field(default_factory=list)
    """For each tensor: whether its second dimension is the text's length."""

    def keep_shapes(self) -> None:
        """Let go of the numbers."""
        self.tensors = [tensor.detach().to("meta") for tensor in self.tensors]


_TENSOR = object()


def observe(module: nn.Module, inputs: Inputs, seed: int, whole: bool = False) -> tuple[dict[Call, Recorded], Tensor]:
    """One forward pass with gradients on; every call of every submodule recorded in the order of their starts.

    Numbers are kept of the outermost frozen calls, and in a ``whole`` observation of those within them too; of the others, shapes.
    """
    calls: dict[Call, Recorded] = {}
    stack: list[Call] = []
    counts: dict[str, int] = {}
    learning = {name for name, child in module.named_modules() if any(p.requires_grad for p in child.parameters())}

    def enter(name: str, *_: Any) -> None:
        call = Call(name=name, index=counts.get(name, 0))
        counts[name] = call.index + 1
        calls[call] = Recorded(parent=stack[-1] if stack else None)
        stack.append(call)

    def leave(name: str, child: nn.Module, args: Any, output: Any) -> None:
        call = stack.pop()
        seen = calls[call]
        leaves, seen.structure = pytree.tree_flatten(output)
        seen.tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        seen.versions = [tensor._version for tensor in seen.tensors]
        seen.leaves = [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        plain = all(leaf is None or isinstance(leaf, Tensor | int | float | str) for leaf in leaves)
        seen.frozen = plain and name not in learning and not any(tensor.requires_grad for tensor in seen.tensors)
        if not seen.frozen:
            seen.keep_shapes()
        elif not whole:
            for inner in reversed(calls):  # of those that started later, which stand in it
                if inner == call:
                    break
                calls[inner].keep_shapes()

    handles = []
    for name, child in module.named_modules():
        if name:
            handles.append(child.register_forward_pre_hook(functools.partial(enter, name)))
            handles.append(child.register_forward_hook(functools.partial(leave, name)))
    try:
        torch.manual_seed(seed)
        with torch.enable_grad():
            logits = logits_of(module(**inputs))
    finally:
        for handle in handles:
            handle.remove()
    return calls, logits


def same(first: Recorded, second: Recorded | None) -> bool:
    """Whether two passes under different seeds gave the same, bit for bit."""
    return (
        second is not None
        and len(first.tensors) == len(second.tensors)
        and all(
            a.shape == b.shape and a.device == b.device and torch.equal(a, b) for a, b in zip(first.tensors, second.tensors, strict=True)
        )
    )


def outermost_frozen(calls: Mapping[Call, Recorded]) -> list[Call]:
    """The frozen calls that stand in no other one of these."""
    frozen = {call for call, seen in calls.items() if seen.frozen}
    return [call for call in calls if call in frozen and calls[call].parent not in frozen]


def rebuilt(seen: Recorded, tensors: list[Tensor]) -> Any:
    """What the call returned, with these tensors in place of its own."""
    queue = iter(tensors)
    return pytree.tree_unflatten([next(queue) if leaf is _TENSOR else leaf for leaf in seen.leaves], seen.structure)
