"""Chains of int8 convolutions: what each link gets is as if it stood alone, and nothing but a whole Sequential becomes one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from frostline.adapt.freeze import freeze
from frostline.kernels import int8_chain
from frostline.kernels.convolution_unit import noticing
from frostline.kernels.frozen_convolution import convolving
from frostline.kernels.int8_chain import Chain, chained, find
from frostline.kernels.int8_convolution import Int8Convolution
from frostline.kernels.int8_product import can_lower, largest_activation
from frostline.plan.frozen_layers import observed

pytestmark = pytest.mark.skipif(
    not can_lower(torch.zeros(1)) or largest_activation() < 255, reason="no fast products of int8 with full steps here"
)


def images(count: int = 3, size: int = 21) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def convolution(inputs: int, outputs: int, **geometry: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, **{"padding": 1, **geometry}).requires_grad_(False)


def network() -> nn.Sequential:
    """Two chains, parted by a batch norm: three links with two pools, and one convolution with its ReLU."""
    torch.manual_seed(0)
    return nn.Sequential(
        convolution(3, 16), nn.ReLU(), nn.MaxPool2d(2),
        convolution(16, 24, stride=2), nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        convolution(24, 8), nn.ReLU(),
        nn.BatchNorm2d(8).requires_grad_(False),
        convolution(8, 8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.LazyLinear(3),
    ).eval()  # fmt: skip


def lowered(module: nn.Module, x: Tensor) -> dict[str, Int8Convolution]:
    """Products of all its convolutions and what follows them, by the ranges of what comes in."""
    ranges: dict[str, tuple[float, float]] = {}
    convolutions = [name for name, part in module.named_modules() if isinstance(part, nn.Conv2d)]
    with noticing(module, convolutions) as units:
        module(x)
    with observed(module, convolutions, lambda name, x: ranges.update({name: (float(x.min()), float(x.max()))})):
        module(x)
    return {name: Int8Convolution(unit, low=ranges[name][0], high=ranges[name][1]) for name, unit in units.items()}


def names(chains: list[Chain]) -> list[list[str]]:
    return [[link.name for link in chain.links] for chain in chains]


def computed(module: nn.Module, products: Mapping[str, Int8Convolution], x: Tensor) -> Tensor:
    with convolving(module, products), chained(module, products):
        return module(x).detach()


def one_by_one(module: nn.Module, products: Mapping[str, Int8Convolution], x: Tensor) -> Tensor:
    with convolving(module, products):
        return module(x).detach()


def test_each_link_gets_what_it_gets_alone() -> None:
    module, x = network(), images()
    products = lowered(module, x)
    first, second = find(module, products)
    assert names([first, second]) == [["0", "3", "5"], ["8"]] and [len(first.members), len(second.members)] == [7, 2]
    exact = module[:7](x)
    alone = one_by_one(module[:7], products_of_slice(products, 7), x)
    ours = first(x)
    assert ours.shape == exact.shape and ours.dtype == torch.float32
    step = float(exact.max()) / 255
    assert float((ours - alone).abs().max()) < 2 * step, "a sum on the border of two steps may go to either"
    assert float(((ours - alone).abs() > step / 10).float().mean()) < 0.02
    assert float((ours - exact).norm() / exact.norm()) == pytest.approx(float((alone - exact).norm() / exact.norm()), rel=0.05)


def products_of_slice(products: Mapping[str, Int8Convolution], stop: int) -> dict[str, Int8Convolution]:
    return {name: product for name, product in products.items() if int(name) < stop}


def test_within_only_and_only_whole() -> None:
    module, x = network(), images()
    plain, products = module(x).detach(), lowered(module, x)
    ours, alone = computed(module, products, x), one_by_one(module, products, x)
    assert not torch.equal(ours, plain) and float((ours - plain).norm() / plain.norm()) < 0.05
    assert float((ours - alone).norm() / plain.norm()) < 0.02
    assert torch.equal(module(x), plain) and not any("forward" in vars(part) for part in module.modules())
    with convolving(module, products), chained(module, products):
        tapped = module[1](module[0](x)), module[:2](x)
    with convolving(module, products):
        expected = module[1](module[0](x))
    assert torch.equal(tapped[0], expected) and torch.equal(tapped[1], expected), "members by themselves compute as ever"


def test_an_image_does_not_depend_on_those_beside_it() -> None:
    module, x = network(), images(5)
    products = lowered(module, x)
    torch.testing.assert_close(computed(module, products, x[2:3])[0], computed(module, products, x)[2], rtol=1e-6, atol=1e-6)
    chain = find(module, products)[0]
    assert torch.equal(chain(x[2:3])[0], chain(x)[2])
    assert chain(x[:0]).shape == (0, 8, 3, 3)


def test_what_learns_after_it_gets_its_gradient_and_bf16_stays_bf16() -> None:
    module, x = network(), images()
    products = lowered(module, x)
    with convolving(module, products), chained(module, products):
        module(x).sum().backward()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert find(module, products)[0](x).dtype == torch.bfloat16
    assert float(module[12].weight.grad.norm()) > 0


def test_an_error_within_leaves_no_trace() -> None:
    module, x = network(), images()
    products = lowered(module, x)
    with convolving(module, products), chained(module, products):
        with pytest.raises(RuntimeError):
            module(x[:, :2])
        tapped = module[1](module[0](x))
    with convolving(module, products):
        assert torch.equal(tapped, module[1](module[0](x)))


def test_where_a_chain_ends() -> None:
    x = images()

    def found(*parts: nn.Module, without: int | None = None) -> list[list[str]]:
        module = nn.Sequential(*parts)
        products = lowered(module, x)
        return names(find(module, {name: product for name, product in products.items() if name != str(without)}))

    torch.manual_seed(0)
    assert found(convolution(3, 8), convolution(8, 8)) == [["0", "1"]]
    assert found(convolution(3, 8)) == [] and found(convolution(3, 8), nn.MaxPool2d(2)) == [], "nothing to gain"
    assert found(convolution(3, 8), nn.ReLU(), convolution(8, 8), without=2) == [["0"]], "what stays in floating point"
    assert found(convolution(3, 8), nn.ReLU6(), convolution(8, 8), nn.ReLU()) == [["0", "2"]]
    assert found(convolution(3, 8), nn.Tanh(), convolution(8, 8), nn.ReLU()) == [["2"]]
    norm = nn.BatchNorm2d(8).eval()
    assert found(convolution(3, 8), norm, nn.ReLU(), convolution(8, 8), nn.ReLU()) == [["3"]], "its numbers may change"
    freeze(norm, lambda name: False)
    assert found(convolution(3, 8), norm, nn.ReLU(), convolution(8, 8), nn.ReLU()) == [["0", "3"]]
    assert found(convolution(3, 8), nn.ReLU(), nn.ReLU(), convolution(8, 8), nn.ReLU()) == [["0"], ["3"]]
    shared = nn.ReLU()
    assert found(convolution(3, 8), shared, convolution(8, 8), shared) == [], "a member that stands there twice"
    twice = convolution(3, 3)
    assert found(twice, nn.ReLU(), twice, nn.ReLU()) == []
    learning = convolution(8, 8).requires_grad_(True)
    assert found(convolution(3, 8), nn.ReLU(), learning, nn.ReLU()) == [["0"]]


def test_members_that_somebody_listens_to(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = network(), images()
    products, seen = lowered(module, x), []
    handle = module[1].register_forward_hook(lambda part, args, output: seen.append(output))
    assert names(find(module, products)) == [["3", "5"], ["8"]]
    alone = one_by_one(module[:2], products_of_slice(products, 2), x)
    computed(module, products, x)
    assert all(torch.equal(one, alone) for one in seen) and len(seen) == 2
    handle.remove()
    whole = module.register_forward_pre_hook(lambda part, args: None)
    assert find(module, products) == []
    whole.remove()
    monkeypatch.setattr(int8_chain, "largest_activation", lambda: 127)
    assert find(module, products) == [], "steps of seven bits"


def test_in_a_network_of_one_s_own() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Sequential(convolution(3, 8), nn.ReLU()), nn.Sequential(convolution(8, 8), nn.ReLU()))

        def forward(self, x: Tensor) -> Tensor:
            return self.body[1](self.body[0](x) / math.e)

    torch.manual_seed(0)
    module, x = Own(), images()
    products = lowered(module, x)
    assert names(find(module, products)) == [["body.0.0"], ["body.1.0"]]
    torch.testing.assert_close(computed(module, products, x), one_by_one(module, products, x), rtol=1e-6, atol=1e-6)


class _Adding(nn.Module):
    """A block that calls a ReLU that others may call too."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.layer, self.act = convolution(8, 8), act

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.layer(x))


def test_a_member_that_stands_elsewhere_too_is_not_passed_over() -> None:
    torch.manual_seed(0)
    act = nn.ReLU()
    shared = nn.Sequential(convolution(3, 8), act, convolution(8, 8), nn.ReLU(), _Adding(act))
    x = images()
    products = lowered(shared, x)
    assert names(find(shared, products)) == [["2"]]
    plain, ours = shared(x), computed(shared, products, x)
    assert float((ours - plain).norm() / plain.norm()) < 0.05
