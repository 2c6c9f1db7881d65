"""The store of what a frozen prefix gives: one file per border tensor, memory-mapped, every row with a checksum.

Law 4, the cache proves itself. The folder's name is a hash of all that the content depends on (the rows, the prefix's
weights, the preprocessing, the types, the version below), so a stale store is never found; the manifest is written last,
so half a store is never found; each row's checksum is compared whenever the row is read, so a damaged row is found at its
first use.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from frostline.checksum import row_sums
from frostline.errors import RunError
from frostline.files import cache_folder, write_atomically
from frostline.plan.frost_line import BorderTensor, FrostLine

VERSION = 1


class StoreDamaged(Exception):
    """A row's checksum does not fit; the caller drops the store and runs the prefix."""


@dataclass(kw_only=True)
class PrefixStore:
    """The border tensors of all rows of one split. ``offsets`` (rows + 1): where a row's tokens begin, for text."""

    folder: Path
    border: list[BorderTensor]
    arrays: list[Tensor]
    sums: Tensor
    """int64 (rows, border tensors): the sum of each row's bytes taken as integers."""
    offsets: Tensor
    complete: bool

    def write(self, rows: Tensor, tensors: Sequence[Tensor]) -> None:
        """Store a batch's border tensors, padding left out."""
        for column, (item, array, tensor) in enumerate(zip(self.border, self.arrays, tensors, strict=True)):
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
                sums = row_sums(tensor)
            if not torch.equal(sums, self.sums[rows, column]):
                raise StoreDamaged(f"row {int(rows[(sums != self.sums[rows, column]).nonzero()[0, 0]])} of {self.folder}")
            result.append(tensor)
        return tuple(result)

    def finish(self, description: dict) -> None:
        """Make the store durable and give it its final name; from here on it can be found again."""
        for index in range(len(self.arrays)):
            with open(self.folder / f"border{index}.bin", "rb") as file:
                os.fsync(file.fileno())
        write_atomically(self.folder / "sums.bin", self.sums.numpy().tobytes())
        write_atomically(self.folder / "manifest.json", json.dumps({**description, "version": VERSION}).encode())
        final = self.folder.parent / self.folder.name.partition(".")[0]
        try:
            os.replace(self.folder, final)
        except OSError:  # another process made the same store meanwhile: the mappings stay good, the files are not needed twice
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder, self.complete = final, True

    def discard(self) -> None:
        """Delete the files. Threads that are reading keep their mappings."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _token_positions(self, rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
        starts, ends = self.offsets[rows], self.offsets[rows + 1]
        mask = torch.arange(width) < (ends - starts)[:, None]  # (rows, width)
        return (starts[:, None] + torch.arange(width))[mask], mask

    def _row_sums(self, array: Tensor, item: BorderTensor, rows: Tensor) -> Tensor:
        if not item.per_token:
            return row_sums(array[rows])
        spans = zip(self.offsets[rows].tolist(), self.offsets[rows + 1].tolist(), strict=True)
        return torch.cat([row_sums(array[start:end].reshape(1, -1)) for start, end in spans])


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


def open_store(key: str, border: list[BorderTensor], rows: int, offsets: Tensor) -> PrefixStore | None:
    """The finished store of that name, or None. A store that cannot be read is deleted, for it can be made again."""
    folder = stores_folder() / key
    if not (folder / "manifest.json").exists():
        return None
    try:
        arrays = _map(folder, border, rows, int(offsets[-1]))
        sums = torch.frombuffer(bytearray((folder / "sums.bin").read_bytes()), dtype=torch.int64).reshape(rows, len(border))
    except (OSError, RuntimeError, ValueError):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    os.utime(folder)  # the eviction rule goes by last use
    return PrefixStore(folder=folder, border=border, arrays=arrays, sums=sums, offsets=offsets, complete=True)


def create_store(key: str, border: list[BorderTensor], rows: int, offsets: Tensor, limit_bytes: float) -> PrefixStore:
    """An empty store; older ones are evicted to stay below the limit. Raises RunError when the disk has no room."""
    folder = stores_folder() / f"{key}.{os.getpid()}"
    needed = store_bytes(border, rows, int(offsets[-1]))
    evict(limit_bytes - needed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for index, item in enumerate(border):
            size = store_bytes([item], rows, int(offsets[-1]))
            with open(folder / f"border{index}.bin", "wb") as file:
                if size:
                    os.posix_fallocate(file.fileno(), 0, size)
        arrays = _map(folder, border, rows, int(offsets[-1]))
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise RunError(
            f"{str(folder)!r}: no room for a store of {needed / 1e9:.1f} GB ({error.strerror}). Free space, or set plan.cache=off"
        ) from error
    return PrefixStore(
        folder=folder, border=border, arrays=arrays, sums=torch.zeros(rows, len(border), dtype=torch.int64), offsets=offsets, complete=False
    )


def evict(limit_bytes: float) -> None:
    """Delete what killed processes left half made, and the stores used longest ago until the rest takes at most ``limit_bytes``."""
    if not stores_folder().exists():
        return
    for folder in stores_folder().glob("*.*"):
        if not _alive(folder.suffix[1:]):
            shutil.rmtree(folder, ignore_errors=True)
    kept = 0
    for folder in sorted((f for f in stores_folder().iterdir() if "." not in f.name), key=lambda f: f.stat().st_mtime, reverse=True):
        kept += sum(file.stat().st_size for file in folder.iterdir())
        if kept > limit_bytes:
            shutil.rmtree(folder, ignore_errors=True)


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        pass  # another user's, but there
    return True


def _map(folder: Path, border: list[BorderTensor], rows: int, tokens: int) -> list[Tensor]:
    arrays = []
    for index, item in enumerate(border):
        shape = (tokens if item.per_token else rows, *item.shape)
        count = store_bytes([item], rows, tokens) // item.dtype.itemsize
        path = folder / f"border{index}.bin"
        if path.stat().st_size != count * item.dtype.itemsize:
            raise ValueError(f"{path} has {path.stat().st_size} bytes, expected {count * item.dtype.itemsize}")
        flat = torch.from_file(str(path), shared=True, size=count, dtype=item.dtype) if count else torch.empty(0, dtype=item.dtype)
        arrays.append(flat.reshape(shape))
    return arrays


def prefix_hash(module: torch.nn.Module, names: Sequence[str]) -> str:
    """Hash of every parameter and buffer at or below the named modules: what the prefix computes depends on nothing else."""
    digest = hashlib.blake2b(digest_size=20)
    prefix = tuple(f"{name}." for name in names)
    for name, tensor in sorted(module.state_dict().items()):
        if name.startswith(prefix):
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
