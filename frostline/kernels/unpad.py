"""A transformer's repeated blocks without padding, for models of ``transformers`` as they are.

A batch stays (rows, width) with an attention mask. Before the first of the blocks the hidden states of real tokens are gathered
into one row, (1, tokens, features); after the last they are put back, zeros where padding stood. Everything in between is
computed for real tokens, and for the few that fill them up to a multiple where products want one: at chat lengths (log-normal) that
is about half of a padded batch.

What else a block is handed follows: tensors with a position axis (rotary angles, position ids) are gathered alike, so that
positions restart with each sequence by themselves; masks and caches are left out. Attention is reached through the registry that
``transformers`` has for it (its ``AttentionInterface``): within :func:`unpadded` the configuration names a function of ours, which
calls :func:`frostline.kernels.attention.varlen_attention`; outside the blocks it is the one of ``transformers``. Hooks and
configuration are as before afterwards, so nothing of this is ever saved.

Decisions. Where blocks are recomputed in the backward pass (activation checkpointing), that pass has to run within the context
too, or within :func:`unpadded_again`. Attention dropout draws other numbers than in the padded batch, from the same distribution.
The cache that a model may return is empty, and hidden states recorded between blocks are those of one row. Whether a model can do
this is first read off its configuration (:func:`can_unpad`) and then proved by running it both ways (:func:`unpad_deviation`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from frostline.adapt.virtual import find as find_virtual_tokens
from frostline.device import finest
from frostline.errors import ModelError
from frostline.kernels.attention import AttentionRule, varlen_attention
from frostline.kernels.caches import configs, is_cache
from frostline.models.model import Model, evaluating

NAME = "frostline"
_LAYER_TYPES = {"attention", "full_attention", "sliding_attention"}


@dataclass(kw_only=True)
class _Batch:
    """The batch that is being computed, and whether a block is at work."""

    rows: int
    width: int
    positions: Tensor
    """Of the real tokens in the flattened batch, and of what fills up (tokens,), int64."""
    lengths: list[int]
    filled: int = 0
    """Copies of the first token behind the real ones, a sequence of their own."""
    configs: list[Any] = field(default_factory=list)
    """Where attention is looked up."""
    inside: bool = False
    """A block that is recomputed in the backward pass does not say so: its hooks stand outside what is recomputed."""
    first_only: bool = False
    """Whether the last block gives its sequences' first tokens and no others."""
    gathered: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    """id of a tensor → the tensor (so that the id stays its own) and what was gathered from it: blocks are handed the same ones."""


_current: ContextVar[_Batch | None] = ContextVar("frostline_unpadded", default=None)


def fill_multiple(tokens: int) -> int:
    """To a multiple of what a batch of so many tokens is filled up, where oneDNN multiplies: it compiles a product anew for each number
    of rows, which takes as long as tens of rows do, and keeps what it made, half a megabyte in bfloat16. At most one in thirty is filled
    in, and half of that on average.

    >>> [fill_multiple(tokens) for tokens in (100, 1000, 2000, 4000)]
    [32, 32, 32, 64]
    """
    return max(32, 1 << max(0, tokens.bit_length() - 6))


@contextlib.contextmanager
def unpadded(module: nn.Module, blocks: Sequence[str], attention_mask: Tensor, fills_up: bool = False) -> Iterator[None]:
    """Within, ``module(**inputs)`` of this batch computes its ``blocks`` (as in ``Model.blocks``) for real tokens only; ``fills_up``: and
    so many more that they are a multiple (:func:`fill_multiple`)."""
    _register()
    real = attention_mask.bool()
    rows, width = real.shape
    lengths = [length for length in real.sum(1).tolist() if length]
    positions = real.flatten().nonzero().squeeze(1)
    filled = -len(positions) % fill_multiple(len(positions)) if fills_up and len(positions) else 0
    positions = torch.cat([positions, positions[:1].expand(filled)])
    parts = [module.get_submodule(name) for name in blocks]
    batch = _Batch(rows=rows, width=width, positions=positions, lengths=lengths, filled=filled, configs=configs(parts))
    with contextlib.ExitStack() as stack:
        stack.enter_context(_attending(batch))
        for part in dict.fromkeys(parts):
            enter = part.register_forward_pre_hook(_enter, with_kwargs=True)
            stack.callback(enter.remove)
            leave = part.register_forward_hook(_leave_last if part is parts[-1] else _leave)
            stack.callback(leave.remove)
        yield


@contextlib.contextmanager
def _attending(batch: _Batch) -> Iterator[None]:
    """Within, attention is that of this batch."""
    with contextlib.ExitStack() as stack:
        token = _current.set(batch)
        stack.callback(_current.reset, token)
        for config in batch.configs:
            stack.callback(setattr, config, "_attn_implementation_internal", config._attn_implementation)
            config._attn_implementation_internal = NAME
        yield


def unpadded_again() -> contextlib.AbstractContextManager[None]:
    """For a block of the batch that is being computed, the context in which the backward pass may compute it once more."""
    batch = _current.get()
    return contextlib.nullcontext() if batch is None else _attending(batch)


def leave_first_tokens(hidden: Tensor) -> Tensor | None:
    """For a last block that gives first tokens only: their places in ``hidden``, where it is the row of a batch's real tokens; what
    leaves the block then is (rows, 1, features). None where ``hidden`` is padded."""
    batch = _current.get()
    if batch is None or hidden.shape[:2] != (1, len(batch.positions)):
        return None
    if len(batch.lengths) != batch.rows:
        raise ModelError("a row of the batch has no token, expected at least one in each. Use: plan.pack=off")
    batch.first_only = True
    return torch.tensor([0, *batch.lengths[:-1]], device=hidden.device).cumsum(0)


def can_unpad(model: Model) -> str | None:
    """Why a model's blocks cannot be computed without padding, as far as its configuration shows; None where they may be."""
    from transformers import PreTrainedModel

    if not model.blocks:
        return "it names no repeated blocks"
    if find_virtual_tokens(model.module):
        return "virtual tokens stand before every row"
    parts = [model.module.get_submodule(name) for name in model.blocks]
    found = configs(parts)
    owners = [part for part in model.module.modules() if isinstance(part, PreTrainedModel)]
    if not found or not owners or not all(owner._can_set_attn_implementation() for owner in owners):
        return "its attention does not go through the attention interface of transformers"
    for config in [*found, *(owner.config for owner in owners)]:
        if getattr(config, "is_encoder_decoder", False) or getattr(config, "add_cross_attention", False):
            return "its blocks attend to a second sequence"
        others = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
        if others:
            return f"it has layers of the type {min(others)!r}, which mix tokens by other means than attention"
    return None


@torch.no_grad()
def unpad_deviation(model: Model, inputs: Mapping[str, Tensor]) -> float:
    """The largest difference at real positions between the last block's outputs, padded and not, over the largest output.

    In evaluation mode; infinite where the model does not run without padding or does so with values that are not finite.
    """
    real = inputs["attention_mask"].bool()
    with evaluating(model.module):
        padded = finest(_last_output(model, inputs)[real])
        try:
            with unpadded(model.module, model.blocks, real):
                ours = finest(_last_output(model, inputs)[real])
        except (ModelError, RuntimeError, ValueError, TypeError, IndexError, AttributeError):  # each architecture fails in its own way
            return float("inf")
    deviation = float((padded - ours).abs().max() / padded.abs().max().clamp_min(1e-30))
    return float("inf") if math.isnan(deviation) else deviation


def _last_output(model: Model, inputs: Mapping[str, Tensor]) -> Tensor:
    outputs: list[Tensor] = []  # one for each time that the block runs: ALBERT's does so once for each of its layers
    last = model.module.get_submodule(model.blocks[-1])
    handle = last.register_forward_hook(lambda _part, _inputs, output: outputs.append(_first(output)))
    try:
        model.module(**inputs)
    finally:
        handle.remove()
    return outputs[-1]


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any) -> tuple[Tensor, None]:
    """The attention function that ``transformers`` calls."""
    batch = _current.get()
    packed = batch is not None and query.shape[0] == 1 and query.shape[2] == key.shape[2] == len(batch.positions)
    if batch is None or not (packed or batch.inside):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if not packed:
        raise ModelError(
            f"{type(module).__name__} got a query {tuple(query.shape)!r} and a key {tuple(key.shape)!r}, expected one row of "
            f"{len(batch.positions)} tokens. Use: plan.pack=off"
        )
    for name in ("position_bias", "s_aux"):
        if options.get(name) is not None:
            raise ModelError(f"{type(module).__name__} got {name!r}, which attention without padding does not have. Use: plan.pack=off")
    causal = options.get("is_causal")
    rule = AttentionRule(
        causal=bool(getattr(module, "is_causal", True) if causal is None else causal),
        scaling=options.get("scaling"),
        dropout=options.get("dropout", 0.0),
        window=options.get("sliding_window"),
        softcap=options.get("softcap"),
    )
    lengths = [*batch.lengths, batch.filled] if batch.filled else batch.lengths
    return varlen_attention(query, key, value, lengths, rule), None


def _enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    batch = _now()
    batch.inside = True
    others = {name: None if name.endswith("mask") else _gather(value, batch) for name, value in kwargs.items() if name != "hidden_states"}
    if "use_cache" in others:
        others["use_cache"] = False
    if "hidden_states" in kwargs:
        return tuple(_gather(value, batch) for value in args), {"hidden_states": _real(kwargs["hidden_states"], batch), **others}
    return (_real(args[0], batch), *(_gather(value, batch) for value in args[1:])), others


def _leave(_: nn.Module, args: Any, output: Any) -> None:
    _now().inside = False


def _leave_last(_: nn.Module, args: Any, output: Any) -> Any:
    batch = _now()
    batch.inside = False
    batch.gathered.clear()
    hidden = _first(output)
    if batch.first_only:
        spread = hidden[0][:, None]
        return spread if isinstance(output, Tensor) else (spread, *output[1:])
    count = len(batch.positions) - batch.filled
    spread = hidden.new_zeros(batch.rows * batch.width, *hidden.shape[2:]).index_copy(0, batch.positions[:count], hidden[0, :count])
    spread = spread.unflatten(0, (batch.rows, batch.width))
    return spread if isinstance(output, Tensor) else (spread, *output[1:])


def _now() -> _Batch:
    batch = _current.get()
    assert batch is not None, "a block of an unpadded model runs outside unpadded(): the backward pass that recomputes it belongs inside"
    return batch


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _real(hidden: Tensor, batch: _Batch) -> Tensor:
    """The hidden states of real tokens: what the first block is handed is a padded batch, what the others are handed no longer."""
    if hidden.shape[:2] != (batch.rows, batch.width):
        return hidden
    return hidden.flatten(0, 1)[batch.positions][None]


def _gather(value: Any, batch: _Batch) -> Any:
    """What else a block is handed, for real tokens only; None for masks and caches."""
    if isinstance(value, tuple | list):
        return type(value)(_gather(item, batch) for item in value)
    if not isinstance(value, Tensor):
        return None if is_cache(value) else value
    if id(value) not in batch.gathered:
        batch.gathered[id(value)] = (value, _gather_tensor(value, batch))
    return batch.gathered[id(value)][1]


def _gather_tensor(value: Tensor, batch: _Batch) -> Tensor | None:
    shape = tuple(value.shape)
    if value.dim() == 4 and shape[-1] == batch.width and (value.dtype == torch.bool or shape[:2] == (batch.rows, 1)):
        return None  # a mask: (rows, heads or 1, queries or 1, keys)
    if shape[:2] == (batch.rows, batch.width):
        return value.flatten(0, 1)[batch.positions][None]
    if shape[:2] == (1, batch.width):
        return value[:, batch.positions % batch.width]
    if shape == (batch.width,):
        return value[batch.positions % batch.width]
    return value
