"""Convolutions in int8: against integers computed plainly, and how far they are from the convolution in floating point."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostline.kernels import int8_convolution
from frostline.kernels.convolution_unit import ConvolutionUnit
from frostline.kernels.frozen_convolution import convolving
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


def lowered(plain: nn.Conv2d, **ends: float) -> Int8Convolution:
    return Int8Convolution(ConvolutionUnit(convolution=plain), **ends)


@pytest.mark.parametrize("low", [0.0, -1.0])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_equals_integers_computed_plainly_and_is_near_the_plain_one(geometry: dict[str, Any], low: float) -> None:
    plain, x = layer(**geometry), images(low, 3.0)
    ours = lowered(plain, low=low, high=3.0).forward(x, None)
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
    product = lowered(plain, low=-1.0, high=1.0)
    whole = product.forward(x, None)
    assert torch.equal(product.forward(x[2:3], None)[0], whole[2])
    assert torch.equal(product.forward(x.contiguous(memory_format=torch.channels_last), None), whole)
    assert product.forward(x[:0], None).shape == (0, 32, 15, 15)


def test_values_beyond_the_range_are_cut_off() -> None:
    plain = layer()
    product = lowered(plain, low=0.0, high=1.0)
    beyond, within = images(-2.0, 5.0), images(-2.0, 5.0).clamp(0.0, 1.0)
    assert torch.equal(product.forward(beyond, None), product.forward(within, None))
    zeros = lowered(plain, low=0.0, high=0.0).forward(torch.zeros(1, 16, 5, 5), None)
    torch.testing.assert_close(zeros, plain(torch.zeros(1, 16, 5, 5)))


def test_sums_of_the_largest_values_do_not_saturate() -> None:
    plain = nn.Conv2d(16, 8, 3, bias=False).requires_grad_(False)
    nn.init.ones_(plain.weight)
    y = lowered(plain, low=0.0, high=1.0).forward(torch.ones(1, 16, 6, 6), None)
    torch.testing.assert_close(y, torch.full((1, 8, 4, 4), 144.0))


def test_in_a_network_for_the_length_of_a_pass() -> None:
    network, x = nn.Sequential(layer(padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 49, 3)), images(0.0, 1.0, 7)
    plain, product = network(x), lowered(network[0], low=0.0, high=1.0)
    with convolving(network, {"0": product}):
        ours = network(x)
        ours.sum().backward()
    plain, ours = plain.detach(), ours.detach()
    assert "forward" not in vars(network[0]) and torch.equal(network(x), plain)
    assert not torch.equal(ours, plain) and float((ours - plain).norm() / plain.norm()) < 0.05
    assert network[3].weight.grad is not None and network[0].weight.grad is None
    with torch.autocast("cpu", dtype=torch.bfloat16), convolving(network, {"0": product}):
        assert network[0](x).dtype == torch.bfloat16
    with pytest.raises(NotImplementedError, match="passes no gradient"):
        product.gradient(plain)


def test_what_was_written_to_the_weight_is_seen() -> None:
    plain, x = layer(), images(0.0, 1.0)
    product = lowered(plain, low=0.0, high=1.0)
    before = product.forward(x, None)
    plain.weight.mul_(2)
    plain.bias.mul_(2)  # type: ignore[union-attr]
    torch.testing.assert_close(product.forward(x, None), 2 * before)


@pytest.mark.parametrize(
    ("activation", "low"), [(None, -4.0), (nn.ReLU(), 0.0), (nn.ReLU6(), 0.0), (nn.SiLU(), -0.3), (nn.Hardswish(), -0.4)]
)
def test_with_its_norm_and_its_activation(activation: nn.Module | None, low: float) -> None:
    plain, x = layer(padding=1), images(-1.0, 1.0)
    norm = nn.BatchNorm2d(32).requires_grad_(False)
    for value, (start, end) in {"weight": (0.5, 6.0), "bias": (-1.0, 1.0), "running_mean": (-0.5, 0.5), "running_var": (0.1, 2.0)}.items():
        getattr(norm, value).uniform_(start, end)
    unit = ConvolutionUnit(convolution=plain, norm=norm.eval(), activation=activation)
    exact, product = unit(x), Int8Convolution(unit, low=-1.0, high=1.0)
    ours = product.forward(x, None)
    assert float((ours - exact).norm() / exact.norm()) < (0.02 if largest_activation() == 255 else 0.04)
    following = Int8Convolution(ConvolutionUnit(convolution=nn.Conv2d(32, 1, 1).requires_grad_(False)), low=low, high=float(exact.max()))
    steps = product.of_steps(product.steps(x), following)
    assert steps.dtype == torch.uint8 and (steps.int() - following.steps(ours).int()).abs().max() <= 1
