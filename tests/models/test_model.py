"""What stands beside a module: its card, the names of its head, and a mode that is put back as it was."""

import pytest
import torch
from torch import nn

from frostline.data.dataset import Schema
from frostline.data.preprocess import ImagePreprocess
from frostline.models.model import Card, Model, evaluating, logits_of, with_own


def model(module):
    schema = Schema(task="image-classification", labels=("猫", "dog"))
    return Model(module=module, card=Card(name="custom", schema=schema, preprocess=ImagePreprocess(size=8)), head=["head", "pool"])


def test_a_head_is_a_module_not_a_prefix_of_letters():
    named = model(nn.Identity())
    assert named.in_head("head.0.weight") and named.in_head("head") and named.in_head("pool.bias")
    assert not named.in_head("header.weight") and not named.in_head("body.head.weight")


def test_each_module_goes_back_to_its_own_mode():
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2), nn.ReLU()))
    module.train()
    module[2].eval()
    before = [part.training for part in module.modules()]
    with pytest.raises(ZeroDivisionError), evaluating(module):
        assert not any(part.training for part in module.modules())
        raise ZeroDivisionError
    assert [part.training for part in module.modules()] == before


def test_logits_of_a_tensor_and_of_an_output_object():
    class Output:
        logits = torch.ones(1)

    assert logits_of(torch.zeros(1)) == 0 and logits_of(Output()) == 1


def test_an_attribute_of_its_own_is_put_back_even_where_there_was_none():
    layer = nn.Linear(2, 2)
    x = torch.ones(1, 2)
    plain = layer(x)
    with with_own(layer, "forward", lambda x: x + 1):
        with pytest.raises(ZeroDivisionError), with_own(layer, "forward", lambda x: x + 2):
            assert torch.equal(layer(x), x + 2)
            raise ZeroDivisionError
        assert torch.equal(layer(x), x + 1)
    assert torch.equal(layer(x), plain) and "forward" not in vars(layer)
