"""IDX, the layout of MNIST's files (LeCun, Cortes, Burges, http://yann.lecun.com/exdb/mnist/).

Two zero bytes, a type (8: unsigned byte), the number of dimensions, each dimension as a big-endian 32-bit number, then the
values; often packed with gzip. The header is held against what the file really contains before memory is taken, so one that
claims terabytes costs nothing.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import zlib
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from frostline.data.places import place_fault
from frostline.errors import DataError

_IMAGES = re.compile(r"(?P<stem>.*)images(?P<dot>[-.])idx3-ubyte(\.gz)?", re.DOTALL)
_SPLITS = {"train": "train", "t10k": "test", "test": "test"}
_MOST_DEFLATED = 1032  # deflate cannot pack more bytes than this into one (zlib's technical details)
_PIECE = 1 << 20


def idx_pairs(source: Path) -> list[tuple[Path, Path, str | None]]:
    """(images, labels, split); of a file and its packed twin, the unpacked one.

    Pipes, and links that lead out of the folder, are passed over, beside a file given by its name too (which may be a link).
    """
    folder = source if source.is_dir() else source.parent
    wanted = None if source.is_dir() else source.name.replace("labels", "images").replace("idx1", "idx3").removesuffix(".gz")
    there = sorted(entry.name for entry in os.scandir(folder)) if folder.is_dir() else []
    faults = {
        name: fault
        for name in there
        if name.endswith(("idx3-ubyte", "idx1-ubyte", ".gz"))
        and (fault := place_fault(folder / name, None if folder / name == source else folder))
    }
    names = [name for name in there if name not in faults]
    pairs: dict[str, tuple[Path, Path, str | None]] = {}
    for name in names:
        match = _IMAGES.fullmatch(name)
        plain = name.removesuffix(".gz")
        if match is None or plain in pairs or (wanted is not None and plain != wanted):
            continue
        labels = f"{match['stem']}labels{match['dot']}idx1-ubyte"
        partner = next((folder / option for option in (labels, f"{labels}.gz") if option in names), None)
        if partner is None:
            found = next((f", which is {faults[option]}" for option in (labels, f"{labels}.gz") if option in faults), "")
            raise DataError(
                f"{str(folder / name)!r} has no labels beside it, expected {labels!r} (or with .gz){found}. Put that file there"
            )
        split = next((split for word, split in _SPLITS.items() if word in match["stem"].casefold()), None)
        pairs[plain] = (folder / name, partner, split)
    if not pairs:
        raise DataError(
            f"{str(source)!r} holds no IDX images, expected files such as train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz. "
            "Check the path"
        )
    return list(pairs.values())


def read_idx(path: Path, dimensions: int, max_pixels: int) -> np.ndarray:
    """The values of one file, uint8. Memory is taken only for as many as the file was seen to hold."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            shape = _idx_shape(file, path, dimensions, max_pixels)
            size = math.prod(shape)
            start = 4 + 4 * dimensions
            holds = _count_up_to(file, size + 1) if path.suffix == ".gz" else path.stat().st_size - start
            if holds != size:
                beyond = "at least " if holds > size and path.suffix == ".gz" else ""
                raise DataError(f"{str(path)!r}: its header says {size} values, but {beyond}{holds} are there. Download it again")
            file.seek(start)
            values = np.empty(size, dtype=np.uint8)
            filled = 0
            while filled < size:
                if not (read := file.readinto(values.data[filled : filled + _PIECE])):
                    raise EOFError("it became shorter while it was read")
                filled += read
            return values.reshape(shape)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{str(path)!r} cannot be read as IDX ({error}). Download it again") from error


def _idx_shape(file: BufferedIOBase, path: Path, dimensions: int, max_pixels: int) -> tuple[int, ...]:
    """The dimensions in the header, refused where the file cannot hold them or this machine could not."""
    head, expected = file.read(4), bytes([0, 0, 8, dimensions])
    if head != expected:
        raise DataError(f"{str(path)!r} begins with {head!r}, expected {expected!r} (IDX, {dimensions} dimensions). Check the file")
    sides = file.read(4 * dimensions)
    if len(sides) < 4 * dimensions:
        raise DataError(f"{str(path)!r} ends in its header, expected {dimensions} dimensions. Download it again")
    shape = tuple(int.from_bytes(sides[i : i + 4], "big") for i in range(0, len(sides), 4))
    size = math.prod(shape)
    most = path.stat().st_size * (_MOST_DEFLATED if path.suffix == ".gz" else 1)
    if size > most or size == 0:
        raise DataError(f"{str(path)!r}: its header says {shape!r}, {size} values, but at most {most} can be there. Download it again")
    if math.prod(shape[1:]) > max_pixels:
        raise DataError(f"{str(path)!r}: images of {shape[1:]!r} pixels, more than data.max_pixels={max_pixels}. Raise it")
    if size > _memory() // 2:
        raise DataError(f"{str(path)!r}: {size} values, more than half of this machine's memory. Save them as files in a folder per class")
    return shape


def _count_up_to(file: BufferedIOBase, most: int) -> int:
    """How many bytes follow, in flat memory; counting stops at ``most``."""
    seen = 0
    while seen < most and (piece := file.read(min(_PIECE, most - seen))):
        seen += len(piece)
    return seen


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
