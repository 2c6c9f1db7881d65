"""Blocks that keep nothing but what they were handed, and are computed once more in the backward pass.

    forward   y = block(x), of which x is kept            backward   block(x) again, then its gradients

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost". PyTorch's own (``torch.utils.checkpoint``, not reentrant) does it:
the second pass has the random state and the precision of the first, so that outputs and gradients are the plain ones, bit for bit.
Blocks are reached for the length of a forward pass only, inside their hooks, which run once.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from frostline.kernels.caches import is_cache
from frostline.kernels.unpad import unpadded_again
from frostline.models.model import with_own


def switch_off_own(module: nn.Module) -> list[str]:
    """Switch off what ``gradient_checkpointing_enable`` of ``transformers`` switched on, which would compute blocks again outside of what
    stands in for their parts; returns what the user should know of it."""
    parts = [part for part in module.modules() if getattr(part, "gradient_checkpointing", False) is True]
    for part in parts:
        part.gradient_checkpointing = False  # type: ignore[assignment]
    if not parts:
        return []
    return ["the model's own gradient checkpointing was switched off; plan.checkpoint_activations does the same, where memory is short"]


@contextlib.contextmanager
def recomputing(
    module: nn.Module, blocks: Sequence[str], around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
) -> Iterator[None]:
    """Within, these blocks are computed so; what replaces their parts must stand in the backward pass as it did in the forward pass.

    ``around``: a mode of PyTorch's to enter for the second pass, for autograd leaves those of Python. A cache of keys and values that
    a block is handed is left out: the second pass would write into it again.
    """
    with contextlib.ExitStack() as stack:
        for name in dict.fromkeys(blocks):
            part = module.get_submodule(name)
            stack.enter_context(with_own(part, "forward", functools.partial(_forward, part.forward, around)))
        yield


def _forward(plain: Callable[..., Any], around: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return plain(*args, **kwargs)
    handed = [None if is_cache(value) else value for value in args]
    kwargs = {name: None if is_cache(value) else value for name, value in kwargs.items()}
    unpadded = unpadded_again()

    @contextlib.contextmanager
    def again() -> Iterator[None]:
        with around(), unpadded:
            yield

    return checkpoint(plain, *handed, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), again()), **kwargs)
