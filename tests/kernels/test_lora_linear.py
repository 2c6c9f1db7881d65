from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from frostline.adapt.lora_layers import LoRALinear
from frostline.kernels.lora_linear import fused, lora_linear
from frostline.kernels.packed_product import PackedProduct, can_pack

INPUTS, OUTPUTS, RANK, SCALING = 10, 14, 3, 1.7
NAMES = ("x", "weight", "bias", "a", "b")


def operands(dtype: torch.dtype, shape: tuple[int, ...] = (2, 5)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (*shape, INPUTS), "weight": (OUTPUTS, INPUTS), "bias": (OUTPUTS,), "a": (RANK, INPUTS), "b": (OUTPUTS, RANK)}
    return {name: torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype) for name, size in shapes.items()}


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    dropped = x if mask is None else x * mask
    return functional.linear(x, weight, bias) + SCALING * functional.linear(functional.linear(dropped, a), b)


def both(tensors: dict[str, Tensor], needed: list[str], mask: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
    """Ours and the plain one: outputs, then gradients."""
    results = []
    for function in (lambda *t: lora_linear(*t, SCALING, mask), lambda *t: plain(*t, mask)):
        copies = {name: tensor.clone().requires_grad_(name in needed) for name, tensor in tensors.items()}
        y = function(*copies.values())
        weights = torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype)
        results.append([y.detach(), *torch.autograd.grad((y * weights).sum(), [copies[name] for name in needed])])
    return list(zip(*results, strict=True))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("needed", [c for n in range(1, 6) for c in itertools.combinations(NAMES, n)], ids="+".join)
def test_equals_the_layers_it_replaces(dtype: torch.dtype, tolerance: float, masked: bool, needed: tuple[str, ...]) -> None:
    tensors = operands(dtype)
    mask = torch.rand(tensors["x"].shape, generator=torch.Generator().manual_seed(1)) > 0.3 if masked else None
    for ours, theirs in both(tensors, list(needed), mask):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


@pytest.mark.parametrize("shape", [(), (7,), (0,), (2, 3, 4)], ids=str)
def test_any_leading_dimensions(shape: tuple[int, ...]) -> None:
    for ours, theirs in both(operands(torch.float64, shape), ["x", "a", "b"]):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_gradients_pass_gradcheck_in_float64() -> None:
    tensors = [tensor.requires_grad_() for tensor in operands(torch.float64).values()]
    mask = torch.rand(2, 5, INPUTS) > 0.5
    assert torch.autograd.gradcheck(lambda *t: lora_linear(*t, SCALING, mask), tensors)


def test_equals_the_adapter_on_a_linear_layer_and_on_a_transposed_one() -> None:
    from transformers.pytorch_utils import Conv1D

    from frostline.adapt.lora_layers import LoRALinear

    for base in (nn.Linear(INPUTS, OUTPUTS), Conv1D(OUTPUTS, INPUTS)):
        layer = LoRALinear(base, RANK, SCALING * RANK, 0.0, torch.Generator().manual_seed(0))
        nn.init.normal_(layer.lora_B)
        base.requires_grad_(False)
        x = torch.randn(3, 4, INPUTS, requires_grad=True)
        weight = base.weight if isinstance(base, nn.Linear) else base.weight.t()
        learning = [x, layer.lora_A, layer.lora_B]
        expected, ours = layer(x), lora_linear(x, weight, base.bias, layer.lora_A, layer.lora_B, layer.scaling)
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
        for mine, theirs in zip(torch.autograd.grad(ours.sin().sum(), learning), torch.autograd.grad(expected.sin().sum(), learning)):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_bfloat16_and_autocast() -> None:
    needed = ["x", "a", "b"]
    for ours, theirs in both(operands(torch.bfloat16), needed):
        assert ours.dtype == theirs.dtype == torch.bfloat16
        torch.testing.assert_close(ours, theirs, rtol=3e-2, atol=3e-2 * float(theirs.abs().max()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pairs = both(operands(torch.float32), needed)
    assert [ours.dtype for ours, _ in pairs] == [theirs.dtype for _, theirs in pairs] == [torch.bfloat16] + [torch.float32] * 3
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=3e-2, atol=3e-2 * float(theirs.abs().max()))


def kept_by(function: object, *arguments: object) -> list[Tensor]:
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        function(*arguments)  # type: ignore[operator]
    return kept


def test_keeps_the_input_and_the_low_rank_product_only() -> None:
    tensors = operands(torch.float32)
    for name in ("x", "a", "b"):
        tensors[name].requires_grad_()
    parameters = {tensors[name].data_ptr() for name in ("weight", "a", "b")}
    activations = [tensor for tensor in kept_by(lora_linear, *tensors.values(), SCALING) if tensor.data_ptr() not in parameters]
    assert [tuple(tensor.shape) for tensor in activations] == [(10, INPUTS), (10, RANK)]
    assert activations[0].data_ptr() == tensors["x"].data_ptr()
    tensors["a"].requires_grad_(False)
    activations = [tensor for tensor in kept_by(lora_linear, *tensors.values(), SCALING) if tensor.data_ptr() not in parameters]
    assert [tuple(tensor.shape) for tensor in activations] == [(10, RANK)]


def test_a_frozen_linear_layer_keeps_no_input() -> None:
    """PyTorch's own; where this fails, a frozen layer needs a function of its own."""
    for shape, bias in itertools.product([(4,), (2, 3)], [torch.zeros(OUTPUTS), None]):
        x, weight = torch.randn(*shape, INPUTS, requires_grad=True), torch.randn(OUTPUTS, INPUTS)
        assert {tensor.data_ptr() for tensor in kept_by(functional.linear, x, weight, bias)} <= {weight.data_ptr()}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_packed_weight_gives_the_same(dtype: torch.dtype, masked: bool) -> None:
    if not can_pack(torch.zeros(1), dtype):
        pytest.skip("this processor packs no such weights")
    tensors = operands(dtype)
    mask = torch.rand(tensors["x"].shape, generator=torch.Generator().manual_seed(1)) > 0.3 if masked else None
    product = PackedProduct(tensors["weight"], dtype=dtype, rows=10)
    found = []
    for weight in (product, tensors["weight"]):
        copies = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items() if name != "weight"}
        y = lora_linear(copies["x"], weight, copies["bias"], copies["a"], copies["b"], SCALING, mask)
        weights = torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype)
        found.append([y.detach(), *torch.autograd.grad((y * weights).sum(), list(copies.values()))])
    for ours, theirs in zip(*found, strict=True):
        tolerance = 1e-6 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


def test_a_mask_of_another_kind_is_refused() -> None:
    tensors = operands(torch.float32)
    with pytest.raises(AssertionError, match=r"a mask of torch.float32 \(2, 5, 10\) for x of \(2, 5, 10\): expected bool"):
        lora_linear(*tensors.values(), SCALING, torch.ones(2, 5, INPUTS))


class _Doubling(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("kind", ["plain", "subclass", "hook", "instance"])
def test_a_layer_that_does_more_than_multiply_is_called(kind: str) -> None:
    torch.manual_seed(0)
    base = (_Doubling if kind == "subclass" else nn.Linear)(INPUTS, OUTPUTS)
    if kind == "hook":
        base.register_forward_hook(lambda part, args, output: 2 * output)
    if kind == "instance":
        base.forward = lambda x: 2 * functional.linear(x, base.weight, base.bias)  # type: ignore[method-assign]
    layer = LoRALinear(base, rank=2, alpha=4)
    nn.init.normal_(layer.lora_B)
    x, seen = torch.randn(3, INPUTS), []
    expected = layer(x)
    with fused(nn.Sequential(layer)):
        seen.append(layer.kernel is not None)
        torch.testing.assert_close(layer(x), expected)
    assert seen == [kind == "plain"]
