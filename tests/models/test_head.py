"""Heads: layers, pooling where it is needed, and the final linear layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from frostline.errors import ModelError
from frostline.models.head import ImageNetwork, blocks, build_by_hand, build_head, head


def kinds(module: nn.Sequential) -> list[str]:
    return [type(layer).__name__ for layer in module]


def test_the_recipe_of_the_issue() -> None:
    made = build_head(["flatten", "dense 256 relu", "dropout 0.5"], (512, 7, 7), 2)
    assert kinds(made) == ["Flatten", "Linear", "ReLU", "Dropout", "Linear"]
    assert made[1].in_features == 512 * 49
    assert made[-1].out_features == 2


def test_flatten_is_in_pytorchs_order() -> None:
    features = torch.randn(2, 3, 2, 2)
    made = build_head(["flatten"], (3, 2, 2), 4)
    assert torch.allclose(made(features), features.reshape(2, 12) @ made[1].weight.T + made[1].bias, atol=1e-6)


def test_vectors_need_no_pooling() -> None:
    assert kinds(build_head([], 8, 3)) == ["Linear"]
    assert kinds(build_head(["dense 4 tanh"], (8,), 3)) == ["Linear", "Tanh", "Linear"]


@pytest.mark.parametrize("pool", [None, "mean", "max", "attention"])
def test_pooling(pool: str | None) -> None:
    features = torch.randn(2, 5, 3, 4)
    made = build_head([], (5, 3, 4), 2, pool)
    expected = features.amax((2, 3)) if pool == "max" else features.mean((2, 3))  # attention starts as the mean
    assert torch.allclose(made[:-1](features), expected, atol=1e-6)
    assert sum(p.numel() for p in made.parameters()) == 12 + (5 if pool == "attention" else 0)


def test_attention_pooling_is_a_weighted_mean() -> None:
    features = torch.randn(2, 5, 3, 4)
    made = build_head([], (5, 3, 4), 2, "attention")[0]
    nn.init.normal_(made.score.weight)
    for row, pooled in zip(features, made(features), strict=True):
        positions = row.reshape(5, 12)
        weights = (made.score.weight @ positions).softmax(-1)
        assert torch.allclose(pooled, (positions * weights).sum(-1), atol=1e-6)


def test_spatial_layers_come_before_pooling() -> None:
    made = build_head(["conv 6 3 relu", "dropout 0.1", "dense 4"], (5, 3, 4), 2, "max")
    assert kinds(made) == ["Conv2d", "ReLU", "AdaptiveMaxPool2d", "Flatten", "Dropout", "Linear", "Linear"]
    assert made(torch.randn(1, 5, 3, 4)).shape == (1, 2)


def test_refusals() -> None:
    with pytest.raises(ModelError, match=r"unknown word 'densse', did you mean 'dense'"):
        build_head(["densse 4"], (5, 3, 4), 2)
    with pytest.raises(
        ModelError, match=r"model.pool is 'cls': it picks the first token, and an image has none; expected one of mean, max, attention"
    ):
        build_head([], (5, 3, 4), 2, "cls")
    with pytest.raises(ModelError, match=r"model.pool is 'max', but the head already makes one vector"):
        build_head(["flatten"], (5, 3, 4), 2, "max")
    with pytest.raises(ModelError, match=r"model.pool is 'mean', but the features are one vector already"):
        build_head([], 8, 2, "mean")
    with pytest.raises(ModelError, match=r"outputs is 0"):
        build_head([], 8, 0)


def test_a_network_by_hand() -> None:
    made = build_by_hand(["conv 4 3", "batchnorm", "relu", "pool 2", "conv 8 3 relu"], outputs=3, head=["dropout 0.1"], channels=1, size=8)
    assert isinstance(made, ImageNetwork)
    assert made(pixel_values=torch.randn(2, 1, 8, 8)).shape == (2, 3)
    assert blocks(made) == ["features.0", "features.4"]
    assert head(made) == ["head"]
