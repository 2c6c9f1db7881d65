"""Layers that read one input, computed together: the same outputs and gradients as each alone."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostline.adapt.lora_layers import LoRALinear
from frostline.kernels import lora_siblings as subject
from frostline.kernels.fp8_product import Fp8Product
from frostline.kernels.frozen_linear import multiplying
from frostline.kernels.frozen_product import FrozenProduct
from frostline.kernels.int8_gpu_product import Int8GpuProduct
from frostline.kernels.int8_product import Int8Product, can_lower
from frostline.kernels.lora_linear import fused, lora_linear
from frostline.kernels.lora_siblings import find_siblings, lora_siblings, sharing
from frostline.kernels.packed_product import PackedProduct, can_pack
from frostline.kernels.row_scaled_product import RowScaledProduct, works

INPUTS, OUTPUTS, RANKS, SCALINGS = 32, (32, 16, 48), (4, 2, 4), (1.7, 0.5, 2.0)
NAMES = ["q", "k", "v"]


def operands(dtype: torch.dtype, biases: bool = True) -> tuple[Tensor, list[Any], list[Any], list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    weights = [numbers(outputs, INPUTS) for outputs in OUTPUTS]
    of_each = [numbers(outputs) if biases else None for outputs in OUTPUTS]
    a = [numbers(rank, INPUTS).requires_grad_() for rank in RANKS]
    b = [numbers(outputs, rank).requires_grad_() for outputs, rank in zip(OUTPUTS, RANKS)]
    return numbers(2, 5, INPUTS).requires_grad_(), weights, of_each, a, b


def alone(x: Tensor, bases: list[Any], biases: list[Any], a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    return [lora_linear(x, *each) for each in zip(bases, biases, a, b, SCALINGS, strict=True)]


def together(x: Tensor, bases: list[Any], biases: list[Any], a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    return list(lora_siblings(x, bases, biases, a, b, SCALINGS))


def results(compute: Callable[..., list[Tensor]], tensors: tuple[Any, ...]) -> list[Tensor]:
    x, _, _, a, b = tensors
    outputs = compute(*tensors)
    total = sum((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() for y in outputs)
    return [*(y.detach() for y in outputs), *torch.autograd.grad(total, [x, *a, *b])]  # type: ignore[arg-type]


def check(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("biases", [True, False])
def test_equal_to_each_alone(dtype: torch.dtype, tolerance: float, biases: bool) -> None:
    tensors = operands(dtype, biases)
    check(results(together, tensors), results(alone, tensors), tolerance)


def test_under_autocast() -> None:
    tensors = operands(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = results(together, tensors), results(alone, tensors)
    assert ours[0].dtype == torch.bfloat16 and ours[-1].dtype == torch.float32
    check(ours, theirs, 3e-2)


def test_gradients_pass_gradcheck_in_float64() -> None:
    x, weights, biases, a, b = operands(torch.float64)
    assert torch.autograd.gradcheck(lambda x, *ab: lora_siblings(x, weights, biases, ab[:3], ab[3:], SCALINGS), (x, *a, *b))


def test_an_output_that_nobody_uses_and_an_input_that_learns_nothing() -> None:
    x, weights, biases, a, b = operands(torch.float64)
    for compute in (alone, together):
        outputs = compute(x.detach(), weights, biases, a, b)
        assert torch.autograd.grad(outputs[0].sum(), a[0], retain_graph=True)[0].abs().sum() > 0
        found = torch.autograd.grad(outputs[0].sum(), a[1], allow_unused=True)[0]
        assert found is None or not found.any()


@pytest.mark.parametrize("kind", ["packed", "int8", "mixed"])
def test_frozen_weights_in_forms_of_their_own(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_pack(torch.zeros(1), torch.float32) or not can_lower(torch.zeros(1)):
        pytest.skip("this processor multiplies no such forms")
    x, weights, biases, a, b = operands(torch.float32)
    packed = [PackedProduct(weight, dtype=torch.float32, rows=10) for weight in weights]
    lowered = [Int8Product(weight) for weight in weights]
    bases: list[Any] = {"packed": packed, "int8": lowered, "mixed": [weights[0], packed[1], lowered[2]]}[kind]
    rounded: list[int] = []
    ready = Int8Product.ready
    monkeypatch.setattr(Int8Product, "ready", lambda self, rows: rounded.append(1) or ready(self, rows))
    tensors = (x, bases, biases, a, b)
    found = results(together, tensors)
    counted, expected = len(rounded), results(alone, tensors)
    check(found, expected, 1e-5)
    backward = {"packed": 0, "int8": 3, "mixed": 1}[kind]
    assert counted == (kind != "packed") + backward, "the input is rounded once for all of them, and each gradient for itself"


def test_rows_are_rounded_once_for_each_kind_of_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those for GPUs: two layers in fp8, and one whose sizes do not fit in int8."""
    if not works(Fp8Product, torch.device("cpu")):
        pytest.skip("this build of PyTorch does not multiply fp8 on the processor")
    x, weights, biases, a, b = operands(torch.float32)
    bases: list[Any] = [Fp8Product(weights[0]), Int8GpuProduct(weights[1]), Fp8Product(weights[2])]
    for base in bases:
        base.forward(x.detach()[0], None), base.gradient(torch.ones(1, base.outputs))  # the weights are rounded
    rounded: list[type] = []
    ready = RowScaledProduct.ready
    monkeypatch.setattr(RowScaledProduct, "ready", lambda self, rows: rounded.append(type(self)) or ready(self, rows))
    tensors = (x, bases, biases, a, b)
    found = results(together, tensors)
    assert rounded == [Fp8Product, Int8GpuProduct, *map(type, bases)], "the input for each kind, and each gradient for itself"
    check(found, results(alone, tensors), 1e-5)


class Attention(nn.Module):
    """Three layers, the input of the last of which may be another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name, outputs, rank in zip(NAMES, OUTPUTS, RANKS):
            layer = LoRALinear(nn.Linear(INPUTS, outputs).requires_grad_(False), rank=rank, alpha=3.0)
            nn.init.normal_(layer.lora_B)
            self.add_module(name, layer)
        self.order, self.between = list(NAMES), lambda x: x

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = [self.get_submodule(name)(x) for name in self.order[:2]]
        return [*outputs, self.get_submodule(self.order[2])(self.between(x))]


@contextlib.contextmanager
def counted(module: nn.Module, monkeypatch: pytest.MonkeyPatch, products: dict[str, FrozenProduct] | None = None) -> Any:
    calls: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(subject, "lora_siblings", lambda x, bases, *rest: calls.append(len(bases)) or lora_siblings(x, bases, *rest))
        with fused(module), multiplying(module, products or {}), sharing(module, [NAMES], products or {}):
            yield calls


def test_modules_that_are_called_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = Attention(), torch.randn(2, 5, INPUTS, requires_grad=True)
    learning = [x, *(p for p in module.parameters() if p.requires_grad)]
    expected = module(x)
    gradients = torch.autograd.grad(sum(y.sin().sum() for y in expected), learning)
    with counted(module, monkeypatch) as calls:
        found = module(x)
        check(found, expected, 1e-5)
        check(list(torch.autograd.grad(sum(y.sin().sum() for y in found), learning)), list(gradients), 1e-5)
        assert calls == [3]
        module(x)
        assert calls == [3, 3], "nothing is left from one call to the next"
    assert module.q.kernel is None


def test_products_of_the_bases_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_lower(torch.zeros(1)):
        pytest.skip("this processor multiplies no int8")
    module, x = Attention(), torch.randn(2, 5, INPUTS)
    products: dict[str, FrozenProduct] = {f"{name}.base": Int8Product(module.get_submodule(name).base.weight) for name in NAMES}  # type: ignore[union-attr,arg-type]
    with fused(module), multiplying(module, products):
        expected = module(x)
    with counted(module, monkeypatch, products) as calls:
        check(module(x), expected, 1e-5)
    assert calls == [3]


def _in_place(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x.add_(1)


CHANGES: dict[str, Callable[[Attention], object]] = {
    "another input": lambda module: setattr(module, "between", lambda x: x + 1),
    "an input that is written to": lambda module: setattr(module, "between", _in_place),
    "another order": lambda module: setattr(module, "order", ["v", "k", "q"]),
    "one is off": lambda module: setattr(module.k, "off", True),
    "a base that learns": lambda module: module.k.base.requires_grad_(True),
    "dropout": lambda module: setattr(module.k.dropout, "p", 0.5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_called_otherwise_is_computed_alone(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = Attention(), torch.randn(2, 5, INPUTS)
    CHANGES[change](module)
    torch.manual_seed(1)
    expected = module(x.clone())
    with counted(module, monkeypatch):
        torch.manual_seed(1)
        check(module(x), expected, 1e-5)


def test_what_waits_is_not_taken_in_another_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = Attention(), torch.randn(2, 5, INPUTS)
    with counted(module, monkeypatch):
        with torch.no_grad():
            module.q(x)
        assert module.k(x).requires_grad
        module.q(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert module.k(x).dtype == torch.bfloat16
        with torch.inference_mode():
            assert module.v(torch.randn(2, INPUTS)).shape == (2, OUTPUTS[2])


def test_nothing_is_held_once_all_have_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = Attention(), torch.randn(2, 5, INPUTS)
    with counted(module, monkeypatch), torch.no_grad():
        module(x)
        gone = weakref.ref(x)
        del x
        gc.collect()
        assert gone() is None


def test_who_reads_one_input() -> None:
    module = Attention()
    x = torch.randn(2, INPUTS)
    assert find_siblings(module, lambda: module(x)) == [NAMES]
    module.between = lambda x: x + 1
    assert find_siblings(module, lambda: module(x)) == [["q", "k"]]
    module.between = _in_place
    assert find_siblings(module, lambda: module(x)) == [["q", "k"]]
    assert find_siblings(module, lambda: (module.q(x), module.q(x))) == [], "one layer twice"
    assert find_siblings(module, lambda: (module(x), module.q(x.clone()), module.v)) == [["q", "k"]]
    assert not module.q._forward_pre_hooks
