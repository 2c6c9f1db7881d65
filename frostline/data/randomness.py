"""Stateless randomness (law 2): every draw is a function of (seed, epoch, row, operation), never of what was drawn before.

Philox is a counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): its key is
made from the four, so no state has to be saved, workers cannot matter, and any draw can be made again.
"""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, epoch: int, row: int, operation: str) -> np.random.Generator:
    """The generator of one operation on one row in one epoch.

    >>> generator(0, 1, 2, "flip").random() == generator(0, 1, 2, "flip").random()
    True
    """
    return np.random.Generator(np.random.Philox(key=_key(seed, epoch, row, operation)))


def uniform(seed: int, epoch: int, rows: np.ndarray, operation: str, columns: int) -> np.ndarray:
    """Float64 numbers in [0, 1), shape (len(rows), columns); each row's numbers do not depend on the other rows."""
    return np.stack([generator(seed, epoch, int(row), operation).random(columns) for row in rows]) if len(rows) else np.empty((0, columns))


def integer_seed(seed: int, epoch: int, row: int, operation: str) -> int:
    """A 63-bit seed for ``torch.manual_seed``, from the same four."""
    return _key(seed, epoch, row, operation)[0] >> 1


def _key(seed: int, epoch: int, row: int, operation: str) -> tuple[int, int]:
    digest = hashlib.blake2b(f"{seed}/{epoch}/{row}/{operation}".encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
