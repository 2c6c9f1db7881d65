"""Frozen linear layers kept in 8 or 4 bits (QLoRA: Dettmers et al., "QLoRA: efficient finetuning of quantized LLMs", NeurIPS 2023).

A weight is stored as small integers q and a scale s for every group of one output's inputs:

    int8   w ≈ s · q            q in -127 … 127, one group per output          |error| ≤ s / 2,  s = max|w| / 127
    int4   w ≈ s · q            q in -7 … 7, groups of 64                      |error| ≤ s / 2,  s = max|w| / 7
    nf4    w ≈ s · NF4[q]       16 quantiles of the normal distribution, of 64 |error| ≤ 0.152 s, s = max|w|

so that a number takes 8, 4.5 and 4.5 bits in place of 32. The layer turns a few rows at a time back into numbers of the input's
type, in the forward pass and again in the backward pass, and saves nothing for it: no whole weight exists but for a moment.
Groups run along the inputs of one output, padded to whole groups, so that rows are independent.

Only frozen weights are stored so: not the head, nor the output layer, nor what ``modules_to_save`` names, nor a weight that two
places share. After a merge, :func:`requantize` puts weights back into few bits (``merge_into_few_bits`` in adapters.py does both)
and says what is left of the change (law 9):

    share = ⟨ΔW, Q(W + ΔW) - Q(W)⟩ / ‖ΔW‖²      1: all of it; 0: rounding ate it

and refuses below a limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from frostline.adapt.wrapper import is_transposed, replace
from frostline.errors import ModelError

KINDS = ("int8", "int4", "nf4")
GROUP = 64
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The code book of the paper's appendix E: both halves of the normal distribution in equal shares, with an exact zero."""
_CHUNK = 2**22
"""Numbers that are turned back at a time."""


class QuantizedLinear(nn.Module):
    """A frozen linear layer in few bits. ``weight`` gives the whole weight as it is meant, for code that reads it."""

    FROZEN_BUFFERS = True
    """They are weights: frozen, wherever the layer stands."""

    def __init__(self, inputs: int, outputs: int, kind: str, *, bias: bool, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.in_features, self.out_features, self.kind = inputs, outputs, kind
        self.transposed = False
        """Whether a ``Conv1D`` stood here; only PEFT's files care."""
        self.group = inputs if kind == "int8" else GROUP
        groups = -(-inputs // self.group)
        stored = inputs if kind == "int8" else groups * self.group // 2
        self.packed = nn.Buffer(torch.zeros(outputs, stored, dtype=torch.int8 if kind == "int8" else torch.uint8))
        self.scales = nn.Buffer(torch.zeros(outputs, groups, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(outputs, dtype=dtype)) if bias else None
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """x Wᵀ + b."""
        product = _Product.apply(x, self)
        return product if self.bias is None else product + self.bias.to(product.dtype)

    @property
    def weight(self) -> Tensor:
        """(outputs, inputs), made anew at each call."""
        return self.rows(0, self.out_features).to(self.dtype)

    def full(self) -> nn.Module:
        """The layer in full precision, of the kind that stood here: the weights as they are meant, frozen."""
        layer: Any = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        weight = self.weight.detach()
        if self.transposed:
            from transformers.pytorch_utils import Conv1D

            layer, weight = Conv1D(self.out_features, self.in_features), weight.T.contiguous()
        layer.weight = nn.Parameter(weight, requires_grad=False)
        if self.bias is not None:
            layer.bias = self.bias
        return layer

    def store(self, weight: Tensor) -> None:
        """Take ``weight`` (outputs, inputs), rounded."""
        with torch.no_grad():
            for start, stop in self.chunks():
                self.packed[start:stop], self.scales[start:stop] = _quantize(weight[start:stop].float(), self.kind, self.group)

    def rows(self, start: int, stop: int) -> Tensor:
        """float32 (stop - start, inputs): a part of the weight."""
        return _dequantize(self.packed[start:stop], self.scales[start:stop], self.kind, self.group)[:, : self.in_features]

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Borders of parts that are small enough to be turned back at a time."""
        step = max(1, _CHUNK // self.in_features)
        return ((start, min(start + step, self.out_features)) for start in range(0, self.out_features, step))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, kind={self.kind}"


class _Product(torch.autograd.Function):
    """x Wᵀ and, backwards, g W; the weight is frozen, so nothing is saved but the layer itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return torch.cat([x @ layer.rows(start, stop).to(x.dtype).T for start, stop in layer.chunks()], dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), layer = gradients, ctx.layer
        parts = (gradient[..., start:stop] @ layer.rows(start, stop).to(gradient.dtype) for start, stop in layer.chunks())
        total = next(parts)
        for part in parts:
            total += part
        return total, None


def quantized(weight: Tensor, kind: str) -> Tensor:
    """Q(W): what is left of a weight (outputs, inputs) after it was stored as ``kind``."""
    layer = QuantizedLinear(weight.shape[1], weight.shape[0], kind, bias=False, dtype=weight.dtype)
    layer.store(weight)
    return layer.weight


def quantizable(module: nn.Module, keep: tuple[str, ...]) -> list[str]:
    """Names of the linear layers that may go into few bits: none at or below ``keep``, none whose weight two places share."""
    owners: dict[int, int] = {}
    for part in module.modules():
        for parameter in part._parameters.values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return [
        name
        for name, part in module.named_modules()
        if (type(part) is nn.Linear or is_transposed(part))
        and not any(name == kept or name.startswith(f"{kept}.") for kept in keep)
        and owners[id(part.weight)] == 1
    ]


def quantize(module: nn.Module, names: list[str], kind: str, *, fill: bool = True) -> None:
    """Store the named linear layers in few bits. ``fill`` False: only the layers' places, for weights that are read afterwards."""
    if kind not in KINDS:
        raise ModelError(f"adapt.base: got {kind!r}, expected one of full, {', '.join(KINDS)}. Use: adapt.base=nf4")
    known = dict(module.named_modules())
    for name in names:
        part: Any = known.get(name)
        if part is None or not (type(part) is nn.Linear or is_transposed(part)):
            raise ModelError(f"adapt.base: {name!r} is {type(part).__name__!r}, expected a linear layer. Load the weights that fit it")
        weight = part.weight.detach().T if is_transposed(part) else part.weight.detach()
        layer = QuantizedLinear(weight.shape[1], weight.shape[0], kind, bias=part.bias is not None, dtype=weight.dtype).to(weight.device)
        layer.transposed = is_transposed(part)
        if fill:
            layer.store(weight)
        if part.bias is not None:
            layer.bias = part.bias
        replace(module, name, layer.train(part.training))


def requantize(module: nn.Module, kind: str, before: Mapping[str, Tensor], *, limit: float = 0.5) -> dict[str, float]:
    """Put merged linear layers into few bits; returns the share of each one's change that is left, and of all under "total".

    ``before``: name → weight (outputs, inputs) before the merge, in full precision. Raises ModelError, and changes nothing, where
    less than ``limit`` of the whole change would be left.
    """
    known: dict[str, Any] = dict(module.named_modules())
    now = {name: known[name].weight.detach().T if is_transposed(known[name]) else known[name].weight.detach() for name in before}
    shares = shares_left(kind, ((name, weight, now[name]) for name, weight in before.items()), limit)
    quantize(module, list(before), kind)
    return shares


def shares_left(kind: str, changes: Iterable[tuple[str, Tensor, Tensor]], limit: float) -> dict[str, float]:
    """What of each (name, weight before, weight now) would be left in few bits, and of all under "total".

    Raises ModelError where the total is below ``limit``.
    """
    kept, whole, shares = 0.0, 0.0, {}
    for name, before, now in changes:
        change = (now - before).double()
        left = (quantized(now, kind) - quantized(before, kind)).double()
        product, size = float((change * left).sum()), float(change.square().sum())
        shares[name] = product / size if size else 1.0
        kept, whole = kept + product, whole + size
    shares["total"] = kept / whole if whole else 1.0
    if shares["total"] < limit:
        raise ModelError(
            f"base: after {kind!r} only {shares['total']:.0%} of what was learned would be left, expected at least {limit:.0%}. "
            "Keep the merged model in full precision, choose int8, or serve the adapter beside the quantised base"
        )
    return shares


def _quantize(weight: Tensor, kind: str, group: int) -> tuple[Tensor, Tensor]:
    """Integers and scales of some rows."""
    rows, inputs = weight.shape
    groups = -(-inputs // group)
    grouped = nn.functional.pad(weight, (0, groups * group - inputs)).reshape(rows, groups, group)
    largest = grouped.abs().amax(2)
    scales = largest / {"int8": 127, "int4": 7, "nf4": 1}[kind]
    scaled = grouped / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, :, None]
    if kind == "int8":
        return scaled.round().clamp(-127, 127).to(torch.int8).reshape(rows, inputs), scales
    if kind == "int4":
        codes = scaled.round().clamp(-7, 7) + 7
    else:
        book = torch.tensor(NF4, device=weight.device)
        codes = torch.bucketize(scaled, (book[1:] + book[:-1]) / 2)
    pairs = codes.to(torch.uint8).reshape(rows, -1, 2)
    return pairs[:, :, 0] << 4 | pairs[:, :, 1], scales


def _dequantize(packed: Tensor, scales: Tensor, kind: str, group: int) -> Tensor:
    """float32 (rows, inputs rounded up to whole groups)."""
    if kind == "int8":
        return packed.float() * scales
    codes = torch.stack([packed >> 4, packed & 15], dim=2).reshape(len(packed), -1, group)
    values = codes.float() - 7 if kind == "int4" else torch.tensor(NF4, device=packed.device)[codes.int()]
    return (values * scales[:, :, None]).reshape(len(packed), -1)
