"""What autocast means for an operation of ours.

An ``autograd.Function`` is opaque to autocast, so each of ours does by hand what autocast does to ``nn.functional.linear``:
its operands are cast before it (outside it, where the cast is differentiated as any other), float64 stays as it is, and
within it, forward and backward, autocast is off. The casts are not kept from one call to the next: a frozen weight that is
always wanted in another dtype is cheaper stored in that dtype.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor


def cast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The operands of a matrix product in the dtype that autocast would take; unchanged where it is off.

    >>> with torch.autocast("cpu", dtype=torch.bfloat16):
    ...     [t.dtype for t in cast(torch.ones(1), torch.ones(1, dtype=torch.float64)) if t is not None]
    [torch.bfloat16, torch.float64]
    """
    return tuple(None if tensor is None else _cast(tensor) for tensor in tensors)


def no_autocast(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """A context in which operations on the tensor's device run in the dtype of their operands."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype for sums and exponentials: float32, or float64 where the operands have it.

    >>> wide(torch.bfloat16), wide(torch.float64)
    (torch.float32, torch.float64)
    """
    return torch.promote_types(dtype, torch.float32)


def _cast(tensor: Tensor) -> Tensor:
    kind = tensor.device.type
    if not torch.is_autocast_enabled(kind) or not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(kind))
