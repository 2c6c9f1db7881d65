"""Batches in an order that depends on seed and epoch alone, made ahead of time by worker threads.

The order of an epoch is one permutation; a checkpoint needs only (epoch, step) to go on in the middle (law 2). Threads,
not processes: image decoding and torch release the interpreter's lock, and nothing has to be copied between processes.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from frostline.data.randomness import generator

_BATCHES_SORTED_TOGETHER = 32


@dataclass(kw_only=True)
class Batch:
    """What one forward pass takes."""

    inputs: dict[str, torch.Tensor]
    """The network's keyword arguments; the first dimension of each is the row."""
    labels: torch.Tensor
    """int64 (rows,) for a class; float32 (rows, outputs) for several labels, mixed classes or numbers."""
    rows: torch.Tensor
    """int64 (rows,): positions in the split's table."""
    border: tuple[torch.Tensor, ...] | None = None
    """What the frozen prefix gives for these rows, where it was cached; None: the prefix has to be run."""


Encode = Callable[[np.ndarray, int | None], Batch]
"""(rows, epoch) → Batch. ``epoch`` is None outside training: no augmentation then."""


def epoch_batches(count: int, batch: int, seed: int, epoch: int, lengths: np.ndarray | Sequence[int] | None = None) -> list[np.ndarray]:
    """The row indices of each batch of one training epoch; every row once, the last batch may be smaller.

    With ``lengths``, rows of like length meet in one batch (sorted within windows of 32 batches), so that little is padded.

    >>> [len(rows) for rows in epoch_batches(5, 2, seed=0, epoch=0)]
    [2, 2, 1]
    """
    rng = generator(seed, epoch, -1, "order")
    order = rng.permutation(count)
    if lengths is None:
        return [order[start : start + batch] for start in range(0, count, batch)]
    size = np.asarray(lengths)
    batches: list[np.ndarray] = []
    window = batch * _BATCHES_SORTED_TOGETHER
    for start in range(0, count, window):
        rows = order[start : start + window]
        rows = rows[np.argsort(size[rows], kind="stable")]
        batches += [rows[i : i + batch] for i in range(0, len(rows), batch)]
    return [batches[index] for index in rng.permutation(len(batches))]


def plain_batches(count: int, batch: int, lengths: np.ndarray | Sequence[int] | None = None) -> list[np.ndarray]:
    """Batches for evaluation: no randomness; sorted by length where lengths are known."""
    order = np.arange(count) if lengths is None else np.argsort(np.asarray(lengths), kind="stable")
    return [order[start : start + batch] for start in range(0, count, batch)]


def load(encode: Encode, batches: list[np.ndarray], epoch: int | None, workers: int) -> Iterator[Batch]:
    """Yield each batch in order; up to ``workers`` threads encode ahead (0: in this thread)."""
    if workers == 0:
        for rows in batches:
            yield encode(rows, epoch)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="frostline-loader", initializer=_one_core)
    pending: collections.deque[Future[Batch]] = collections.deque()
    rest = iter(batches)
    try:
        for rows in itertools.islice(rest, workers + 1):
            pending.append(pool.submit(encode, rows, epoch))
        while pending:
            ready = pending.popleft().result()
            torch.set_num_threads(torch.get_num_threads())  # threads that begin later are not the loader's: see _one_core
            for rows in itertools.islice(rest, 1):
                pending.append(pool.submit(encode, rows, epoch))
            yield ready
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _one_core() -> None:
    """Let a loader thread compute on one core, since the network needs the others.

    torch's setting holds for the calling thread, and for threads that begin later; the latter is taken back by the caller.
    """
    torch.set_num_threads(1)
