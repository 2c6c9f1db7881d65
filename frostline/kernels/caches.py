"""No cache of keys and values while training.

Decoders of ``transformers`` make one in every forward pass, unless their configuration says otherwise: copies of all keys and values
that nobody reads. Without it attention gets the same numbers in another layout, whose sums some processors round in another order;
so there is none in any pass of a run, and a block that is computed again, which must not write into one twice, gives the same bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn


@contextlib.contextmanager
def without_caches(module: nn.Module, blocks: Sequence[str]) -> Iterator[None]:
    """Within, the network whose repeated blocks these are makes none."""
    with contextlib.ExitStack() as stack:
        for config in configs([module.get_submodule(name) for name in blocks]):
            if getattr(config, "use_cache", False):
                stack.callback(setattr, config, "use_cache", config.use_cache)
                config.use_cache = False
        yield


def configs(parts: Sequence[nn.Module]) -> list[Any]:
    """The configurations that the blocks' attention reads its implementation from."""
    found = (getattr(inner, "config", None) for part in parts for inner in part.modules())
    return list({id(config): config for config in found if hasattr(config, "_attn_implementation_internal")}.values())


def is_cache(value: Any) -> bool:
    """Whether this is a cache of keys and values, as models of ``transformers`` hand it to their blocks."""
    from transformers import Cache

    return isinstance(value, Cache)
