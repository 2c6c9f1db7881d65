"""Attention of rows that are all as long: in C++ the same outputs and gradients, and all else left to what was there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from frostline.kernels import sequence_attention
from frostline.kernels.batch_attention import attending_in_sequences, exchanged, options_of

ROWS, HEADS, TOKENS, SIZE = 3, 4, 21, 24
SHAPES = {"heads first": (0, 1, 2, 3), "as a linear layer gives them": (0, 2, 1, 3)}


def operands(order: tuple[int, ...], dtype: torch.dtype, key_heads: int = HEADS) -> list[Tensor]:
    """Query, key, value and the output's gradient, (rows, heads, tokens, size) at other steps."""
    torch.manual_seed(0)
    sizes = [(ROWS, heads, TOKENS, SIZE) for heads in (HEADS, key_heads, key_heads, HEADS)]
    return [torch.randn([size[place] for place in order]).permute(order).to(dtype) for size in sizes]


def computed(given: list[Tensor], on: bool, **options: Any) -> tuple[Tensor, ...]:
    """The output and the gradients of the operands."""
    *parts, grad = given
    leaves = [part.detach().requires_grad_() for part in parts]
    with attending_in_sequences(on):
        output = functional.scaled_dot_product_attention(*leaves, **options)
    assert ("_SequenceAttention" in _names(output)) == on
    return output.detach(), *torch.autograd.grad(output, leaves, grad)


def _names(output: Tensor) -> str:
    """Of the last functions of autograd that made it."""
    found, names = output.grad_fn, list[str]()
    for _ in range(3):
        if found is None:
            break
        names.append(type(found).__name__)
        found = found.next_functions[0][0] if found.next_functions else None
    return " ".join(names)


@pytest.mark.parametrize("order", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}, {"enable_gqa": True}], ids=str)
def test_outputs_and_gradients_are_those_of_pytorch(options: dict[str, Any], order: tuple[int, ...]) -> None:
    if sequence_attention.library.missing:
        pytest.skip(sequence_attention.library.missing)
    key_heads = HEADS // 2 if "enable_gqa" in options else HEADS
    given = operands(order, torch.float32, key_heads)
    for ours, theirs in zip(computed(given, True, **options), computed(given, False, **options), strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", SHAPES.values(), ids=SHAPES)
def test_bf16_is_as_near_to_float64_as_pytorch(order: tuple[int, ...]) -> None:
    if sequence_attention.library.missing:
        pytest.skip(sequence_attention.library.missing)
    given = operands(order, torch.bfloat16)
    exact = computed([part.double() for part in given], False)
    for ours, theirs, true in zip(computed(given, True), computed(given, False), exact, strict=True):
        assert ours.dtype == torch.bfloat16
        off, theirs_off = (float((one.double() - true).norm() / true.norm()) for one in (ours, theirs))
        assert off < 0.02 and off < 1.3 * theirs_off + 1e-3


def test_autocast_casts_what_comes_in() -> None:
    if sequence_attention.library.missing:
        pytest.skip(sequence_attention.library.missing)
    *parts, _ = operands((0, 1, 2, 3), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16), attending_in_sequences(True):
        assert functional.scaled_dot_product_attention(*parts).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "case", ["mask", "dropout", "other length", "other rows", "without heads", "float64", "fewer heads, not said"]
)  # fmt: skip
def test_all_else_is_left_to_what_was_there(case: str) -> None:
    query, key, value, _ = operands((0, 1, 2, 3), torch.float64 if case == "float64" else torch.float32)
    options: dict[str, Any] = {}
    if case == "mask":
        options["attn_mask"] = torch.zeros(TOKENS, TOKENS)
    elif case == "dropout":
        options["dropout_p"] = 0.5
    elif case == "other length":
        query = query[:, :, :1]
    elif case == "other rows":
        query = query[:1]
    elif case == "without heads":
        query, key, value = query[0], key[0], value[0]
    elif case == "fewer heads, not said":
        key, value = key[:, :1], value[:, :1]
    asked: list[Tensor] = []

    def before(plain: Any, query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        asked.append(query)
        return plain(query, *args, **kwargs)

    with exchanged(before), attending_in_sequences(True):
        functional.scaled_dot_product_attention(query, key, value, **options)
    assert len(asked) == 1 and asked[0] is query


def test_what_was_exchanged_is_put_back() -> None:
    plain = functional.scaled_dot_product_attention
    with pytest.raises(ValueError), attending_in_sequences(True):
        assert functional.scaled_dot_product_attention is not plain
        raise ValueError
    assert functional.scaled_dot_product_attention is plain
    with attending_in_sequences(False):
        assert functional.scaled_dot_product_attention is plain


def test_options_by_place_and_by_name() -> None:
    usual = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}
    assert options_of((), {}) == usual
    assert options_of((None, 0.5, True), {"scale": 2.0}) == usual | {"dropout_p": 0.5, "is_causal": True, "scale": 2.0}
