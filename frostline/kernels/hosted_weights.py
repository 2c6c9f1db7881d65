"""Frozen weights of blocks that stay in the host's memory and are brought to a GPU for the length of a pass through their block.

    forward   W to the GPU, y = block(x), W forgotten            backward   W to the GPU, block(x) again, its gradients, W forgotten

A block that is computed so must be one that is computed once more in the backward pass (:mod:`frostline.kernels.recompute`): autograd
would keep what was brought otherwise. What learns is on the GPU all the time. Every value is the plain one, bit for bit.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from frostline.models.model import with_own

_LEAST = 2**16
"""Bytes of a tensor that is worth bringing; smaller ones are on the GPU all the time."""
Place = tuple[dict[str, Any], str, Tensor]
"""A module's parameters or buffers, a name in them, and the tensor there."""


def hosted(part: nn.Module) -> list[Place]:
    """What of a block may stay in the host's memory: frozen parameters, and buffers that are weights."""
    found: list[Place] = []
    for owner in part.modules():
        groups: list[dict[str, Any]] = [owner._parameters]  # type: ignore[list-item]
        if getattr(owner, "FROZEN_BUFFERS", False):
            groups.append(owner._buffers)
        for group in groups:
            found += [(group, name, tensor) for name, tensor in group.items() if tensor is not None and not tensor.requires_grad]
    return [(group, name, tensor) for group, name, tensor in found if tensor.nbytes >= _LEAST]


@contextlib.contextmanager
def left_at_home(module: nn.Module, blocks: Sequence[str], pin: bool) -> Iterator[None]:
    """Within, these blocks do not have what may stay, so that the rest can be moved; then they have it again, in memory that a GPU reads
    from at full speed where ``pin``."""
    places = [place for name in blocks for place in hosted(module.get_submodule(name))]
    for group, name, _ in places:
        group[name] = None
    try:
        yield
    finally:
        for group, name, tensor in places:
            if pin and not tensor.is_pinned():
                tensor.data = tensor.data.pin_memory()
            group[name] = tensor


@contextlib.contextmanager
def hosting(module: nn.Module, blocks: Sequence[str], device: torch.device) -> Iterator[None]:
    """Within, these blocks are computed so."""
    with contextlib.ExitStack() as stack:
        for name in blocks:
            part = module.get_submodule(name)
            stack.enter_context(with_own(part, "forward", functools.partial(_forward, part, part.forward, device)))
        yield


def _forward(part: nn.Module, plain: Callable[..., Any], device: torch.device, *args: Any, **kwargs: Any) -> Any:
    places, brought = hosted(part), dict[int, Tensor]()
    for group, name, tensor in places:
        if id(tensor) not in brought:
            there = tensor.detach().to(device, non_blocking=True)
            brought[id(tensor)] = nn.Parameter(there, requires_grad=False) if isinstance(tensor, nn.Parameter) else there
        group[name] = brought[id(tensor)]
    try:
        return plain(*args, **kwargs)
    finally:
        for group, name, tensor in places:
            group[name] = tensor
