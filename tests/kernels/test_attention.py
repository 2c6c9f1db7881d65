from __future__ import annotations

import pytest
import torch
from torch import Tensor

from frostline.kernels.attention import AttentionRule, varlen_attention

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


def test_no_token_sees_another_sequence() -> None:
    query, key, value = operands(2, 2)
    rule = AttentionRule(causal=False)
    before = varlen_attention(query, key, value, LENGTHS, rule)
    value.data[:, :, :5] = torch.nan  # the first sequence
    after = varlen_attention(query, key, value, LENGTHS, rule)
    assert after[:, :5].isnan().all() and torch.equal(after[:, 5:], before[:, 5:])


def test_neighbours_of_equal_length_share_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    from frostline.kernels import attention

    calls: list[tuple[int, ...]] = []
    fused = attention.scaled_dot_product_attention
    monkeypatch.setattr(attention, "scaled_dot_product_attention", lambda q, *a, **k: calls.append(tuple(q.shape)) or fused(q, *a, **k))
    varlen_attention(*operands(2, 2), LENGTHS, AttentionRule(causal=True))
    assert calls == [(1, 2, 5, SIZE), (1, 2, 1, SIZE), (3, 2, 4, SIZE), (1, 2, 9, SIZE)]


def test_dropout_drops_and_keeps_the_mean() -> None:
    query, key, _ = operands(2, 2)
    value = torch.ones_like(key)
    for softcap in (None, 5.0):
        torch.manual_seed(0)
        rule = AttentionRule(causal=False, dropout=0.5, softcap=softcap)
        mean = torch.stack([varlen_attention(query, key, value, LENGTHS, rule) for _ in range(200)]).mean(0)
        assert (mean - 1).abs().mean() < 0.1
        assert not torch.equal(varlen_attention(query, key, value, LENGTHS, rule), torch.ones_like(mean))


def test_lengths_that_leave_tokens_out_are_refused() -> None:
    with pytest.raises(AssertionError, match="for 26 tokens: expected one row of them"):
        varlen_attention(*operands(2, 2), [*LENGTHS[:-1], 8], AttentionRule(causal=True))
