from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from frostline.kernels import cross_entropy_rows
from frostline.kernels.cross_entropy import linear_cross_entropy
from frostline.kernels.packed_product import PackedProduct

ROWS, WIDTH, VOCABULARY = 23, 12, 50


def operands(dtype: torch.dtype, bias: bool, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: (torch.randn(*shape, generator=generator) * scale).to(dtype)  # noqa: E731
    labels = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    return draw(ROWS, WIDTH), draw(VOCABULARY, WIDTH), draw(VOCABULARY) if bias else None, labels


def reference(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    logits = functional.linear(hidden, weight, bias)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if logits.dtype != torch.float64:
        logits = logits.float()
    return functional.cross_entropy(logits, labels, reduction="none"), logits.argmax(1) == labels


def chunk_of(rows: int, dtype: torch.dtype) -> int:
    return rows * VOCABULARY * (8 if dtype == torch.float64 else 4)


def gradients(nll: Tensor, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    factors = torch.linspace(-1, 2, len(nll), dtype=nll.dtype)  # some function of each token's loss, as DPO takes
    return torch.autograd.grad((nll * factors).sum(), tensors)


@pytest.fixture(autouse=True, params=["C++", "PyTorch"])
def rows_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways over the rows of a chunk, where both are there."""
    if request.param == "PyTorch":
        monkeypatch.setattr(cross_entropy_rows, "takes", lambda tensor: False)
    elif not cross_entropy_rows.takes(torch.zeros(1)):
        pytest.skip("there is no C++ compiler here")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("rows", [1, 8, 23, 1000], ids=lambda rows: f"chunk{rows}")
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("learns", ["hidden", "all", "layer", "bias"])
@pytest.mark.parametrize("bias", [True, False])
def test_loss_and_gradients_equal_those_of_full_logits(
    dtype: torch.dtype, tolerance: float, rows: int, softcap: float | None, learns: str, bias: bool
) -> None:
    hidden, weight, offset, labels = operands(dtype, bias or learns == "bias")
    chosen = {"hidden": [hidden], "all": [hidden, weight, offset], "layer": [weight, offset], "bias": [offset]}[learns]
    tensors = [tensor.requires_grad_() for tensor in chosen if tensor is not None]
    expected, correct = reference(hidden, weight, offset, labels, softcap)
    ours = linear_cross_entropy(hidden, weight, offset, labels, chunk_bytes=chunk_of(rows, dtype), softcap=softcap)
    torch.testing.assert_close(ours.nll, expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(ours.correct, correct) and not ours.correct.requires_grad
    for mine, theirs in zip(gradients(ours.nll, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


def test_gradients_pass_gradcheck_in_float64() -> None:
    hidden, weight, bias, labels = operands(torch.float64, True)
    hidden, labels = hidden[:5].requires_grad_(), labels[:5]
    loss: Any = lambda *tensors: linear_cross_entropy(*tensors, labels, chunk_bytes=chunk_of(2, torch.float64), softcap=5.0).nll  # noqa: E731
    assert torch.autograd.gradcheck(lambda h: loss(h, weight, bias), [hidden])
    assert bias is not None
    assert torch.autograd.gradcheck(loss, [hidden, weight.requires_grad_(), bias.requires_grad_()])


@pytest.mark.parametrize("learns", [False, True])
def test_bfloat16_keeps_its_softmax_in_float32(learns: bool) -> None:
    hidden, weight, bias, labels = operands(torch.bfloat16, True)
    tensors = [hidden.requires_grad_(), *([weight.requires_grad_()] if learns else [])]
    expected, correct = reference(hidden, weight, bias, labels, None)
    ours = linear_cross_entropy(hidden, weight, bias, labels, chunk_bytes=chunk_of(8, torch.bfloat16))
    assert ours.nll.dtype == torch.float32
    torch.testing.assert_close(ours.nll, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours.correct, correct)
    for mine, theirs in zip(gradients(ours.nll, tensors), gradients(expected, tensors), strict=True):
        assert mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("learns", [False, True])
def test_under_autocast_as_under_autocast(learns: bool) -> None:
    hidden, weight, bias, labels = operands(torch.float32, True)
    tensors = [hidden.requires_grad_(), *([weight.requires_grad_()] if learns else [])]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, _ = reference(hidden, weight, bias, labels, None)
        ours = linear_cross_entropy(hidden, weight, bias, labels, chunk_bytes=chunk_of(8, torch.float32))
        torch.testing.assert_close(ours.nll, expected, rtol=1e-5, atol=1e-5)
        for mine, theirs in zip(gradients(ours.nll, tensors), gradients(expected, tensors), strict=True):
            assert mine.dtype == torch.float32
            torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-2)


class Largest(TorchDispatchMode):
    """Notes the most elements of any tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(leaf.numel() for leaf in tree_leaves(output) if isinstance(leaf, Tensor))])
        return output


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_no_tensor_of_tokens_times_vocabulary(learns: bool, softcap: float | None) -> None:
    hidden, weight, bias = torch.randn(500, 8, requires_grad=True), torch.randn(300, 8, requires_grad=learns), torch.randn(300)
    labels = torch.randint(300, (500,))
    with Largest() as seen:
        linear_cross_entropy(hidden, weight, bias, labels, chunk_bytes=16 * 300 * 4, softcap=softcap).nll.sum().backward()
    assert seen.elements == 16 * 300
    with Largest() as plain:
        reference(hidden, weight, bias, labels, None)[0].sum().backward()
    assert plain.elements == 500 * 300  # the measure itself


def test_of_equal_logits_the_first_counts() -> None:
    hidden, weight = torch.ones(4, 2), torch.zeros(6, 2)
    weight[5] = -1
    assert linear_cross_entropy(hidden, weight, None, torch.tensor([0, 1, 0, 5])).correct.tolist() == [True, False, True, False]


def test_no_rows_give_no_losses_and_zero_gradients() -> None:
    hidden, weight = torch.zeros(0, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, None, torch.zeros(0, dtype=torch.int64))
    assert loss.nll.shape == (0,) and loss.correct.shape == (0,)
    loss.nll.sum().backward()
    assert weight.grad is not None and not weight.grad.any()
    assert hidden.grad is not None and hidden.grad.shape == (0, 3)


def test_far_logits_neither_overflow_nor_vanish() -> None:
    hidden = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    weight = torch.tensor([[500.0], [-500.0]])
    loss = linear_cross_entropy(hidden, weight, None, torch.tensor([0, 0]))
    assert loss.nll.tolist() == [0.0, 1000.0]
    loss.nll.sum().backward()
    assert hidden.grad is not None and hidden.grad.flatten().tolist() == [0.0, -1000.0]


def test_without_a_graph_nothing_is_kept() -> None:
    hidden, weight, _, labels = operands(torch.float32, False)
    hidden.requires_grad_()
    with torch.no_grad():
        assert linear_cross_entropy(hidden, weight, None, labels).nll.grad_fn is None
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tuple(tensor.shape)) or tensor, lambda tensor: tensor):
        linear_cross_entropy(hidden, weight, None, labels)
    assert kept == [(ROWS, WIDTH)]  # the rows' gradients, and neither the weight nor any logits


@pytest.mark.parametrize("wrong", [-100, VOCABULARY])
def test_labels_outside_the_vocabulary_are_refused(wrong: int) -> None:
    hidden, weight, _, labels = operands(torch.float32, False)
    labels[3] = wrong
    with pytest.raises(AssertionError, match=f"{wrong}.*for {VOCABULARY} outputs: pass the labelled rows only"):
        linear_cross_entropy(hidden, weight, None, labels)
    with pytest.raises(AssertionError, match=r"hidden \(23, 12\) and labels \(22,\)"):
        linear_cross_entropy(hidden, weight, None, labels[1:])


def test_a_frozen_weight_by_its_product_beside_a_bias_that_learns() -> None:
    """BitFit on an output layer with a bias."""
    hidden, weight, bias, labels = operands(torch.float32, bias=True)
    assert bias is not None
    hidden.requires_grad_(), bias.requires_grad_()
    product = PackedProduct(weight, dtype=torch.float32, rows=ROWS)
    results = [
        torch.autograd.grad(linear_cross_entropy(hidden, chosen, bias, labels).nll.sum(), [hidden, bias]) for chosen in (product, weight)
    ]
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
