from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from frostline.kernels import sequence_attention
from frostline.kernels.attention import AttentionRule, varlen_attention, with_wide_gradients

LENGTHS = [5, 1, 4, 4, 4, 9]
SIZE = 8


def operands(heads: int, key_heads: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda count: torch.randn(1, sum(LENGTHS), count, SIZE, generator=generator, dtype=torch.float64)  # noqa: E731
    return [draw(count).to(dtype).transpose(1, 2).requires_grad_() for count in (heads, key_heads, key_heads)]


def reference(query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
    """All scores, and a mask that keeps the sequences apart."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    sequence = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    place = torch.arange(len(sequence))
    distance = place[:, None] - place[None]
    visible = sequence[:, None] == sequence[None]
    if rule.causal:
        visible = visible & (distance >= 0)
    if rule.window is not None:
        visible = visible & (distance.abs() < rule.window)
    scores = query @ key.transpose(2, 3) * (SIZE**-0.5 if rule.scaling is None else rule.scaling)
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    return (scores.masked_fill(~visible, -torch.inf).softmax(-1) @ value).transpose(1, 2)


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention as it is where C++ cannot be built."""
    monkeypatch.setattr(sequence_attention, "takes", lambda *_: False)


@pytest.mark.usefixtures("groups")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("heads", "key_heads"), [(6, 6), (6, 2), (3, 1)])
@pytest.mark.parametrize("options", [{}, {"scaling": 0.5}, {"window": 3}, {"softcap": 2.0}, {"window": 4, "softcap": 1.0}], ids=str)
def test_equals_attention_with_a_block_mask(causal: bool, heads: int, key_heads: int, options: dict[str, float]) -> None:
    rule = AttentionRule(causal=causal, **options)  # type: ignore[arg-type]
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        tensors = operands(heads, key_heads, dtype)
        ours, expected = varlen_attention(*tensors, LENGTHS, rule), reference(*tensors, rule)
        assert ours.shape == (1, sum(LENGTHS), heads, SIZE) and ours.is_contiguous()
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)
        pairs = zip(torch.autograd.grad(ours.sin().sum(), tensors), torch.autograd.grad(expected.sin().sum(), tensors))
        for mine, theirs in pairs:
            torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("groups")
def test_no_token_sees_another_sequence() -> None:
    query, key, value = operands(2, 2)
    rule = AttentionRule(causal=False)
    before = varlen_attention(query, key, value, LENGTHS, rule)
    value.data[:, :, :5] = torch.nan  # the first sequence
    after = varlen_attention(query, key, value, LENGTHS, rule)
    assert after[:, :5].isnan().all() and torch.equal(after[:, 5:], before[:, 5:])


def test_sequences_of_like_length_share_one_call(monkeypatch: pytest.MonkeyPatch, groups: None) -> None:
    from frostline.kernels import attention, sequence_groups

    calls: list[tuple[int, ...]] = []
    fused = attention._fused
    monkeypatch.setattr(attention, "_fused", lambda q, *a, **k: calls.append(tuple(q.shape)) or fused(q, *a, **k))
    monkeypatch.setattr(sequence_groups, "_CALL", 10)
    sequence_groups.groups_of.cache_clear()
    varlen_attention(*operands(2, 2), LENGTHS, AttentionRule(causal=True))
    sequence_groups.groups_of.cache_clear()
    assert calls == [(1, 2, 9, SIZE), (2, 2, 5, SIZE), (2, 2, 4, SIZE), (1, 2, 1, SIZE)]


@pytest.mark.usefixtures("groups")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("heads", [(6, 6), (6, 2)])
def test_gradients_in_bfloat16_are_as_near_as_those_of_pytorch(causal: bool, heads: tuple[int, int]) -> None:
    exact = operands(*heads, torch.float64)
    rule = AttentionRule(causal=causal)
    expected = torch.autograd.grad(reference(*exact, rule).sin().sum(), exact)
    rounded = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    ours = torch.autograd.grad(varlen_attention(*rounded, LENGTHS, rule).sin().sum(), rounded)
    theirs = torch.autograd.grad(reference(*rounded, rule).sin().sum(), rounded)

    def error(gradients: tuple[Tensor, ...]) -> float:
        return float(torch.stack([(a.double() - b).norm() / b.norm() for a, b in zip(gradients, expected)]).max())

    assert all(gradient.dtype == torch.bfloat16 for gradient in ours) and error(ours) < 1.1 * error(theirs) < 0.05


@pytest.mark.usefixtures("groups")
def test_dropout_drops_and_keeps_the_mean() -> None:
    query, key, _ = operands(2, 2)
    value = torch.ones_like(key)
    for softcap in (None, 5.0):
        torch.manual_seed(0)
        rule = AttentionRule(causal=False, dropout=0.5, softcap=softcap)
        mean = torch.stack([varlen_attention(query, key, value, LENGTHS, rule) for _ in range(200)]).mean(0)
        assert (mean - 1).abs().mean() < 0.1
        assert not torch.equal(varlen_attention(query, key, value, LENGTHS, rule), torch.ones_like(mean))


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": 3}, {"causal": True, "window": 3}], ids=str)
def test_gradients_with_dropout_are_those_of_the_weights_that_were_kept(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from frostline.kernels import attention

    rule = AttentionRule(**{"causal": False, "dropout": 0.25, **options})
    masks: dict[tuple[int, ...], Tensor] = {}

    def same(shape: torch.Size, share: float, device: torch.device) -> Tensor:
        return masks.setdefault(tuple(shape), torch.rand(shape) >= share)

    def plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, share: float) -> Tensor:
        weights = attention._weights(query, key, mask, scaling)
        return weights * masks[tuple(weights.shape)] @ value / (1 - share)

    monkeypatch.setattr(attention, "kept", same)
    tensors = operands(6, 2, torch.float64)
    ours = varlen_attention(*tensors, LENGTHS, rule)
    gradients = torch.autograd.grad(ours.sin().sum(), tensors)
    monkeypatch.setattr(attention._DroppedAttention, "apply", plain)
    expected = varlen_attention(*tensors, LENGTHS, rule)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected.sin().sum(), tensors))
    assert not torch.allclose(ours, reference(*tensors, rule))


def test_lengths_that_leave_tokens_out_are_refused() -> None:
    with pytest.raises(AssertionError, match="for 26 tokens: expected one row of them"):
        varlen_attention(*operands(2, 2), [*LENGTHS[:-1], 8], AttentionRule(causal=True))


@pytest.mark.parametrize("mask", ["none", "causal", "bool", "float"])
@pytest.mark.parametrize("heads", [4, 2])
def test_gradients_of_attention_that_is_not_ours(mask: str, heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    operands = [torch.randn(2, count, 20, 8, generator=generator).bfloat16() for count in (4, heads, heads)]
    visible = torch.rand(2, 1, 20, 20, generator=generator) < 0.7
    visible |= torch.eye(20, dtype=torch.bool)
    given = {"none": None, "causal": None, "bool": visible, "float": torch.zeros(20, 20).masked_fill(~visible[0, 0], -torch.inf)}[mask]
    options: dict[str, Any] = {"attn_mask": given, "is_causal": mask == "causal", "enable_gqa": heads != 4}

    def gradients(dtype: torch.dtype) -> list[Tensor]:
        leaves = [part.to(dtype, copy=True).requires_grad_() for part in operands]
        options["attn_mask"] = given if given is None or given.dtype == torch.bool else given.to(dtype)
        output = torch.nn.functional.scaled_dot_product_attention(*leaves, **options)
        output.float().tanh().sum().backward()
        return [output.detach().float(), *(leaf.grad.float() for leaf in leaves)]  # type: ignore[union-attr]

    plain, exact, usual = torch.nn.functional.scaled_dot_product_attention, gradients(torch.float32), gradients(torch.bfloat16)
    with with_wide_gradients():
        ours = gradients(torch.bfloat16)
    assert torch.nn.functional.scaled_dot_product_attention is plain
    for one, theirs, true in zip(ours, usual, exact, strict=True):
        error = float((one - true).norm() / true.norm())
        assert error < 0.02 and error < 1.3 * float((theirs - true).norm() / true.norm()) + 1e-3


def test_what_has_no_gradient_in_bf16_is_left_to_pytorch() -> None:
    q = torch.randn(1, 2, 5, 8)
    expected = torch.nn.functional.scaled_dot_product_attention(q, q, q)
    with with_wide_gradients():
        attend = torch.nn.functional.scaled_dot_product_attention
        assert torch.equal(attend(q, q, q), expected)
        wide = q.clone().requires_grad_()
        assert "_FusedAttention" not in type(attend(wide, wide, wide).grad_fn).__name__
        narrow = q.bfloat16().requires_grad_()
        assert "_FusedAttention" in type(attend(narrow, narrow, narrow).grad_fn).__name__
        assert "_FusedAttention" not in type(attend(narrow, narrow, narrow, None, 0.5).grad_fn).__name__
        spread = torch.randn(3, 2, 5, 8).bfloat16()
        assert attend(spread, narrow, narrow).shape == (3, 2, 5, 8), "one row's keys for three"
        assert "_FusedAttention" not in type(attend(narrow[0], narrow[0], narrow[0]).grad_fn).__name__, "without heads"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert "_FusedAttention" in type(attend(wide, wide, wide, None, 0.0, True).grad_fn).__name__
