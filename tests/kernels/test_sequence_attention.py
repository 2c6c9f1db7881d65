"""Attention in C++ against attention written out, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from frostline.kernels.dropout import rounded
from frostline.kernels.native import TYPES
from frostline.kernels.sequence_attention import SequenceRule, attend, library, takes

pytestmark = pytest.mark.skipif(library.missing is not None, reason=f"not built here: {library.missing}")

LENGTHS = (70, 1, 33, 16, 100, 5)  # more and fewer than a block of queries, and than the numbers in a vector


def operands(heads: int, key_heads: int, size: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda count: torch.randn(1, sum(LENGTHS), count, size, generator=generator)  # noqa: E731
    return [draw(count).to(dtype).transpose(1, 2).requires_grad_() for count in (heads, key_heads, key_heads)]


def weights(query: Tensor, key: Tensor, rule: SequenceRule) -> Tensor:
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    sequence = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    distance = torch.arange(len(sequence))[:, None] - torch.arange(len(sequence))
    visible = sequence[:, None] == sequence
    if rule.causal:
        visible = visible & (distance >= 0)
    if rule.window is not None:
        visible = visible & (distance.abs() < rule.window)
    return (query @ key.transpose(2, 3) * rule.scaling).masked_fill(~visible, -torch.inf).softmax(-1)


def reference(query: Tensor, key: Tensor, value: Tensor, rule: SequenceRule, kept: Tensor | float = 1.0) -> Tensor:
    value = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
    return (weights(query, key, rule) * kept @ value).transpose(1, 2)


def rule(**options: Any) -> SequenceRule:
    return SequenceRule(**{"lengths": LENGTHS, "scaling": 0.3, "causal": True, **options})


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 7, 40])
@pytest.mark.parametrize(("heads", "key_heads", "size"), [(4, 4, 32), (6, 2, 64), (3, 1, 20), (2, 2, 1), (2, 2, 144)])
def test_equals_attention_written_out(causal: bool, window: int | None, heads: int, key_heads: int, size: int) -> None:
    tensors, own = operands(heads, key_heads, size), rule(causal=causal, window=window)
    exact = [part.detach().double().requires_grad_() for part in tensors]
    assert takes(*tensors, len(LENGTHS))
    ours, expected = attend(*tensors, own), reference(*exact, own)
    assert ours.shape == (1, sum(LENGTHS), heads, size) and ours.is_contiguous()
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(torch.autograd.grad(ours.sin().sum(), tensors), torch.autograd.grad(expected.sin().sum(), exact)):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 7, 40])
@pytest.mark.parametrize(("heads", "key_heads", "size"), [(6, 2, 32), (4, 4, 64), (3, 1, 20), (2, 2, 1), (2, 2, 144)])
def test_in_bfloat16_it_is_as_near_as_pytorch_is(causal: bool, window: int | None, heads: int, key_heads: int, size: int) -> None:
    exact = [part.detach().double().requires_grad_() for part in operands(heads, key_heads, size, torch.bfloat16)]
    narrow = [part.detach().bfloat16().requires_grad_() for part in exact]
    own = rule(causal=causal, window=window)

    def errors(output: Tensor, of: list[Tensor]) -> list[float]:
        expected = reference(*exact, own)
        both = zip(
            (output, *torch.autograd.grad(output.sin().sum(), of)),
            (expected, *torch.autograd.grad(expected.sin().sum(), exact)),
            strict=True,
        )
        return [float((a.double() - b).norm() / b.norm()) for a, b in both]

    ours, theirs = errors(attend(*narrow, own), narrow), errors(reference(*narrow, own), narrow)
    assert all(mine < 1.05 * other < 0.02 for mine, other in zip(ours, theirs))


@pytest.mark.parametrize("dtype", TYPES)
def test_operands_may_lie_in_any_way(dtype: torch.dtype) -> None:
    tensors = operands(6, 2, 32, dtype)
    others = [part.detach().contiguous().requires_grad_() for part in tensors]  # head by head
    strided = [torch.stack([part.detach(), part.detach()], -1)[..., 0].requires_grad_() for part in tensors]
    expected = attend(*tensors, rule())
    grad = torch.randn_like(expected).transpose(1, 2).contiguous().transpose(1, 2)
    for lying in (others, strided):
        output = attend(*lying, rule())
        assert torch.equal(output, expected)
        pairs = zip(torch.autograd.grad(output, lying, grad), torch.autograd.grad(expected, tensors, grad.contiguous(), retain_graph=True))
        assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


@pytest.mark.parametrize("dtype", TYPES)
def test_no_token_sees_another_sequence(dtype: torch.dtype) -> None:
    tensors = operands(2, 2, 32, dtype)
    before = attend(*tensors, rule(causal=False))
    for part in tensors:
        part.data[:, :, : LENGTHS[0]] = torch.nan
    after = attend(*tensors, rule(causal=False))
    assert after[:, : LENGTHS[0]].isnan().all() and torch.equal(after[:, LENGTHS[0] :], before[:, LENGTHS[0] :])
    after.sum().backward()
    assert all(part.grad is not None and part.grad[:, :, LENGTHS[0] :].isfinite().all() for part in tensors)


def kept_by(seed: int, own: SequenceRule, heads: int) -> Tensor:
    """What the weights are multiplied by, seen through values that are the rows of an identity, 200 keys at a time."""
    tokens = sum(LENGTHS)
    query = torch.zeros(1, heads, tokens, 200)
    shares = torch.zeros(heads, tokens, tokens)
    for start in range(0, tokens, 200):
        value = torch.zeros(1, heads, tokens, 200)
        stop = min(start + 200, tokens)
        value[:, :, start:stop, : stop - start] = torch.eye(stop - start)
        torch.manual_seed(seed)
        shares[:, :, start:stop] = attend(query, query, value, own)[0].transpose(0, 1)[..., : stop - start]
    plain = weights(query, query, own)[0]
    return torch.where(plain > 0, shares / plain, 0.0)


@pytest.mark.parametrize("options", [{}, {"causal": False}, {"causal": False, "window": 9}], ids=str)
def test_dropout_and_its_gradient(options: dict[str, Any]) -> None:
    own, share = rule(dropout=0.25, **options), rounded(0.25)
    kept = kept_by(7, own, 4)
    seen = weights(torch.zeros(1, 4, sum(LENGTHS), 1), torch.zeros(1, 4, sum(LENGTHS), 1), own)[0] > 0
    assert ((kept == 0) | ((kept - 1 / (1 - share)).abs() < 1e-4)).all()
    dropped, count = float((kept[seen] == 0).double().mean()), int(seen.sum())
    assert abs(dropped - share) < 5 * math.sqrt(share * (1 - share) / count)
    heads = [float((kept[h] == 0)[seen[h]].double().mean()) for h in range(4)]
    assert max(heads) - min(heads) < 0.05 and not torch.equal(kept[0], kept[1])

    tensors = operands(4, 2, 32)
    exact = [part.detach().double().requires_grad_() for part in tensors]
    torch.manual_seed(7)
    ours, expected = attend(*tensors, own), reference(*exact, own, kept.double())
    torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(torch.autograd.grad(ours.sin().sum(), tensors), torch.autograd.grad(expected.sin().sum(), exact)):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-4)


def test_dropout_in_bfloat16_drops_the_same() -> None:
    wide = operands(4, 2, 32, torch.bfloat16)
    narrow = [part.detach().requires_grad_() for part in wide]
    wide = [part.detach().float().requires_grad_() for part in wide]
    results = []
    for tensors in (wide, narrow):
        torch.manual_seed(7)
        output = attend(*tensors, rule(dropout=0.25))
        results.append([output, *torch.autograd.grad(output.sin().sum(), tensors)])
    assert all(float((a - b).norm() / a.norm()) < 0.01 for a, b in zip(*results, strict=True))


def test_dropout_is_seeded_and_its_neighbours_are_independent() -> None:
    own, other = rule(dropout=0.5, causal=False), rule(dropout=0.5, causal=False, lengths=LENGTHS)
    tensors = operands(2, 2, 32)
    torch.manual_seed(3)
    first, second = attend(*tensors, own), attend(*tensors, own)
    torch.manual_seed(3)
    assert torch.equal(first, attend(*tensors, other)) and not torch.equal(first, second)
    block = (kept_by(3, own, 4)[:, 121:220, 120:220] > 0).double() * 2 - 1  # of the sequence of 100
    for along in (0, 1, 2):
        ahead, behind = block.narrow(along, 1, block.shape[along] - 1), block.narrow(along, 0, block.shape[along] - 1)
        assert abs(float((ahead * behind).mean())) < 0.05


@pytest.mark.parametrize("why", ["float64", "meta", "more threads than work", "two sizes", "no library"])
def test_what_it_does_not_take(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = operands(4, 2, 32)
    assert takes(query, key, value, 6)
    if why == "float64":
        query, key, value = query.double(), key.double(), value.double()
    elif why == "meta":
        query, key, value = query.to("meta"), key.to("meta"), value.to("meta")
    elif why == "more threads than work":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 13)
    elif why == "two sizes":
        value = value[..., :16]
    else:
        monkeypatch.setattr(library, "found", "there is no C++ compiler")
    assert not takes(query, key, value, 6)
