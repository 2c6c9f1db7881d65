"""Attention over sequences of different lengths that lie end to end, without a mask of all tokens and nearly without padding.

A dense block-diagonal mask makes the attention of T tokens cost T² whatever their borders, a padded batch rows × longest², and one
call per sequence is mostly calls where sequences are short. Here sequences of like length are attended together, in groups whose
padding costs no more than a call (:mod:`frostline.kernels.sequence_groups`).

- On a CPU, in float32 or bfloat16, where there is a C++ compiler: :mod:`frostline.kernels.sequence_attention`, which needs no groups.
  What follows is for all else.
- Without dropout, PyTorch's fused attention runs once for each group. On a CPU its gradient is computed in float32 where bfloat16
  comes in: 7 sequences of 142 tokens (9 heads of 64) take 7 ms so and 25 ms in bfloat16, with AMX. :func:`with_wide_gradients` does
  the same for attention that is not ours.
- Dropout of attention weights has no fused form on a CPU. Weights are computed anew for the gradient; what is kept of them is one
  byte each: whether it was dropped. There, too, the products are in float32.
- ``softcap`` (Gemma 2: s = c tanh(s / c) before the softmax) is written in plain operations. ``window`` (a token sees what is nearer
  than so many tokens) is a mask, in groups that are longer than the window.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import dropout, scaled_dot_product_attention

from frostline.kernels import sequence_attention
from frostline.kernels.batch_attention import Attend, exchanged, options_of
from frostline.kernels.dropout import kept, rounded
from frostline.kernels.precision import cast, no_autocast, wide
from frostline.kernels.sequence_attention import SequenceRule
from frostline.kernels.sequence_groups import Group, groups_of

_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_fused_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, kw_only=True)
class AttentionRule:
    """What attention computes, beside its operands."""

    causal: bool
    scaling: float | None = None
    """Of the scores; None: 1 / √head size."""
    dropout: float = 0.0
    """Share of attention weights that are dropped; drawn per group, so other values than a padded batch would drop."""
    window: int | None = None
    softcap: float | None = None


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], rule: AttentionRule) -> Tensor:
    """``query`` (1, heads, tokens, size), ``key`` and ``value`` the same with as many or fewer heads → (1, tokens, heads, size).

    ``lengths``: of the sequences, in order, each at least 1, together all tokens. No token sees another sequence.
    """
    tokens = query.shape[2]
    assert query.shape[0] == 1 and key.shape[2] == tokens == sum(lengths), (
        f"query {tuple(query.shape)} and key {tuple(key.shape)} for {sum(lengths)} tokens: expected one row of them"
    )
    scaling = query.shape[-1] ** -0.5 if rule.scaling is None else rule.scaling
    q, k, v = cast(query, key, value)
    assert q is not None and k is not None and v is not None
    if rule.softcap is None and sequence_attention.takes(q, k, v, len(lengths)):
        one = SequenceRule(lengths=tuple(lengths), scaling=scaling, causal=rule.causal, window=rule.window, dropout=rule.dropout)
        return sequence_attention.attend(q, k, v, one)
    found = groups_of(tuple(lengths), query.device)
    sizes = [group.places for group in found.groups]
    operands: list[Any] = [found.gather(part[0].transpose(0, 1)).split(sizes) for part in (query, key, value)]
    mixed = [
        _attend(group.batch(q), group.batch(k), group.batch(v), group, rule, scaling)
        for group, q, k, v in zip(found.groups, *operands, strict=True)
    ]
    return found.put_back(torch.cat([part.transpose(1, 2).flatten(0, 1) for part in mixed]))[None]


def with_wide_gradients() -> contextlib.AbstractContextManager[None]:
    """Within, the gradient of ``torch.nn.functional.scaled_dot_product_attention`` is computed in float32 where it is in bfloat16 on a
    CPU, without dropout: whoever calls it by that name. For the process, so for one thread at a time."""
    return exchanged(_attend_widely)


def _attend_widely(plain: Attend, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    options, (q, k, v) = options_of(args, kwargs), cast(query, key, value)
    assert q is not None and k is not None and v is not None
    mask, learns = options["attn_mask"], torch.is_grad_enabled() and any(part.requires_grad for part in (q, k, v))
    slow = q.device.type == "cpu" and all(part.dtype == torch.bfloat16 for part in (q, k, v))
    has_a_form = not options["dropout_p"] and (mask is None or not mask.requires_grad) and _fit(q, k, v)
    if not (learns and slow and has_a_form):
        return plain(query, key, value, *args, **kwargs)
    if mask is not None:
        added = mask if mask.dtype != torch.bool else torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
        mask = added.to(q.dtype)[(None,) * (4 - mask.dim())]
    return _FusedAttention.apply(q, k, v, mask, q.shape[-1] ** -0.5 if options["scale"] is None else options["scale"], options["is_causal"])


def _fit(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the fused attention takes these shapes as they are: where some are to be spread over others, PyTorch has another."""
    if not query.dim() == key.dim() == 4 or key.shape != value.shape:
        return False
    return query.shape[0] == key.shape[0] and query.shape[1] % key.shape[1] == 0 and query.shape[3] == key.shape[3]


def _attend(query: Tensor, key: Tensor, value: Tensor, group: Group, rule: AttentionRule, scaling: float) -> Tensor:
    """(sequences, heads, longest, size), of the query."""
    on_cpu = query.device.type == "cpu" and query.shape[-1] == value.shape[-1]
    if rule.softcap is not None or (on_cpu and rule.dropout):
        repeats = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(repeats, 1) for part in (key, value))
        mask = _mask(group, rule, wide(query.dtype), causal=rule.causal)
        if rule.softcap is not None:
            return _with_softcap(query, key, value, mask, rule, scaling)
        return _DroppedAttention.apply(*cast(query, key, value), mask, scaling, rounded(rule.dropout))
    q, k, v = cast(query, key, value)
    assert q is not None and k is not None and v is not None
    windowed = rule.window is not None and group.longest > rule.window
    mask = _mask(group, rule, q.dtype, causal=rule.causal and windowed)
    causal = rule.causal and not windowed
    if on_cpu:
        return _FusedAttention.apply(q, k, v, mask, scaling, causal)
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(q, k, v, mask, rule.dropout, is_causal=causal, scale=scaling, enable_gqa=grouped)


def _mask(group: Group, rule: AttentionRule, dtype: torch.dtype, *, causal: bool) -> Tensor | None:
    """To be added to the scores of a group: (sequences or 1, 1, longest or 1, longest), 0 or -∞; None where every token sees all.

    Padding stands at the end, where a causal rule hides it anyway.
    """
    place = torch.arange(group.longest, device=group.lengths.device)
    distance = place[:, None] - place
    visible: Tensor | None = distance >= 0 if causal else None
    if rule.window is not None and group.longest > rule.window:
        near = distance.abs() < rule.window
        visible = near if visible is None else visible & near
    if group.padded and not rule.causal:
        real = place < group.lengths[:, None, None, None]
        visible = real if visible is None else visible & real
        if rule.window is not None:
            visible = visible | (distance == 0)  # padding farther from its sequence than the window sees itself, not nothing
    if visible is None:
        return None
    visible = visible.expand(-1, 1, -1, -1) if visible.dim() == 4 else visible[None, None]
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)


class _FusedAttention(Function):
    """PyTorch's fused attention for CPUs, with its gradient in float32."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, causal: bool) -> Tensor:
        output, logs = _fused(query, key, value, 0.0, causal, attn_mask=mask, scale=scaling)
        ctx.save_for_backward(query, key, value, output, logs, mask)
        ctx.rule = scaling, causal
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        query, key, value, output, logs, mask = ctx.saved_tensors
        scaling, causal = ctx.rule
        dtype = wide(grad.dtype)
        operands = (part.to(dtype) for part in (grad, query, key, value, output))
        mask = None if mask is None else mask.to(dtype)
        gradients = _fused_backward(*operands, logs, 0.0, causal, attn_mask=mask, scale=scaling)
        return *(part.to(grad.dtype) for part in gradients), None, None, None


class _DroppedAttention(Function):
    """Attention whose weights are dropped: y = (keep ∘ softmax(scaling · q kᵀ + mask)) v / (1 - share), on equal numbers of heads."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, share: float) -> Tensor:
        wide_query, wide_key, wide_value = _widened(query, key, value)
        with no_autocast(query):
            weights = _weights(wide_query, wide_key, mask, scaling)
            keep = kept(weights.shape, share, query.device)
            output = (weights.mul_(keep).to(wide_value.dtype) @ wide_value).div_(1 - share)
        ctx.save_for_backward(query, key, value, mask, keep)
        ctx.rule = scaling, share
        return output.to(query.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        *operands, mask, keep = ctx.saved_tensors
        dtypes, (query, key, value, grad) = [tensor.dtype for tensor in operands], _widened(*operands, grad)
        scaling, share = ctx.rule
        with no_autocast(grad):
            grad = grad / (1 - share)
            weights = _weights(query, key, mask, scaling)
            of_value = (weights * keep).to(grad.dtype).transpose(2, 3) @ grad
            of_weights = (grad @ value.transpose(2, 3)).to(weights.dtype).mul_(keep)
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype).mul_(scaling).to(grad.dtype)
            gradients = of_scores @ key, of_scores.transpose(2, 3) @ query, of_value
        return *(gradient.to(dtype) for gradient, dtype in zip(gradients, dtypes)), None, None, None


def _widened(*tensors: Tensor) -> tuple[Tensor, ...]:
    """In float32 where bfloat16 comes in on a CPU: its products of small matrices take three times as long in bfloat16, with AMX."""
    return tuple(tensor.float() if tensor.device.type == "cpu" and tensor.dtype == torch.bfloat16 else tensor for tensor in tensors)


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    scores = (query @ key.transpose(2, 3)).to(wide(query.dtype)).mul_(scaling)
    return (scores if mask is None else scores.add_(mask)).softmax(-1)


def _with_softcap(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rule: AttentionRule, scaling: float) -> Tensor:
    assert rule.softcap is not None
    scores = (query @ key.transpose(2, 3)) * scaling
    scores = torch.tanh(scores / rule.softcap) * rule.softcap
    weights = (scores if mask is None else scores + mask).softmax(-1, dtype=wide(scores.dtype)).to(query.dtype)
    return dropout(weights, rule.dropout) @ value
