"""Writing files so that a crash, a full disk or a second process never leaves half of one."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from frostline.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor


def write_atomically(path: Path, content: bytes | bytearray | memoryview | object) -> None:
    """Write beside, fsync, rename, fsync the folder. Raises RunError when the disk is full or the folder not writable."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise RunError(
            f"{str(path)!r} could not be written: {error.strerror or error}. Look at the disk with: df -h {path.parent}; "
            "free space there, or choose another folder with --out"
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):  # not there any more when all went well
            os.unlink(temporary)


def separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors writes them: on the host, contiguous, no two in one storage. Copied only where they are not so: a copy of a large
    network takes longer than its file."""
    seen: set[int] = set()
    separated: dict[str, Tensor] = {}
    for name, given in tensors.items():
        tensor = given.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        separated[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return separated


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def private_folder(name: str) -> Path:
    """A folder of the cache for what will be run: only its owner may write there.

    Raises OSError where others can.
    """
    folder = cache_folder() / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = folder.stat()
    if owner.st_uid != os.getuid() or owner.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"{str(folder)!r} can be written to by others, and what lies there would be run")
    return folder


def cache_folder() -> Path:
    """Where calibrations and prefix stores are kept: $FROSTLINE_CACHE, else $XDG_CACHE_HOME/frostline, else ~/.cache/frostline."""
    if given := os.environ.get("FROSTLINE_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "frostline"
