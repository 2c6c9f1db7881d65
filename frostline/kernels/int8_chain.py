"""Frozen int8 convolutions one behind the other, each with its norm and activation, max-pools between: from one to the next go 8-bit
steps.

oneDNN rounds the sums of a convolution to the steps that the next one takes, so no floating-point images and no passes over them for
rounding are needed; rounding keeps the order, so the largest step is the step of the largest. What each convolution gets is rounded
as if it stood alone.

Found in plain ``nn.Sequential``s only, whose members run one after the other and are read by nobody else: where one has a hook, or
stands in two places, the chain ends. A member that is called by itself, not by its Sequential, computes as ever.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frostline.kernels.frozen_convolution import laid_out
from frostline.kernels.frozen_product import FrozenProduct
from frostline.kernels.int8_convolution import Int8Convolution
from frostline.kernels.int8_product import largest_activation
from frostline.kernels.precision import cast, no_autocast
from frostline.models.model import with_own


@dataclass(kw_only=True)
class Link:
    """One convolution and what is computed along with it."""

    name: str
    product: Int8Convolution
    members: list[nn.Module]
    """The convolution, then norm and activation, then a max-pool, where they follow."""

    @property
    def whole(self) -> bool:
        """Whether all of the convolution's unit is here."""
        return self.members[: len(self.product.unit.members)] == self.product.unit.members

    @property
    def pools(self) -> list[nn.MaxPool2d]:
        """Where one follows."""
        return [member for member in self.members if isinstance(member, nn.MaxPool2d)]


@dataclass(kw_only=True)
class Chain:
    """Links of one Sequential; called, it gives what its members would, one after the other."""

    sequential: nn.Sequential
    links: list[Link]
    running: bool = False
    """Whether the Sequential is being called as a whole."""

    @property
    def members(self) -> list[nn.Module]:
        """In their order."""
        return [member for link in self.links for member in link.members]

    def __call__(self, x: Tensor) -> Tensor:
        """Floating-point images (images, channels, height, width) → the same of the last link."""
        images: Any = cast(x)[0]
        with torch.no_grad(), no_autocast(x):
            steps = self.links[0].product.steps(images)
            for link, following in itertools.zip_longest(self.links, self.links[1:]):
                to = images.dtype if following is None else following.product
                steps = link.product.of_steps(steps, to)
                for pool in link.pools:
                    steps = torch.ops.quantized.max_pool2d(steps, *_pooling(pool), pool.ceil_mode)
            return laid_out(steps, images, self.links[0].product.weight)


def find(module: nn.Module, products: Mapping[str, FrozenProduct]) -> list[Chain]:
    """Chains of these products (by the layers' names), longest first from the left; one convolution is one where something follows."""
    lowered = {name: product for name, product in products.items() if isinstance(product, Int8Convolution)}
    if not lowered or largest_activation() < 255:  # oneDNN cuts steps off at 255, too wide for sums without VNNI
        return []
    chains = []
    places = Counter(id(part) for _, part in module.named_modules(remove_duplicate=False))
    for name, part in module.named_modules():
        if type(part) is nn.Sequential and not _hooked(part):
            of_children = {key.removeprefix(f"{name}." if name else ""): value for key, value in lowered.items()}
            chains += _in(part, of_children, name, {id(child) for child in part if places[id(child)] == 1})
    return chains


@contextlib.contextmanager
def chained(module: nn.Module, products: Mapping[str, FrozenProduct]) -> Iterator[None]:
    """Within, chains are computed whole by their first member, when their Sequential is called; the others pass on what they get."""
    with contextlib.ExitStack() as stack:
        for chain in find(module, products):
            whole = functools.partial(_whole, chain, chain.sequential.forward)
            stack.enter_context(with_own(chain.sequential, "forward", whole))
            first, *others = chain.members
            stack.enter_context(with_own(first, "forward", functools.partial(_first, chain, first.forward)))
            for member in others:
                stack.enter_context(with_own(member, "forward", functools.partial(_other, chain, member.forward)))
        yield


def _whole(chain: Chain, forward: Any, x: Tensor) -> Tensor:
    chain.running = True
    try:
        return forward(x)
    finally:
        chain.running = False


def _first(chain: Chain, forward: Any, input: Tensor) -> Tensor:
    return chain(input) if chain.running else forward(input)


def _other(chain: Chain, forward: Any, input: Tensor) -> Tensor:
    return input if chain.running else forward(input)


def _in(sequential: nn.Sequential, lowered: Mapping[str, Int8Convolution], name: str, alone: set[int]) -> list[Chain]:
    """The chains of one Sequential; ``lowered``: products by the names of its children; ``alone``: the ids of those that stand nowhere
    else in the network."""
    links: list[Link | None] = []
    for key, child in sequential.named_children():
        free = id(child) in alone and not _hooked(child)
        last = links[-1] if links else None
        if free and key in lowered and not lowered[key].unit.learns:
            links.append(Link(name=f"{name}.{key}" if name else key, product=lowered[key], members=[child]))
        elif free and last is not None and _goes_along(child, last):
            last.members.append(child)
        else:
            links.append(None)
    links = [link if link is not None and link.whole else None for link in links]
    chains = []
    for linked, group in itertools.groupby(links, lambda link: link is not None):
        chain = Chain(sequential=sequential, links=[link for link in group if link is not None])
        if linked:
            last = chain.links[-1]
            last.members = [member for member in last.members if not isinstance(member, nn.MaxPool2d)]  # nothing takes its steps
            if len(chain.members) > 1:
                chains.append(chain)
    return chains


def _goes_along(child: nn.Module, link: Link) -> bool:
    unit = link.product.unit.members
    if not link.whole:
        return child is unit[len(link.members)]
    return type(child) is nn.MaxPool2d and not child.return_indices and len(link.members) == len(unit)


def _pooling(pool: nn.MaxPool2d) -> list[list[int]]:
    sides = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    return [[side, side] if isinstance(side, int) else list(side) for side in sides]


def _hooked(part: nn.Module) -> bool:
    return bool(part._forward_hooks or part._forward_pre_hooks)
