"""The layer language: what is written is what is built, and what does not fit is refused with the word."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from frostline.errors import ModelError
from frostline.models.layers import FORMS, build_layers, parse_layers

EXAMPLE = ["conv 64 3 relu", "pool 2", "flatten", "dense 256 relu", "dropout 0.5"]


def test_the_example_is_the_network_it_says() -> None:
    torch.manual_seed(0)
    built, shape = build_layers(EXAMPLE, (3, 28, 28))
    torch.manual_seed(0)
    conv, dense = nn.Conv2d(3, 64, 3, padding=1), nn.Linear(64 * 14 * 14, 256)
    nn.init.xavier_uniform_(dense.weight)
    nn.init.zeros_(dense.bias)
    by_hand = nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), dense, nn.ReLU(), nn.Dropout(0.5))
    pixels = torch.randn(2, 3, 28, 28)
    assert [type(layer) for layer in built] == [type(layer) for layer in by_hand]
    assert shape == (256,)
    assert torch.equal(built.eval()(pixels), by_hand.eval()(pixels))


@pytest.mark.parametrize("side", [7, 8, 29])
@pytest.mark.parametrize(
    "spec",
    [
        "conv 5 3 relu",
        "conv 5 4",
        "conv 5 3 stride 2 gelu",
        "conv 5 7 stride 3",
        "depthwise 3 relu",
        "depthwise 5 stride 2 silu",
        "pool 2",
        "pool 3 stride 2",
        "avgpool 3",
        "globalpool",
        "flatten",
        "batchnorm",
        "layernorm",
        "tanh",
        "sigmoid",
        "dropout 0",
    ],
)
def test_the_shape_that_is_followed_is_the_shape_that_comes_out(spec: str, side: int) -> None:
    built, shape = build_layers([spec], (4, side, side + 1))
    assert tuple(built(torch.randn(2, 4, side, side + 1)).shape[1:]) == shape


def test_norms_of_vectors() -> None:
    built, shape = build_layers(["dense 6", "layernorm", "batchnorm", "relu"], (5,))
    assert shape == (6,)
    assert [type(layer).__name__ for layer in built] == ["Linear", "LayerNorm", "BatchNorm1d", "ReLU"]


def test_weights_follow_the_global_generator() -> None:
    made = []
    for _ in range(2):
        torch.manual_seed(7)
        made.append(build_layers(["dense 3"], (4,))[0][0].weight)
    assert torch.equal(*made)


def test_every_word_has_an_example_that_parses() -> None:
    for word, form in FORMS.items():
        assert parse_layers([form.example])[0].word == word


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["convv 64 3"], "layer 'convv 64 3': unknown word 'convv', did you mean 'conv'"),
        (["卷积 3"], "unknown word '卷积'"),
        (["conv 64"], "layer 'conv 64': K is missing, expected 'conv OUT K .stride S. .activation.'"),
        (["conv"], "OUT is missing"),
        (["conv 64 3 2"], "'2' is not understood after 'conv'"),
        (["conv 64 3 rellu"], "'rellu' is not understood after 'conv': known activations: relu, gelu"),
        (["conv 64 3 stride"], "the number after 'stride' is missing"),
        (["conv 64 3 stride 0"], "stride is '0', expected at least 1"),
        (["conv six 3"], "OUT is 'six', expected a whole number"),
        (["dense -3"], "N is '-3', expected at least 1"),
        (["dense 2.5"], "N is '2.5', expected a whole number"),
        (["dropout 1"], "P is '1', expected a share from 0 to below 1"),
        (["dropout nan"], "P is 'nan', expected a share"),
        (["flatten 3"], "'3' is not understood after 'flatten'"),
        (["dense 10 softmax"], "the loss wants logits"),
        (["softmax"], "the loss wants logits"),
        (["lstm 128"], "'lstm' belongs to text models.*model.name: lstm"),
        (["embedding 64"], "'embedding' belongs to text models"),
        ([""], "'' is not a layer"),
        ([3], "3 is not a layer"),
        (["dense 10"], r"its input has the shape \(3, 8, 8\); put 'flatten' or 'globalpool' before it"),
        (["flatten", "pool 2"], "its input is a vector of 192 numbers, it needs an image"),
        (["pool 2", "pool 2", "pool 2", "pool 2"], "layer 'pool 2': its input has only 1 × 1 pixels"),
        (["pool 9"], "less than one pixel would be left"),
    ],
)
def test_refusals(specs: list[str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_layers(specs, (3, 8, 8))
