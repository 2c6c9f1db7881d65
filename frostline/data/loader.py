"""Batches in an order that depends on seed and epoch alone, made ahead of time by worker threads.

The order of an epoch is one permutation; a checkpoint needs only (epoch, step) to go on in the middle (law 2). Threads,
not processes: image decoding and torch release the interpreter's lock, and nothing has to be copied between processes.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from frostline.data.randomness import generator
from frostline.device import moved

_BATCHES_SORTED_TOGETHER = 32


@dataclass(kw_only=True)
class Batch:
    """What one forward pass takes."""

    inputs: dict[str, torch.Tensor]
    """The network's keyword arguments; the first dimension of each is the row."""
    labels: torch.Tensor
    """int64 (rows,) for a class; float32 (rows, outputs) for several labels, mixed classes or numbers; int64 (rows, tokens) where
    each position has one, -100 where it counts nothing (a language model's are shifted: what the position is to predict)."""
    rows: torch.Tensor
    """int64 (rows,): positions in the split's table."""
    reference: torch.Tensor | None = None
    """float64 (rows, 2): what the frozen reference gives for the chosen and the rejected answer; for preferences."""
    border: tuple[torch.Tensor, ...] | None = None
    """What the frozen prefix gives for these rows, where it was cached; None: the prefix has to be run."""

    def to(self, device: torch.device) -> Batch:
        """The same where the network is; ``rows`` stay, which stores and tables are asked by."""
        if device == self.labels.device:
            return self
        return replace(
            self,
            inputs={name: moved(value, device) for name, value in self.inputs.items()},
            labels=moved(self.labels, device),
            reference=None if self.reference is None else moved(self.reference, device),
            border=None if self.border is None else tuple(moved(tensor, device) for tensor in self.border),
        )


def spread(rows: int, count: int) -> np.ndarray:
    """int64: the indices of ``count`` rows (or all), evenly from the first to the last.

    >>> spread(10, 4).tolist(), spread(2, 4).tolist()
    ([0, 3, 6, 9], [0, 1])
    """
    return np.linspace(0, rows - 1, num=min(count, rows), dtype=int)


Encode = Callable[[np.ndarray, int | None], Batch]
"""(rows, epoch) → Batch. ``epoch`` is None outside training: no augmentation then."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One split of a task with tokens, ready to be batched."""

    encode: Encode
    kept: np.ndarray
    """int64 (rows,): for each row that is batched, the row of the split's table that it was made from."""
    lengths: np.ndarray
    """int64 (rows,): tokens of each."""
    truncated: int = 0
    """How many rows were cut."""
    warnings: list[str] = field(default_factory=list)
    """What a user must be told of the labels: cuts, missing end tokens, templates, each with a count and an example."""
    row_labels: np.ndarray | None = None
    """What a row is measured by where it is no label of the table: for documents int64 (rows,), the bytes (UTF-8) of the text that
    its labels stand for; for pairs of texts their scores, or which texts they are."""


def epoch_batches(count: int, batch: int, seed: int, epoch: int, lengths: np.ndarray | Sequence[int] | None = None) -> list[np.ndarray]:
    """The row indices of each batch of one training epoch; every row once, the last batch may be smaller.

    With ``lengths``, rows of like length meet in one batch (sorted within windows of 32 batches), so that little is padded, and
    the largest batch is the first of epoch 0.

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
    mixed = [batches[index] for index in rng.permutation(len(batches))]
    if epoch == 0:  # the worst first: what does not fit in memory is told in the first step, not after hours (law 7)
        largest = max(range(len(mixed)), key=lambda index: len(mixed[index]) * int(size[mixed[index]].max()))
        mixed.insert(0, mixed.pop(largest))
    return mixed


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

    torch's setting holds for the calling thread, and for threads that begin later; the latter is taken back by the caller. A thread is
    given the setting for those that begin when it first asks for it, so it asks before: after, it might get what was taken back.
    """
    torch.get_num_threads()
    torch.set_num_threads(1)
