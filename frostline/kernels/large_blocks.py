"""Large tensors from an allocator that uses freed memory again (large_blocks.cpp).

With glibc 2.36 a step of a transformer held three times as much as lived at once: an aligned block that is freed is a little too
small for the next request of its size. Blocks that are joined when they are freed, and the best fit, keep the peak at what lives.
PyTorch takes another allocator for new tensors while old ones go back where they came from; it holds for the process.

Needs Linux and a C++ compiler (native.py).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import torch

from frostline.device import CPU
from frostline.device import bytes_needed as of_device
from frostline.kernels import native

_SOURCE = Path(__file__).with_suffix(".cpp")
_OPTION = "-O2"
_used: list[ctypes.CDLL] = []
"""The library, once it is in use."""


def build_large_blocks_ahead() -> None:
    """Begin to build it while something else is done, as where a model is loaded to be trained; it takes longer than to load one."""
    if not _used:
        native.build_ahead(_SOURCE, _OPTION)


def use_large_blocks() -> str | None:
    """From now on large tensors come from there. Returns why they do not; None where they do."""
    if _used:
        return None
    try:
        library = native.load(_SOURCE, _OPTION)
    except OSError as error:
        return native.reason(error)
    library.frostline_use_large_blocks.argtypes = [ctypes.c_size_t]
    for function in (library.frostline_free_bytes, library.frostline_live_bytes, library.frostline_peak_bytes):
        function.restype = ctypes.c_size_t
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # what is larger is refused, as ever
    if not library.frostline_use_large_blocks(memory):
        return f"the system gave no {memory / 1e9:.0f} GB of addresses"
    _used.append(library)
    return None


def bytes_needed(run: Callable[[], object], device: torch.device = CPU) -> int | None:
    """Most bytes of large tensors that lived at once while this ran, beyond those that lived before; None where these do not come from
    here. What oneDNN lays out for itself counts as well. Of a GPU, PyTorch's own count."""
    if device.type != "cpu":
        return of_device(run, device)
    if not _used:
        return None
    before = int(_used[0].frostline_live_bytes())
    run()
    return int(_used[0].frostline_peak_bytes()) - before


def taken_bytes() -> int:
    """Memory of this process that was taken for large tensors, whether they live or not."""
    return int(_used[0].frostline_live_bytes() + _used[0].frostline_free_bytes()) if _used else 0


def free_bytes(device: torch.device = CPU) -> int:
    """Memory of this process that tensors had and the next ones will take; part of what is resident. Of a GPU none: it is not counted
    as taken."""
    return int(_used[0].frostline_free_bytes()) if _used and device.type == "cpu" else 0
