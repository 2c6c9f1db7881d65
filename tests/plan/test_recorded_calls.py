"""What a forward pass records: frozen calls with their numbers, what stands in them and what learns by shape alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from frostline.plan.recorded_calls import Call, observe, outermost_frozen, rebuilt, same


class Pair(nn.Module):
    """Returns two tensors and a word, around a part."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, object]:
        y = self.part(x)
        return {"first": y.relu(), "rest": (y.sum(1), "a word")}


class Net(nn.Module):
    def __init__(self, chance: bool) -> None:
        super().__init__()
        self.pair, self.chance, self.head = Pair().requires_grad_(False), nn.Dropout(0.5 if chance else 0.0), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = self.pair(self.chance(x))
        return self.head(found["first"]) + found["rest"][0][:, None]


def call(name: str) -> Call:
    return Call(name=name, index=0)


@pytest.mark.parametrize("whole", [False, True])
def test_numbers_are_kept_of_the_outermost_frozen_calls(whole: bool) -> None:
    net, x = Net(chance=False), torch.randn(3, 4)
    calls, logits = observe(net, {"x": x}, seed=1, whole=whole)
    assert list(calls) == [call("chance"), call("pair"), call("pair.part"), call("head")] and torch.equal(logits, net(x))
    assert [calls[one].frozen for one in calls] == [True, True, True, False]
    assert outermost_frozen(calls) == [call("chance"), call("pair")]
    assert calls[call("pair.part")].parent == call("pair")
    inner, head, pair = calls[call("pair.part")], calls[call("head")], calls[call("pair")]
    assert [tensor.device.type for tensor in (*inner.tensors, *head.tensors)] == ["cpu" if whole else "meta", "meta"]
    assert inner.tensors[0].shape == (3, 4) and head.tensors[0].shape == (3, 2)
    assert torch.equal(pair.tensors[0], net.pair(x)["first"])
    assert rebuilt(pair, [torch.ones(1), torch.zeros(1)]) == {"first": torch.ones(1), "rest": (torch.zeros(1), "a word")}


def test_what_chance_changes_is_not_the_same() -> None:
    x = torch.randn(8, 4)
    for chance in (False, True):
        net = Net(chance)
        first, second = (observe(net, {"x": x}, seed=seed)[0] for seed in (1, 2))
        assert same(first[call("pair")], second[call("pair")]) is not chance
        assert not same(first[call("pair")], None)
