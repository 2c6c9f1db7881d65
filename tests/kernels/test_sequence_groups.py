from __future__ import annotations

import random

import pytest
import torch

from frostline.kernels.sequence_groups import groups_of

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "lengths", [[1], [7], [5, 1, 4, 4, 4, 9], [300, 12, 290, 13, 14, 299], random.Random(0).choices(range(1, 700), k=40)]
)
def test_what_is_gathered_comes_back_and_padding_has_no_gradient(lengths: list[int]) -> None:
    found = groups_of(tuple(lengths), CPU)
    rows = torch.randn(sum(lengths), 2, 3, requires_grad=True)
    places = found.gather(rows)
    assert len(places) == sum(group.places for group in found.groups)
    assert torch.equal(found.put_back(places), rows)
    weights = torch.randn_like(rows)
    (gradient,) = torch.autograd.grad((found.put_back(places) * weights).sum(), rows)
    assert torch.equal(gradient, weights)


def test_every_sequence_lies_whole_and_padding_repeats_its_own_last_token() -> None:
    lengths = [30, 2, 28, 3, 29]
    found = groups_of(tuple(lengths), CPU)
    names = torch.cat([torch.full((length,), 100 * index) + torch.arange(length) for index, length in enumerate(lengths)])
    seen = []
    for group, part in zip(found.groups, found.gather(names).split([group.places for group in found.groups])):
        for length, row in zip(group.lengths.tolist(), part.view(-1, group.longest)):
            assert torch.equal(row[:length], row[0] + torch.arange(length)) and (row[length:] == row[length - 1]).all()
            seen.append(int(row[0]) // 100)
    assert sorted(seen) == list(range(len(lengths)))


def test_equal_lengths_stay_where_they_are() -> None:
    assert groups_of((8, 8, 8), CPU).order is None


def test_padding_costs_less_than_a_call_or_an_eighth() -> None:
    lengths = tuple(random.Random(1).choices(range(1, 700), k=200))
    for group in groups_of(lengths, CPU).groups:
        wasted = int((group.longest**2 - group.lengths**2).sum())
        assert wasted <= max(2048, len(group.lengths) * group.longest**2 // 8)
        assert len(group.lengths) == 1 or len(group.lengths) * group.longest**2 <= 2**18
