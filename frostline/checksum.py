"""Checksums at the speed of memory: bytes summed as the widest integers that fit.

A sum of 64-bit words, wrapping, changes with any one word that changes; the chance that several changes cancel is 2^-64 for
changes that are not made to cancel. That is what damage and stray writes are; where someone might want to deceive, a
cryptographic hash is used instead.
"""

from __future__ import annotations

import torch
from torch import Tensor


def row_sums(rows: Tensor) -> Tensor:
    """int64 (rows,): the checksum of each row's bytes.

    >>> row_sums(torch.zeros(2, 3)).tolist()
    [0, 0]
    """
    flat = rows.detach().contiguous().reshape(-1)
    size = flat.nbytes // max(1, rows.shape[0])
    integer = next(kind for kind in (torch.int64, torch.int32, torch.int16, torch.uint8) if size % kind.itemsize == 0)
    return flat.view(integer).reshape(rows.shape[0], size // integer.itemsize).sum(1, dtype=torch.int64)
