from __future__ import annotations

from torch import nn

from frostline.models.parts import find_blocks, find_head


def test_the_longest_list_of_one_class() -> None:
    module = nn.ModuleDict(
        {
            "mixed": nn.ModuleList([nn.Linear(1, 1), nn.Conv2d(1, 1, 1), nn.Linear(1, 1), nn.Linear(1, 1)]),
            "layers": nn.ModuleList(nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.Linear(1, 1)) for _ in range(3)),
            "out": nn.Linear(1, 1),
            "activation": nn.ReLU(),
        }
    )
    assert find_blocks(module) == ["layers.0", "layers.1", "layers.2"]
    assert find_head(module) == ["out"]


def test_sequential_without_any_list() -> None:
    assert find_blocks(nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))) == ["0", "2"]
    assert find_blocks(nn.Linear(1, 1)) == []
    assert find_head(nn.ReLU()) == []
