from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from frostline.adapt.freeze import freeze, unfreeze
from frostline.errors import RunError
from frostline.train.ema import Ema


def drift(module: nn.Module, step: int) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += step + 1


def test_the_formula_with_its_warm_up():
    module = nn.Linear(2, 1)
    ema = Ema(module, 0.25)
    expected = module.weight.detach().clone()
    for step in range(5):
        drift(module, step)
        ema.update()
        decay = min(0.25, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    torch.testing.assert_close(ema.averages["weight"], expected)
    assert (1 + 4) / (10 + 4) > 0.25 > (1 + 1) / (10 + 1)  # both sides of the minimum were walked


def test_swapped_in_and_exactly_out_again():
    module = nn.Linear(3, 3).bfloat16()
    ema = Ema(module, 0.9)
    drift(module, 0)
    ema.update()
    live, averages = module.weight.detach().clone(), ema.averages["weight"].clone()
    assert averages.dtype == torch.float32
    weight = module.weight
    with pytest.raises(ZeroDivisionError), ema.swapped_in():
        assert torch.equal(module.weight, averages.bfloat16()) and not torch.equal(module.weight, live)
        raise ZeroDivisionError
    assert module.weight is weight and torch.equal(module.weight, live) and torch.equal(ema.averages["weight"], averages)


def test_only_what_learns_is_averaged_and_what_thaws_joins():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    freeze(module, lambda name: name.startswith("1."))
    ema = Ema(module, 0.9)
    assert list(ema.averages) == ["1.weight", "1.bias"]
    frozen = module[0].weight.detach().clone()
    with ema.swapped_in():
        assert torch.equal(module[0].weight, frozen)
    unfreeze(module)
    drift(module, 0)
    ema.update()
    assert torch.equal(ema.averages["0.weight"], module[0].weight)


def test_stopped_and_resumed_is_bitwise_the_same():
    torch.manual_seed(0)
    module = nn.Linear(4, 3)
    whole, first = Ema(module, 0.5), Ema(module, 0.5)
    for step in range(6):
        if step == 3:
            tensors, values = first.state_to_tensors()
            first = Ema(module, 0.5)
            first.state_from_tensors(tensors, json.loads(json.dumps(values)))
        drift(module, step)
        whole.update()
        first.update()
    assert whole.updates == first.updates == 6
    assert all(torch.equal(whole.averages[name], first.averages[name]) for name in whole.averages)


def test_averages_of_another_model():
    ema = Ema(nn.Linear(2, 2), 0.9)
    with pytest.raises(RunError, match=r"average 'weight': got shape \(3, 3\), which fits no weight"):
        ema.state_from_tensors({"weight": torch.zeros(3, 3)}, {"updates": 1})
