"""Attention over sequences that lie end to end, in C++ (sequence_attention.cpp), where it can be built: with no padding, no mask, no
copies into groups, and with dropout in the same pass.

    o = drop(softmax(s q kᵀ)) v

Weights are computed anew for the gradient (Dao et al., "FlashAttention", NeurIPS 2022), a block of queries at a time against all keys
that they see, in float32 whatever comes in; but where the processor multiplies bfloat16 in tiles (Intel AMX, attention_amx.h), factors of
bfloat16 products are rounded to it, as PyTorch's own attention does. Of dropout a seed is kept: whether a weight is dropped is a function
of it and of the weight's place.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from frostline.kernels.dropout import STEPS, rounded
from frostline.kernels.native import CONTRACTED, TYPES, Library, at

library = Library(Path(__file__).with_suffix(".cpp"), *CONTRACTED)
_LARGEST_HEAD = 256


@dataclass(frozen=True, kw_only=True)
class SequenceRule:
    """What is computed, beside the operands."""

    lengths: tuple[int, ...]
    """Of the sequences, in order."""
    scaling: float
    causal: bool
    window: int | None = None
    """A token sees what is nearer than so many tokens."""
    dropout: float = 0.0


def takes(query: Tensor, key: Tensor, value: Tensor, sequences: int) -> bool:
    """Whether operands like these are computed here: on a CPU, in float32 or bfloat16, with work for every thread."""
    if query.device.type != "cpu" or not query.dtype == key.dtype == value.dtype or query.dtype not in TYPES:
        return False
    size, threads = query.shape[-1], torch.get_num_threads()
    fits = size == value.shape[-1] <= _LARGEST_HEAD and query.shape[1] % key.shape[1] == 0
    return fits and sequences * key.shape[1] >= threads and not library.missing


def attend(query: Tensor, key: Tensor, value: Tensor, rule: SequenceRule) -> Tensor:
    """``query`` (1, heads, tokens, size), ``key`` and ``value`` the same with as many or fewer heads → (1, tokens, heads, size)."""
    seed = int(torch.empty((), dtype=torch.int64).random_()) if rule.dropout else 0
    return _SequenceAttention.apply(query, key, value, rule, seed)


class _SequenceAttention(Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, rule: SequenceRule, seed: int) -> Tensor:
        query, key, value = (_rows(part[0].transpose(0, 1)) for part in (query, key, value))
        output = torch.empty(query.shape, dtype=query.dtype)
        logs = torch.empty(query.shape[1], len(query))
        _run("attend", rule, seed, (query, key, value), (output,), logs)
        ctx.save_for_backward(query, key, value, output, logs)
        ctx.rule = rule, seed
        return output[None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        query, key, value, output, logs = ctx.saved_tensors
        gradients = [torch.empty(part.shape, dtype=part.dtype) for part in (query, key, value)]
        rule, seed = ctx.rule
        _run("differentiate", rule, seed, (_rows(grad[0]), query, key, value, output), gradients, logs)
        return *(part.transpose(0, 1)[None] for part in gradients), None, None


class _Operand(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("token", ctypes.c_int64), ("head", ctypes.c_int64)]


class _Rule(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("scaling", ctypes.c_float),
        ("causal", ctypes.c_int),
        ("seed", ctypes.c_uint64),
        ("dropped", ctypes.c_uint32),
    ]


class _Work(ctypes.Structure):
    _fields_ = [
        ("rule", _Rule),
        ("sequences", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("tokens", ctypes.c_int64),
        ("key_heads", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("scratch", ctypes.c_void_p),
        ("room", ctypes.c_int64),
        ("threads", ctypes.c_int),
    ]


def _run(name: str, rule: SequenceRule, seed: int, inputs: Sequence[Tensor], outputs: Sequence[Tensor], logs: Tensor) -> None:
    """Tensors are (tokens, heads, size)."""
    gradient = name == "differentiate"
    query, key = inputs[gradient], inputs[gradient + 1]
    tokens, heads, size = query.shape
    sequences, threads = _places(rule.lengths), torch.get_num_threads()
    measure = library.function("attention_room")
    measure.restype = ctypes.c_int64
    room = measure(ctypes.c_int64(max(rule.lengths)), ctypes.c_int64(size), ctypes.c_int(gradient))
    scratch = torch.empty(threads, room)
    what = _Rule(
        size=size, window=rule.window or 0, scaling=rule.scaling, causal=rule.causal,
        seed=seed, dropped=round(rounded(rule.dropout) * STEPS),
    )  # fmt: skip
    work = _Work(
        rule=what, sequences=at(sequences), count=len(rule.lengths), tokens=tokens, key_heads=key.shape[1], group=heads // key.shape[1],
        scratch=at(scratch), room=room, threads=threads,
    )  # fmt: skip
    library.function(name, query.dtype)(ctypes.byref(work), _operands(inputs), _operands(outputs), at(logs))


def _operands(tensors: Sequence[Tensor]) -> Any:
    return (_Operand * len(tensors))(*(_Operand(data=part.data_ptr(), token=part.stride(0), head=part.stride(1)) for part in tensors))


def _rows(part: Tensor) -> Tensor:
    """As it is where its last axis is contiguous."""
    return part if part.stride(-1) == 1 else part.contiguous()


@functools.lru_cache(maxsize=16)
def _places(lengths: tuple[int, ...]) -> Tensor:
    """int64 (sequences, 2): the first token and the length of each, the longest first, so that no thread is left with one at the end."""
    sizes = torch.tensor(lengths)
    places = torch.stack([sizes.cumsum(0) - sizes, sizes], 1)
    return places[sizes.argsort(descending=True, stable=True)].contiguous()
