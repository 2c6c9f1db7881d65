"""Sequences of different lengths that lie end to end, gathered into small batches of like length, and put back.

Padding repeats a token of its own sequence, so that not even a NaN gets from one sequence into another.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

_CALL = 2048
"""Scores that one head computes in the time that one more call of attention costs, about."""
_SCORES = 2**18
"""Of one head in a group, at most: larger groups are no faster, and a mask or weights of them take room."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Sequences that are attended in one call."""

    lengths: Tensor
    """int64 (sequences,)"""
    longest: int
    padded: bool

    @property
    def places(self) -> int:
        """Tokens and padding."""
        return len(self.lengths) * self.longest

    def batch(self, places: Tensor) -> Tensor:
        """(places, heads, size) → (sequences, heads, longest, size), a view."""
        return places.unflatten(0, (-1, self.longest)).transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class Groups:
    """How a row of tokens is gathered into groups, and back."""

    groups: tuple[Group, ...]
    order: Tensor | None
    """int64 (places,): the token of each place, group by group; None where the row lies so already."""
    place: Tensor
    """int64 (tokens,): the place of each token."""
    padding: Tensor
    """int64: the places that repeat a token."""

    def gather(self, rows: Tensor) -> Tensor:
        """(tokens, …) → (places, …). Padding has no gradient: no real token sees it."""
        return rows if self.order is None else _Gather.apply(rows, self)

    def put_back(self, places: Tensor) -> Tensor:
        """(places, …) → (tokens, …)."""
        return places if self.order is None else _PutBack.apply(places, self)


@functools.lru_cache(maxsize=16)
def groups_of(lengths: tuple[int, ...], device: torch.device) -> Groups:
    """Groups of like lengths, from the longest on. Every layer of a network asks for the same."""
    chosen = _choose(lengths)
    starts = torch.tensor([0, *lengths]).cumsum(0)
    groups, orders, reals = [], [], []
    for members in chosen:
        own = torch.tensor([lengths[index] for index in members])
        column = torch.arange(longest := int(own.max()))[None]
        groups.append(Group(lengths=own.to(device), longest=longest, padded=int(own.min()) < longest))
        orders.append((starts[members][:, None] + torch.minimum(column, own[:, None] - 1)).flatten())
        reals.append((column < own[:, None]).flatten())
    order, real = torch.cat(orders), torch.cat(reals)
    place = torch.empty(sum(lengths), dtype=torch.int64)
    place[order[real]] = real.nonzero().squeeze(1)
    as_it_lies = torch.equal(order, torch.arange(sum(lengths)))
    return Groups(
        groups=tuple(groups),
        order=None if as_it_lies else order.to(device),
        place=place.to(device),
        padding=(~real).nonzero().squeeze(1).to(device),
    )


def _choose(lengths: tuple[int, ...]) -> list[list[int]]:
    """Indices of sequences, a list a group: another one joins as long as the padding costs less than a call, or than an eighth."""
    groups: list[list[int]] = []
    wasted = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if groups:
            square, count = lengths[groups[-1][0]] ** 2, len(groups[-1]) + 1
            wasted += square - lengths[index] ** 2
            if wasted <= max(_CALL, count * square // 8) and count * square <= _SCORES:
                groups[-1].append(index)
                continue
        groups.append([index])
        wasted = 0
    return groups


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, groups: Groups) -> Tensor:
        ctx.groups = groups
        assert groups.order is not None
        return rows.index_select(0, groups.order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad.index_select(0, ctx.groups.place), None


class _PutBack(Function):
    @staticmethod
    def forward(ctx: Any, places: Tensor, groups: Groups) -> Tensor:
        ctx.groups = groups
        return places.index_select(0, groups.place)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad.index_select(0, ctx.groups.order).index_fill_(0, ctx.groups.padding, 0), None
