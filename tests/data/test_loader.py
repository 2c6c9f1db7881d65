"""Order depends on seed and epoch alone; every row comes once; workers change nothing; resuming is slicing."""

import numpy as np
import pytest
import torch

from frostline.data.loader import Batch, epoch_batches, load, plain_batches, spread
from frostline.data.randomness import generator


def encode(rows, epoch):
    return Batch(inputs={"x": torch.as_tensor(rows) * 1.0}, labels=torch.as_tensor(rows), rows=torch.as_tensor(rows))


@pytest.mark.parametrize("lengths", [None, list(range(101, 0, -1))])
def test_every_row_once_and_order_from_seed_and_epoch(lengths):
    first = epoch_batches(101, 8, seed=3, epoch=1, lengths=lengths)
    assert sorted(np.concatenate(first)) == list(range(101))
    again = epoch_batches(101, 8, seed=3, epoch=1, lengths=lengths)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    other_epoch = np.concatenate(epoch_batches(101, 8, seed=3, epoch=2, lengths=lengths))
    other_seed = np.concatenate(epoch_batches(101, 8, seed=4, epoch=1, lengths=lengths))
    assert (np.concatenate(first) != other_epoch).any() and (np.concatenate(first) != other_seed).any()


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_workers_never_change_the_order(workers):
    batches = epoch_batches(50, 7, seed=0, epoch=0)
    got = [batch.rows.numpy() for batch in load(encode, batches, 0, workers)]
    assert all((a == b).all() for a, b in zip(got, batches, strict=True))


def test_a_batch_goes_where_the_network_is_and_its_rows_stay():
    batch = encode(np.arange(3), None)
    assert batch.to(torch.device("cpu")) is batch
    batch.reference, batch.border = torch.ones(3, 2), (torch.ones(3, 4),)
    there = batch.to(torch.device("meta"))
    assert all(one.is_meta for one in (there.inputs["x"], there.labels, there.reference, *there.border))
    assert there.rows is batch.rows and not batch.labels.is_meta


def test_lengths_reduce_padding():
    lengths = np.random.default_rng(0).integers(1, 200, 2000)

    def padded(batches):
        return sum(len(rows) * lengths[rows].max() for rows in batches)

    assert padded(epoch_batches(2000, 16, 0, 0, lengths)) < 0.65 * padded(epoch_batches(2000, 16, 0, 0))
    assert padded(plain_batches(2000, 16, lengths)) < 0.65 * padded(plain_batches(2000, 16))


@pytest.mark.parametrize("longest", [0, 57, 100])
def test_the_worst_batch_comes_first_and_only_in_the_first_epoch(longest):
    """Law 7: what does not fit in memory is told in the first step. All else is in the order that it has without this."""
    lengths = np.random.default_rng(0).integers(1, 50, 101)
    lengths[longest] = 200
    first = epoch_batches(101, 8, seed=3, epoch=0, lengths=lengths)
    padded = [len(rows) * lengths[rows].max() for rows in first]
    assert longest in first[0] and padded[0] == max(padded) and sorted(np.concatenate(first)) == list(range(101))
    for epoch in range(3):
        rng = generator(3, epoch, -1, "order")
        order = rng.permutation(101)
        order = order[np.argsort(lengths[order], kind="stable")]
        usual = [order[8 * place : 8 * place + 8] for place in rng.permutation(13)]
        if epoch == 0:
            usual.sort(key=lambda rows: longest not in rows)  # that one to the front, the others as they are
        for ours, theirs in zip(epoch_batches(101, 8, seed=3, epoch=epoch, lengths=lengths), usual, strict=True):
            assert ours.tolist() == theirs.tolist()


def test_what_counts_is_the_padded_size_and_not_the_longest_row():
    lengths = [30] + [20] * 8  # the row of 30 stands alone in the last, smaller batch
    assert epoch_batches(9, 8, seed=0, epoch=0, lengths=lengths)[0].tolist() != [0]
    assert len(epoch_batches(9, 8, seed=0, epoch=0, lengths=lengths)[0]) == 8
    assert [len(rows) for rows in epoch_batches(9, 8, seed=0, epoch=0)] == [8, 1]


def test_an_error_in_a_worker_reaches_the_caller():
    def broken(rows, epoch):
        raise ValueError("row 3")

    with pytest.raises(ValueError, match="row 3"):
        list(load(broken, epoch_batches(10, 2, 0, 0), 0, 2))


@pytest.mark.parametrize(("count", "wanted", "expected"), [(5, 5, [0, 1, 2, 3, 4]), (100, 3, [0, 49, 99]), (1, 1, [0])])
def test_rows_spread_over_the_split(count, wanted, expected) -> None:
    assert spread(count, wanted).tolist() == expected
