"""The store of what a frozen prefix gives: one file per border tensor, memory-mapped, every row with a checksum.

Law 4, the cache proves itself. The folder's name is a hash of all that the content depends on (the rows, the prefix's
weights, the preprocessing, the types, the version below), so a stale store is never found; the manifest is written last,
so half a store is never taken for a whole one; each row's checksum is compared whenever the row is read, so a damaged row
is found at its first use.

A store that is being filled is KEY.part, with a lock that the system lets go of when the process ends, however it ends. The
checksums are written as the rows are, so whoever takes the lock next knows which rows are there. What is kept for a row is
its checksum's complement: a file begins as zeros, so zero means "not stored", and where a power cut lost the page of a row
or that of its checksum the two do not fit. Who finds the lock taken fills KEY.PID, which is worth nothing once it stops.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from frostline.checksum import row_sums
from frostline.errors import RunError
from frostline.files import cache_folder, write_atomically
from frostline.plan.frost_line import BorderTensor, FrostLine

VERSION = 2
_PART = "part"
_LOCK = ".lock"
_ROWS_CHECKED_TOGETHER = 256


class StoreDamaged(Exception):
    """A row's checksum does not fit; the caller drops the store and runs the prefix."""


@dataclass(kw_only=True)
class PrefixStore:
    """The border tensors of all rows of one split. ``offsets`` (rows + 1): where a row's tokens begin, for text."""

    folder: Path
    border: list[BorderTensor]
    arrays: list[Tensor]
    sums: Tensor
    """int64 (rows, border tensors), memory-mapped: the complement of each row's checksum; zero where a row is not stored."""
    offsets: Tensor
    complete: bool
    lock: IO[str] | None = field(default=None, repr=False)
    """What keeps other processes from filling the same part."""

    def write(self, rows: Tensor, tensors: Sequence[Tensor]) -> None:
        """Store a batch's border tensors, padding left out."""
        here = [tensor.cpu() for tensor in tensors]
        for column, (item, array, tensor) in enumerate(zip(self.border, self.arrays, here, strict=True)):
            if item.per_token:
                where, mask = self._token_positions(rows, tensor.shape[1])
                array[where] = tensor[mask]
            else:
                array[rows] = tensor
            self.sums[rows, column] = self._row_sums(array, item, rows)

    def read(self, rows: Tensor, width: int | None = None) -> tuple[Tensor, ...]:
        """The border tensors of ``rows``, padded with zeros to ``width`` tokens. Raises StoreDamaged."""
        result = []
        for column, (item, array) in enumerate(zip(self.border, self.arrays, strict=True)):
            if item.per_token:
                assert width is not None, "a border by tokens needs the batch's width"
                where, mask = self._token_positions(rows, width)
                tensor = torch.zeros(len(rows), width, *item.shape, dtype=item.dtype)
                tensor[mask] = array[where]
                sums = self._row_sums(array, item, rows)
            else:
                tensor = array[rows]
                sums = ~row_sums(tensor)
            if not torch.equal(sums, self.sums[rows, column]):
                raise StoreDamaged(f"row {int(rows[(sums != self.sums[rows, column]).nonzero()[0, 0]])} of {self.folder}")
            result.append(tensor)
        return tuple(result)

    def stored(self) -> Tensor:
        """bool (rows,): which rows are there, every byte of them read and found to fit its checksum."""
        there = (self.sums != 0).all(dim=1)
        if not there.any():
            return there
        for rows in there.nonzero()[:, 0].split(_ROWS_CHECKED_TOGETHER):
            for column, (item, array) in enumerate(zip(self.border, self.arrays, strict=True)):
                there[rows] &= self._row_sums(array, item, rows) == self.sums[rows, column]
        return there

    def finish(self, description: dict) -> None:
        """Make the store durable and give it its final name; from here on it can be found again."""
        for name in ("sums.bin", *(f"border{index}.bin" for index in range(len(self.arrays)))):
            with open(self.folder / name, "rb") as file:
                os.fsync(file.fileno())
        write_atomically(self.folder / "manifest.json", json.dumps({**description, "version": VERSION}).encode())
        final = self.folder.parent / self.folder.name.partition(".")[0]
        try:
            os.replace(self.folder, final)
        except OSError:  # another process made the same store meanwhile: the mappings stay good, the files are not needed twice
            _delete(self.folder)
        self.folder, self.complete = final, True
        if self.lock is not None:
            (final / _LOCK).unlink(missing_ok=True)  # only now: a part without its lock could be taken by another process
        self._unlock()

    def leave(self) -> None:
        """Stop before the store is whole. A part stays for whoever fills it next; a process's own copy is deleted."""
        if self.lock is None:
            self.discard()
            return
        with contextlib.suppress(OSError):
            os.utime(self.folder)
        self._unlock()

    def discard(self) -> None:
        """Delete the files. Threads that are reading keep their mappings."""
        _delete(self.folder)
        self._unlock()

    def _unlock(self) -> None:
        if self.lock is not None:
            self.lock.close()
            self.lock = None

    def _token_positions(self, rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
        starts, ends = self.offsets[rows], self.offsets[rows + 1]
        mask = torch.arange(width) < (ends - starts)[:, None]  # (rows, width)
        return (starts[:, None] + torch.arange(width))[mask], mask

    def _row_sums(self, array: Tensor, item: BorderTensor, rows: Tensor) -> Tensor:
        if not item.per_token:
            return ~row_sums(array[rows])
        spans = zip(self.offsets[rows].tolist(), self.offsets[rows + 1].tolist(), strict=True)
        return ~torch.cat([row_sums(array[start:end].reshape(1, -1)) for start, end in spans])


def store_bytes(border: Sequence[BorderTensor], rows: int, tokens: int) -> int:
    """How much disk the store of one split takes."""
    return sum(item.bytes_per_unit * (tokens if item.per_token else rows) for item in border)


def store_key(line: FrostLine, row_ids: Sequence[str], prefix_hash: str, preprocess: str) -> str:
    """The name of the store that holds exactly this."""
    digest = hashlib.sha256(f"{VERSION}|{torch.__version__}|{prefix_hash}|{preprocess}".encode())
    digest.update(repr([(item.call, item.position, item.shape, item.dtype, item.per_token) for item in line.border]).encode())
    for row_id in row_ids:
        digest.update(row_id.encode())
    return digest.hexdigest()[:40]


def stores_folder() -> Path:
    """Where all stores are kept."""
    return cache_folder() / "prefix"


def stores() -> set[str]:
    """The names of those that are finished."""
    return {manifest.parent.name for manifest in stores_folder().glob("*/manifest.json")}


def open_store(key: str, border: list[BorderTensor], rows: int, offsets: Tensor) -> PrefixStore | None:
    """The finished store of that name, or None. A store that cannot be read is deleted, for it can be made again."""
    folder = stores_folder() / key
    if not (folder / "manifest.json").exists():
        return None
    try:
        arrays, sums = _map(folder, border, rows, int(offsets[-1]))
    except (OSError, RuntimeError, ValueError):
        _delete(folder)
        return None
    os.utime(folder)  # the eviction rule goes by last use
    return PrefixStore(folder=folder, border=border, arrays=arrays, sums=sums, offsets=offsets, complete=True)


def create_store(key: str, border: list[BorderTensor], rows: int, offsets: Tensor, limit_bytes: float) -> PrefixStore:
    """A store to fill: the part that an interrupted process left, with its rows, else an empty one.

    Older stores are evicted to stay below the limit. Raises RunError when the disk has no room.
    """
    tokens = int(offsets[-1])
    needed = store_bytes(border, rows, tokens)
    folder = stores_folder() / f"{key}.{_PART}"
    lock = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _take_lock(folder)
        if lock is None:
            folder = stores_folder() / f"{key}.{os.getpid()}"
            folder.mkdir(exist_ok=True)
        evict(limit_bytes - needed)
        arrays, sums = _map_part(folder, border, rows, tokens)
        os.utime(folder)
    except OSError as error:
        _delete(folder)
        if lock is not None:
            lock.close()
        raise RunError(
            f"{str(folder)!r}: no room for a store of {needed / 1e9:.1f} GB ({error.strerror}). Free space, or set plan.cache=off"
        ) from error
    return PrefixStore(folder=folder, border=border, arrays=arrays, sums=sums, offsets=offsets, complete=False, lock=lock)


def _map_part(folder: Path, border: list[BorderTensor], rows: int, tokens: int) -> tuple[list[Tensor], Tensor]:
    """The files that are there, if they have the right sizes; else new ones, whose room is taken now and not at the end."""
    try:
        return _map(folder, border, rows, tokens)
    except (FileNotFoundError, ValueError):
        pass
    for name, size in _sizes(border, rows, tokens).items():
        with open(folder / name, "wb") as file:
            if size:
                os.posix_fallocate(file.fileno(), 0, size)
    return _map(folder, border, rows, tokens)


def _take_lock(folder: Path) -> IO[str] | None:
    """The lock of a part, or None where another process has it. Open files hold it: it goes when the process ends."""
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):  # held, or the folder was finished or evicted this moment
        file = stack.enter_context(open(folder / _LOCK, "w"))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), os.stat(folder / _LOCK)):  # else the folder is no longer what was opened
            stack.pop_all()
            return file
    return None


def evict(limit_bytes: float) -> None:
    """Delete the own copies of dead processes, and the stores used longest ago until the rest takes at most ``limit_bytes``.

    A part that nobody is filling counts as a store; one that is being filled is left alone.
    """
    kept = 0
    for folder in sorted(stores_folder().glob("*"), key=_last_use, reverse=True):
        owner = folder.suffix[1:]
        with _unused(folder, owner) as unused:
            if not unused:
                continue
            wanted = not owner or (owner == _PART and not folder.with_suffix("").exists())
            kept += _size_of(folder) if wanted else 0
            if not wanted or kept > limit_bytes:
                _delete(folder)


@contextlib.contextmanager
def _unused(folder: Path, owner: str) -> Iterator[bool]:
    """Whether no process is filling the folder; where that is a part, none can begin to meanwhile."""
    if owner != _PART:
        yield not (owner and _alive(owner))
        return
    lock = _take_lock(folder)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.close()


def _delete(folder: Path) -> None:
    """Renamed first, so that nobody opens or begins to fill what is going."""
    going = folder.with_name(f"{folder.stem}.going-{os.getpid()}")
    with contextlib.suppress(OSError):
        os.replace(folder, going)
        folder = going
    shutil.rmtree(folder, ignore_errors=True)


def _last_use(folder: Path) -> float:
    """Of a part, when a checksum was written last; its folder only tells when the filling began."""
    used = 0.0
    for path in (folder, folder / "sums.bin"):
        with contextlib.suppress(OSError):  # another process deletes too
            used = max(used, path.stat().st_mtime)
    return used


def _size_of(folder: Path) -> int:
    size = 0
    for path in folder.glob("*"):
        with contextlib.suppress(OSError):
            size += path.stat().st_size
    return size


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        pass  # another user's, but there
    return True


def _sizes(border: list[BorderTensor], rows: int, tokens: int) -> dict[str, int]:
    """The files of a store and their bytes, the checksums last."""
    sizes = {f"border{index}.bin": store_bytes([item], rows, tokens) for index, item in enumerate(border)}
    return {**sizes, "sums.bin": rows * len(border) * torch.int64.itemsize}


def _map(folder: Path, border: list[BorderTensor], rows: int, tokens: int) -> tuple[list[Tensor], Tensor]:
    """The arrays and the checksums. Raises ValueError where a file has another size."""
    kinds = [*((item.dtype, (tokens if item.per_token else rows, *item.shape)) for item in border), (torch.int64, (rows, len(border)))]
    *arrays, sums = (
        _map_file(folder / name, size, dtype).reshape(shape)
        for (name, size), (dtype, shape) in zip(_sizes(border, rows, tokens).items(), kinds, strict=True)
    )
    return arrays, sums


def _map_file(path: Path, size: int, dtype: torch.dtype) -> Tensor:
    if path.stat().st_size != size:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, expected {size}")
    return torch.from_file(str(path), shared=True, size=size // dtype.itemsize, dtype=dtype) if size else torch.empty(0, dtype=dtype)


def prefix_hash(module: torch.nn.Module, names: Sequence[str]) -> str:
    """Hash of what the prefix may read: all at or below the named modules, and what else does not learn, wherever it stands."""
    digest = hashlib.blake2b(digest_size=20)
    prefix = tuple(f"{name}." for name in names)
    tensors: dict[str, Tensor] = {name: parameter for name, parameter in module.named_parameters() if not parameter.requires_grad}
    for path, part in module.named_modules():
        if path.startswith(prefix) or path in names or not any(parameter.requires_grad for parameter in part.parameters(recurse=False)):
            tensors |= dict(part.named_buffers(path, recurse=False))
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
