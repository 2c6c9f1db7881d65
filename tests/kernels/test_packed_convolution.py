"""Packed convolutions with norm and activation: against the modules one after the other, in both types and layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostline.kernels.convolution_unit import ConvolutionUnit
from frostline.kernels.packed_convolution import PackedConvolution
from frostline.kernels.packed_product import can_pack

pytestmark = pytest.mark.skipif(not can_pack(torch.zeros(1), torch.float32), reason="no oneDNN here")

GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 1, "bias": False},
    {"kernel_size": 3, "stride": 2, "groups": 16, "bias": False},
    {"kernel_size": 5, "padding": 4, "dilation": 2, "groups": 4},
    {"kernel_size": (3, 1), "padding": (1, 0)},
]
ACTIVATIONS = [None, nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Hardswish()]


def unit(geometry: dict[str, Any], activation: nn.Module | None, normed: bool = True) -> ConvolutionUnit:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(32).eval() if normed else None
    if norm is not None:
        nn.init.uniform_(norm.weight, 0.5, 8.0)
        norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.1, 2)  # type: ignore[union-attr]
    made = ConvolutionUnit(convolution=nn.Conv2d(16, 32, **geometry), norm=norm, activation=activation)
    for part in made.members:
        part.requires_grad_(False)
    return made


def packed(plain: ConvolutionUnit, dtype: torch.dtype) -> PackedConvolution:
    return PackedConvolution(plain, dtype=dtype, images=(3, 16, 14, 11))


def images(layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    return torch.randn(3, 16, 14, 11, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_equals_the_modules_one_after_the_other(
    geometry: dict[str, Any], activation: nn.Module | None, layout: torch.memory_format
) -> None:
    plain, x = unit(geometry, activation), images(layout)
    ours, exact = packed(plain, torch.float32).forward(x, None), plain(x)
    torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))
    without = unit(geometry, activation, normed=False)
    torch.testing.assert_close(packed(without, torch.float32).forward(x, None), without(x), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not can_pack(torch.zeros(1), torch.bfloat16), reason="no bf16 here")
@pytest.mark.parametrize("geometry", GEOMETRIES[:3], ids=str)
def test_bf16_is_as_near_as_bf16_is(geometry: dict[str, Any]) -> None:
    plain, x = unit(geometry, nn.ReLU6()), images()
    product = packed(plain, torch.bfloat16)
    assert product.takes(torch.bfloat16) and not product.takes(torch.float32)
    ours, exact = product.forward(x.bfloat16(), None), plain(x)
    assert ours.dtype == torch.bfloat16 and float((ours.float() - exact).norm() / exact.norm()) < 0.01


def test_an_image_alone_and_none_and_numbers_written_to() -> None:
    plain, x = unit(GEOMETRIES[0], nn.ReLU()), images()
    product = packed(plain, torch.float32)
    whole = product.forward(x, None)
    torch.testing.assert_close(product.forward(x[1:2], None)[0], whole[1], rtol=1e-6, atol=1e-6)
    assert product.forward(x[:0], None).shape == (0, 32, 14, 11)
    torch.testing.assert_close(product.forward(x[:, :, 3:], None), plain(x[:, :, 3:]), rtol=1e-4, atol=1e-4)
    plain.norm.running_mean.add_(1)  # type: ignore[union-attr]
    torch.testing.assert_close(product.forward(x, None), plain(x), rtol=1e-4, atol=1e-4)
    assert not torch.equal(product.forward(x, None), whole)
    with pytest.raises(NotImplementedError, match="passes no gradient"):
        product.gradient(whole)
