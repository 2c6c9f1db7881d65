"""Convolutions in int8: against integers computed plainly, and how far they are from the convolution in floating point."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostline.kernels import int8_convolution
from frostline.kernels.frozen_linear import multiplying
from frostline.kernels.int8_convolution import Int8Convolution
from frostline.kernels.int8_product import can_lower, largest_activation, quantise_weight

pytestmark = pytest.mark.skipif(not can_lower(torch.zeros(1)), reason="no fast products of int8 here")

GEOMETRIES: list[dict[str, Any]] = [
    {"padding": 1},
    {"stride": 2},
    {"padding": 2, "dilation": 2},
    {"padding": 1, "groups": 4},
    {"padding": 1, "groups": 16},
    {"padding": (1, 0), "bias": False},
]


def layer(**geometry: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(16, 32, 3, **geometry).requires_grad_(False)


def images(low: float, high: float, size: int = 15) -> Tensor:
    return torch.rand(4, 16, size, size, generator=torch.Generator().manual_seed(1)) * (high - low) + low


@pytest.mark.parametrize("low", [0.0, -1.0])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_equals_integers_computed_plainly_and_is_near_the_plain_one(geometry: dict[str, Any], low: float) -> None:
    plain, x = layer(**geometry), images(low, 3.0)
    ours = Int8Convolution(plain, low=low, high=3.0).forward(x, plain.bias)
    step = (3.0 - low) / largest_activation()
    zero = round(-low / step)
    stepped = ((x / step + zero + 0.5).floor().clamp(0, largest_activation()) - zero) * step
    quantised, scales = quantise_weight(plain.weight)
    wide = layer(**geometry).double()
    with torch.no_grad():
        wide.weight.copy_(quantised * scales[:, None, None, None])
    expected, exact = wide(stepped.double()), plain(x)
    assert ours.dtype == torch.float32 and ours.shape == exact.shape
    assert float((ours - expected).norm() / expected.norm()) < 1e-3  # a value on the border of two steps may go to either
    assert float((ours - exact).norm() / exact.norm()) < (0.01 if largest_activation() == 255 else 0.02)


def test_an_image_does_not_depend_on_those_beside_it_nor_on_the_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_convolution, "_NUMBERS", 1000)  # pieces that end within an image
    plain, x = layer(padding=1), images(-1.0, 1.0)
    product = Int8Convolution(plain, low=-1.0, high=1.0)
    whole = product.forward(x, plain.bias)
    assert torch.equal(product.forward(x[2:3], plain.bias)[0], whole[2])
    assert torch.equal(product.forward(x.contiguous(memory_format=torch.channels_last), plain.bias), whole)
    assert product.forward(x[:0], plain.bias).shape == (0, 32, 15, 15)


def test_values_beyond_the_range_are_cut_off() -> None:
    plain = layer()
    product = Int8Convolution(plain, low=0.0, high=1.0)
    beyond, within = images(-2.0, 5.0), images(-2.0, 5.0).clamp(0.0, 1.0)
    assert torch.equal(product.forward(beyond, plain.bias), product.forward(within, plain.bias))
    zeros = Int8Convolution(plain, low=0.0, high=0.0).forward(torch.zeros(1, 16, 5, 5), plain.bias)
    torch.testing.assert_close(zeros, plain(torch.zeros(1, 16, 5, 5)))


def test_sums_of_the_largest_values_do_not_saturate() -> None:
    plain = nn.Conv2d(16, 8, 3, bias=False).requires_grad_(False)
    nn.init.ones_(plain.weight)
    y = Int8Convolution(plain, low=0.0, high=1.0).forward(torch.ones(1, 16, 6, 6), None)
    torch.testing.assert_close(y, torch.full((1, 8, 4, 4), 144.0))


def test_in_a_network_for_the_length_of_a_pass() -> None:
    network, x = nn.Sequential(layer(padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 49, 3)), images(0.0, 1.0, 7)
    plain, product = network(x), Int8Convolution(network[0], low=0.0, high=1.0)
    with multiplying(network, {"0": product}):
        ours = network(x)
        ours.sum().backward()
    plain, ours = plain.detach(), ours.detach()
    assert "forward" not in vars(network[0]) and torch.equal(network(x), plain)
    assert not torch.equal(ours, plain) and float((ours - plain).norm() / plain.norm()) < 0.05
    assert network[3].weight.grad is not None and network[0].weight.grad is None
    with torch.autocast("cpu", dtype=torch.bfloat16), multiplying(network, {"0": product}):
        assert network[0](x).dtype == torch.bfloat16
    with pytest.raises(NotImplementedError, match="passes no gradient"):
        product.gradient(plain)


def test_what_was_written_to_the_weight_is_seen() -> None:
    plain, x = layer(), images(0.0, 1.0)
    product = Int8Convolution(plain, low=0.0, high=1.0)
    before = product.forward(x, None)
    plain.weight.mul_(2)
    torch.testing.assert_close(product.forward(x, None), 2 * before)
