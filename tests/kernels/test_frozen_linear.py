"""Frozen linear layers that multiply by a product of their own: for the length of a pass, and with the same results."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from frostline.adapt.lora_layers import Variant, wrap
from frostline.kernels.frozen_linear import frozen_linear, multiplying
from frostline.kernels.lora_linear import lora_linear
from frostline.kernels.packed_product import PackedProduct, can_pack


def network() -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 10, bias=False), nn.Tanh(), nn.Linear(10, 3))
    module[0].weight.requires_grad_(False)
    module[2].weight.requires_grad_(False)
    return module


def products(module: nn.Module, *names: str) -> dict[str, PackedProduct]:
    return {name: PackedProduct(module.get_submodule(name).weight, dtype=torch.float32, rows=6) for name in names}


def step(module: nn.Module, x: Tensor) -> list[Tensor]:
    module.zero_grad()
    x = x.clone().requires_grad_()
    y = module(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in module.parameters() if p.grad is not None)]  # type: ignore[list-item]


def same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize("shape", [(6, 12), (2, 3, 12), (0, 12), (12,)], ids=str)
def test_the_same_step_and_the_module_as_it_was(shape: tuple[int, ...]) -> None:
    module, x = network(), torch.randn(shape)
    if 0 in shape:
        with multiplying(module, products(module, "0", "2")):
            assert module(x).shape == (0, 3)
        return
    plain, before = step(module, x), {name: dict(vars(part)) for name, part in module.named_modules()}
    with multiplying(module, products(module, "0", "2")):
        assert "forward" in vars(module[0])
        ours = step(module, x)
    same(ours, plain)
    assert {name: dict(vars(part)) for name, part in module.named_modules()} == before, "put back"
    assert torch.equal(module(x), plain[0]), "plain again"


def test_put_back_after_an_error_and_nested() -> None:
    module, x = network(), torch.randn(4, 12)
    plain = module(x)
    with pytest.raises(RuntimeError, match="stop"), multiplying(module, products(module, "0")):
        with multiplying(module, products(module, "0", "2")):
            module(x)
        assert "forward" in vars(module[0]) and "forward" not in vars(module[2])
        raise RuntimeError("stop")
    assert "forward" not in vars(module[0]) and torch.equal(module(x), plain)
    copy.deepcopy(module)


def test_a_layer_that_learns_since_is_left_alone() -> None:
    module = network()
    made = products(module, "0", "2")
    module[0].weight.requires_grad_(True)
    with multiplying(module, made):
        assert "forward" not in vars(module[0]) and "forward" in vars(module[2])
        assert step(module, torch.randn(4, 12))[2].shape == (16, 12)


@pytest.mark.parametrize("fused", [True, False])
def test_under_a_lora_update(fused: bool) -> None:
    module, x = network(), torch.randn(6, 12)
    for place in (0, 2):
        numbers = {"rank": 2, "alpha": 4.0, "dropout": 0.0}
        module[place] = wrap(module[place], numbers, Variant(), torch.Generator().manual_seed(1))
        nn.init.normal_(module[place].lora_B)
        module[place].kernel = lora_linear if fused else None
    plain = step(module, x)
    with multiplying(module, products(module, "0.base", "2.base")):
        assert ("kernel" in vars(module[0])) and (module[0].kernel is not lora_linear or not fused)
        same(step(module, x), plain)
    assert module[0].kernel is (lora_linear if fused else None)


def test_the_bias_may_learn() -> None:
    x, weight, bias = torch.randn(5, 12), torch.randn(8, 12), torch.randn(8, requires_grad=True)
    y = frozen_linear(x, bias, PackedProduct(weight, dtype=torch.float32, rows=5))
    y.sum().backward()
    torch.testing.assert_close(bias.grad, torch.full((8,), 5.0))


@pytest.mark.skipif(not can_pack(torch.zeros(1), torch.bfloat16), reason="this processor packs no such weights")
def test_autocast_gives_what_its_linear_gives() -> None:
    module, x = network(), torch.randn(6, 12)
    made = {name: PackedProduct(module.get_submodule(name).weight, dtype=torch.bfloat16, rows=6) for name in ("0", "2")}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = step(module, x)
        with multiplying(module, made):
            ours = step(module, x)
    for a, b in zip(ours, plain, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2 * float(b.abs().max()))


@pytest.mark.skipif(not can_pack(torch.zeros(1), torch.bfloat16), reason="no bf16 products here")
def test_where_a_network_switches_autocast_off_for_a_part_the_plain_layer_computes() -> None:
    module, x = network(), torch.randn(6, 12)
    chosen = {"0": PackedProduct(module[0].weight, dtype=torch.bfloat16, rows=6)}
    with multiplying(module, chosen), torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            ours = module[0](x)
        assert module[0](x).dtype == torch.bfloat16
    assert torch.equal(ours, module[0](x))


def test_called_by_keyword() -> None:
    module, x = network(), torch.randn(6, 12)
    with multiplying(module, products(module, "0")):
        ours = module[0](input=x)
    torch.testing.assert_close(ours, module[0](x))
