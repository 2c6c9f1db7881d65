"""Blocks that PyTorch's compiler (``torch.compile``: TorchDynamo and Inductor) has made into kernels of their own.

What is compiled is a block's ``forward`` as a whole, for any number of rows and tokens; blocks that are alike share what was made. It
draws the random numbers that the plain block would draw. Kernels are kept in the cache folder, so that a process that needs them again
has them in a second. Only passes that gradients follow are compiled: validation is too little to be worth it.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from frostline.files import private_folder
from frostline.models.model import with_own

Functions = Mapping[str, Callable[..., Any]]
"""Of blocks, by their names, in place of their ``forward``."""


def compile_blocks(module: nn.Module, names: Sequence[str]) -> Functions:
    """What to compute these blocks by; it is compiled when it is first called, which takes seconds.

    Raises OSError where the cache folder is not the user's own; calling what it gives raises a RuntimeError (of
    ``torch._dynamo.exc.TorchDynamoException``) where a block cannot be compiled, or there is no C++ compiler.
    """
    if names:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(private_folder("inductor")))
    return {name: functools.partial(_forward, plain, _compiled(plain)) for name in names for plain in [module.get_submodule(name).forward]}


@contextlib.contextmanager
def compiling(module: nn.Module, functions: Functions) -> Iterator[None]:
    """Within, the blocks are computed by these functions."""
    with contextlib.ExitStack() as stack:
        for name, function in functions.items():
            stack.enter_context(with_own(module.get_submodule(name), "forward", function))
        yield


def _compiled(plain: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(plain, fullgraph=True, dynamic=True, options={"fallback_random": True})


def _forward(plain: Callable[..., Any], compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return (compiled if torch.is_grad_enabled() else plain)(*args, **kwargs)


def graphs_made() -> int:
    """How many graphs this process has compiled so far: what grows from step to step is compiled anew each time."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]
