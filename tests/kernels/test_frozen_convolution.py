"""Frozen convolutions reached for the length of a pass: in the run's type, plainly where they cannot be, and not once they learn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from frostline.adapt.freeze import freeze
from frostline.kernels.convolution_unit import noticing
from frostline.kernels.frozen_convolution import convolving
from frostline.kernels.int8_chain import chained
from frostline.kernels.int8_convolution import Int8Convolution
from frostline.kernels.int8_product import can_lower
from frostline.kernels.packed_convolution import PackedConvolution


def network() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 3))
    freeze(made, lambda name: name.startswith("4"))
    return made


def product(module: nn.Module, x: Tensor, dtype: torch.dtype = torch.float32) -> dict[str, PackedConvolution]:
    with noticing(module, ["0"]) as units:
        module(x)
    return {"0": PackedConvolution(units["0"], dtype=dtype, images=(4, 3, 9, 9))}


def test_the_gradients_of_what_learns_are_the_same() -> None:
    module, x = network(), torch.randn(4, 3, 9, 9)
    module(x).square().sum().backward()
    expected, module[4].weight.grad = module[4].weight.grad, None
    with convolving(module, product(module, x)):
        module(x).square().sum().backward()
    torch.testing.assert_close(module[4].weight.grad, expected, rtol=1e-4, atol=1e-4)
    assert module[0].weight.grad is None and not any("forward" in vars(part) for part in module.modules())


def test_another_type_than_it_was_packed_for_is_computed_plainly() -> None:
    module, x = network(), torch.randn(2, 3, 9, 9)
    products = product(module, x, torch.bfloat16)
    plain = module(x)
    with convolving(module, products):
        assert torch.equal(module(x), plain)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert module[:3](x).dtype == torch.bfloat16


def test_what_was_thawed_since_computes_as_it_is() -> None:
    for learns in ("0", "1"):
        module, x = network(), torch.randn(2, 3, 9, 9)
        products = product(module, x)
        freeze(module, lambda name, learns=learns: name.startswith(learns))
        with convolving(module, products):
            module(x).sum().backward()
        assert next(module.get_submodule(learns).parameters()).grad is not None


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("kernel", [1, 3])
def test_the_layout_is_the_plain_one_s(kernel: int, layout: torch.memory_format) -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, kernel), nn.ReLU(), nn.Conv2d(8, 4, kernel)).to(memory_format=layout)
    freeze(module, lambda name: False)
    x = torch.randn(4, 3, 9, 9).contiguous(memory_format=layout)
    with noticing(module, ["0", "2"]) as units:
        plain = module(x)
    sizes = {"0": (4, 3, 9, 9), "2": (4, 8, 10 - kernel, 10 - kernel)}
    packed = {name: PackedConvolution(unit, dtype=torch.float32, images=sizes[name]) for name, unit in units.items()}
    lowered = {name: Int8Convolution(unit, low=-5.0, high=5.0) for name, unit in units.items()} if can_lower(x) else packed
    with convolving(module, packed):
        assert module(x).stride() == plain.stride()
    with convolving(module, lowered):
        assert module(x).stride() == plain.stride()
        with chained(module, lowered):
            assert module(x).stride() == plain.stride()
