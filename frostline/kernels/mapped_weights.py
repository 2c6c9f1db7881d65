"""Frozen weights whose numbers lie in files that are mapped into memory.

Nothing writes to them, so their pages are as on the disk: where memory is short the system takes them back, and reads them again when
they are next computed with. Every value stays as it is, bit for bit. A file has no name from the moment that it is mapped, and is gone
with the process, however that ends.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from frostline.adapt.freeze import frozen_names
from frostline.files import private_folder

_LEAST = 2**16
"""Bytes of a tensor that is worth a file."""


def frozen_weights(module: nn.Module) -> dict[str, Tensor]:
    """What can lie in files: frozen parameters and buffers on the CPU that share their memory with nothing else, by name."""
    found = module.state_dict(keep_vars=True)
    owners: dict[int, set[int]] = {}
    for tensor in found.values():
        owners.setdefault(tensor.untyped_storage()._cdata, set()).add(id(tensor))
    named = {name: found[name] for name in frozen_names(module) if name in found}
    once = {id(tensor): (name, tensor) for name, tensor in reversed(named.items())}
    return {
        name: tensor
        for name, tensor in reversed(once.values())
        if tensor.device.type == "cpu" and _LEAST <= tensor.nbytes == tensor.untyped_storage().nbytes()
        and len(owners[tensor.untyped_storage()._cdata]) == 1
    }  # fmt: skip


def map_weights(tensors: Sequence[Tensor]) -> float:
    """Move each into a file of its own in the cache folder, in place; returns bytes a second of reading one back from the disk.

    Raises OSError where the disk is full or this is not Linux, with nothing moved that is not whole in its file.
    """
    if not sys.platform.startswith("linux"):
        raise OSError("it is for Linux")
    total = 0.0
    for tensor in tensors:
        seconds, mapped = _mapped(tensor)
        total += seconds
        tensor.data = mapped
    return sum(tensor.nbytes for tensor in tensors) / total


def _mapped(tensor: Tensor) -> tuple[float, Tensor]:
    """The same numbers in the same layout in a file, and how long it took to read them."""
    flat = torch.as_strided(tensor.detach(), (tensor.numel(),), (1,), 0)
    with tempfile.NamedTemporaryFile(dir=private_folder("mapped")) as file:
        os.posix_fallocate(file.fileno(), 0, tensor.nbytes)  # a full disk is an error here, and would be a signal later
        file.write(flat.view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        with open(file.name, "rb", buffering=0) as again:
            while again.read(2**22):
                pass
        seconds = time.perf_counter() - began
        mapped = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
    return seconds, mapped.as_strided(tensor.shape, tensor.stride())
