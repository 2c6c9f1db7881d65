"""What follows a convolution: found by what flows where, believed only where the network gives the same to the last bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from frostline.adapt.freeze import freeze
from frostline.kernels.convolution_unit import ConvolutionUnit, computing, noticing, proven


def images(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, 9, 9, generator=torch.Generator().manual_seed(1))


def norm(channels: int) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(channels)
    with torch.no_grad():
        for value in (made.weight, made.bias, made.running_mean, made.running_var):
            value.uniform_(0.3, 3.0)  # type: ignore[union-attr]
    return made


class Residual(nn.Module):
    """Two convolutions with norms; one ReLU is called twice, the second time on what was added in place."""

    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 3, 3, padding=1, bias=False), norm(3)
        self.second, self.other = nn.Conv2d(3, 3, 3, padding=1), norm(3)
        self.relu, self.head = inner or nn.ReLU(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm(self.first(x)))
        y = self.other(self.second(y))
        y += x
        return self.head(self.relu(y).mean((2, 3)))


class ReadsBetween(Residual):
    """What comes out of the first convolution is read past its norm as well."""

    def forward(self, x: Tensor) -> Tensor:
        raw = self.first(x)
        return self.head((self.relu(self.norm(raw)) + self.other(self.second(x)) + raw).mean((2, 3)))


def frozen(module: nn.Module) -> nn.Module:
    freeze(module, lambda name: name.startswith("head"))
    return module


def units_of(module: nn.Module, *names: str) -> dict[str, ConvolutionUnit]:
    with noticing(module, names or ("first", "second")) as units, torch.no_grad():
        module(images())
    return units


def follows(unit: ConvolutionUnit) -> list[str]:
    return [type(part).__name__ for part in unit.members[1:]]


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.SiLU(), nn.SiLU(inplace=True), nn.Hardswish()], ids=str
)
def test_norm_and_activation_are_found_and_what_was_added_to_is_no_longer_the_convolution_s(activation: nn.Module) -> None:
    module = frozen(Residual(activation))
    units = units_of(module)
    assert [follows(units[name]) for name in ("first", "second")] == [["BatchNorm2d", type(activation).__name__], ["BatchNorm2d"]]
    assert proven(module, units, lambda: module(images()))


@pytest.mark.parametrize("how", ["a gradient of the norm", "training", "a hook", "a forward of its own"])
def test_what_may_change_or_is_listened_to_is_left_alone(how: str) -> None:
    module = frozen(Residual())
    if how == "a gradient of the norm":
        freeze(module, lambda name: name.startswith(("head", "norm")))
    elif how == "training":
        module.requires_grad_(False)
        freeze(module.norm, lambda name: True)
        module.norm.requires_grad_(False)
    elif how == "a hook":
        module.norm.register_forward_hook(lambda *_: None)
    else:
        module.norm.forward = lambda x: x + 1  # type: ignore[method-assign]
    units = units_of(module)
    assert follows(units["first"]) == [] and follows(units["second"]) == ["BatchNorm2d"]
    assert proven(module, units, lambda: module(images()))


def test_a_convolution_that_is_listened_to_or_called_twice_stands_alone() -> None:
    module = frozen(Residual())
    module.second = module.first
    assert follows(units_of(module, "first")["first"]) == []
    module = frozen(Residual())
    module.first.register_forward_hook(lambda *_: None)
    assert follows(units_of(module)["first"]) == []


def test_what_is_read_in_between_is_noticed() -> None:
    module = frozen(ReadsBetween())
    units = units_of(module)
    assert follows(units["first"]) == ["BatchNorm2d", "ReLU"] and not proven(module, units, lambda: module(images()))
    with torch.no_grad():
        module.head.weight.zero_()
    assert not proven(module, units, lambda: module(images())), "a head of zeros hides nothing"
    assert proven(module, {"second": units["second"]}, lambda: module(images()))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_folded_numbers(bias: bool, affine: bool) -> None:
    layer, after = nn.Conv2d(3, 5, 3, bias=bias), nn.BatchNorm2d(5, affine=affine)
    after.train()(torch.randn(4, 5, 6, 6) * 3 + 1)
    unit = ConvolutionUnit(convolution=layer, norm=after.eval())
    weight, shift = unit.folded()
    torch.testing.assert_close(torch.nn.functional.conv2d(images(), weight, shift), unit(images()), rtol=1e-5, atol=1e-5)
    before = unit.version()
    with torch.no_grad():
        after.running_var.mul_(2)  # type: ignore[union-attr]
    assert unit.version() != before


def test_each_way_is_taken_within_and_no_longer() -> None:
    module = frozen(Residual())
    units, x = units_of(module), images()
    plain, calls = module(x), []

    def double(unit: ConvolutionUnit) -> Callable[[Tensor], Tensor]:
        return lambda x: (calls.append(follows(unit)), 2 * unit(x))[1]

    with computing(module, {name: (unit, double(unit)) for name, unit in units.items()}):
        assert not torch.equal(module(x), plain)
    with computing(module, {name: (unit, lambda x: None) for name, unit in units.items()}):
        assert torch.equal(module(x), plain), "None: plainly, norm and all"
    assert calls == [["BatchNorm2d", "ReLU"], ["BatchNorm2d"]] and torch.equal(module(x), plain)
    assert not any("forward" in vars(part) for part in module.modules())
