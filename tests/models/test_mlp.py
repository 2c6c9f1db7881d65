"""The multi-layer perceptron on pixels."""

from __future__ import annotations

import pytest
import torch

from frostline.errors import ModelError
from frostline.models.mlp import blocks, build_mlp, head
from frostline.models.net import Net


def test_it_is_the_formula() -> None:
    module = build_mlp(Net(outputs=3, width=7, depth=2), channels=2, size=5).eval()
    pixels = torch.randn(4, 2, 5, 5)
    hidden = pixels.reshape(4, 50)
    for index in (1, 2):
        linear = module.features[index][0]
        hidden = (hidden @ linear.weight.T + linear.bias).clamp(min=0)
    final = module.head[0]
    assert torch.allclose(module(pixel_values=pixels), hidden @ final.weight.T + final.bias, atol=1e-6)
    assert blocks(module) == ["features.1", "features.2"]
    assert head(module) == ["head"]


def test_dropout_is_on_while_learning_only() -> None:
    module = build_mlp(Net(outputs=3, dropout=0.5), channels=1, size=5)
    pixels = torch.randn(4, 1, 5, 5)
    assert not torch.equal(module(pixels), module(pixels))
    assert torch.equal(module.eval()(pixels), module(pixels))


def test_pool_is_refused() -> None:
    with pytest.raises(ModelError, match=r"model.pool is 'max', but an mlp has no positions"):
        build_mlp(Net(outputs=3, pool="max"))
