"""Cross-entropy of a linear layer's logits, in chunks of rows: no (rows × vocabulary) tensor is ever made (law 6).

For a hidden state h with label y, logits z = W h + b (after ``softcap`` c: z = c tanh(z / c), as in Gemma 2) and

    nll = log Σ_j exp(z_j) - z_y        ∂nll/∂z = softmax(z) - onehot(y)        ∂nll/∂h = Wᵀ ∂nll/∂z

The logits of a few rows live in one buffer that every chunk uses again. The caller may use any function of the per-token
``nll``: the gradient that comes back is a number per token, and there are two ways to it:

- W and b are frozen, as in most fine-tuning: ∂nll/∂h is made at once, in the forward pass, where the logits are at hand
  (rows × width, as large as h). The backward pass only scales its rows. Two matrix products in all, not three.
- W or b learns (from zero, or tied to a learning embedding): their gradient sums over tokens, so it needs each token's factor
  first. Only log Σ exp is kept, and the backward pass makes each chunk's logits again.

Products run in the operands' dtype, exponentials and sums in float32 at least. Sources: the chunked losses of Liger Kernel
(Hsu et al., 2024) and Cut Cross-Entropy (Wijmans et al., 2024), here on a processor, with a per-token gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from frostline.kernels import cross_entropy_rows
from frostline.kernels.frozen_product import FrozenProduct
from frostline.kernels.precision import cast, no_autocast, wide

CHUNK_BYTES = 64 << 20
"""Of logits at a time: at a vocabulary of 49 152 that is 341 rows, where the products reach over 90 % of their best rate."""


@dataclass(frozen=True, kw_only=True)
class TokenLoss:
    """Of each row, in the rows' order."""

    nll: Tensor
    """Negative log-likelihood of the label (rows,), float32 (float64 for float64), differentiable."""
    correct: Tensor
    """Whether the largest logit is the label's (rows,), bool; of equal ones the first counts, as in ``argmax``."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor | FrozenProduct,
    bias: Tensor | None,
    labels: Tensor,
    *,
    chunk_bytes: int = CHUNK_BYTES,
    softcap: float | None = None,
) -> TokenLoss:
    """``F.cross_entropy(hidden @ weight.T + bias, labels, reduction="none")`` of labelled rows, and whether each is right.

    ``hidden`` (rows, width), ``weight`` (vocabulary, width), ``bias`` (vocabulary,), ``labels`` int64 (rows,). ``weight`` may be
    what multiplies with it, where it is frozen.
    """
    assert hidden.dim() == 2 and labels.shape == hidden.shape[:1], f"hidden {tuple(hidden.shape)} and labels {tuple(labels.shape)}"
    (plain, product) = (weight, None) if isinstance(weight, Tensor) else (None, weight)
    outputs = weight.shape[0] if isinstance(weight, Tensor) else weight.outputs
    if len(labels):
        low, high = (int(bound) for bound in torch.aminmax(labels))
        assert low >= 0 and high < outputs, f"labels from {low} to {high} for {outputs} outputs: pass the labelled rows only"
    rows = _rows_per_chunk(len(hidden), chunk_bytes // (outputs * wide(hidden.dtype).itemsize))
    options = _Options(rows=rows, outputs=outputs, product=product, softcap=softcap, graph=torch.is_grad_enabled())
    nll, correct = _LinearCrossEntropy.apply(*cast(hidden, plain, bias), labels, options)
    return TokenLoss(nll=nll, correct=correct)


@dataclass(frozen=True, kw_only=True)
class _Options:
    rows: int
    outputs: int
    product: FrozenProduct | None
    softcap: float | None
    graph: bool
    """Whether a graph is recorded; inside a Function that can no longer be asked."""


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    part: slice
    logits: Tensor | None
    """In float32 at least; may be written to. None where C++ takes them as they are in ``product``."""
    slope: Tensor | None
    """What the softcap multiplies gradients with."""
    product: Tensor
    """The logits as they were multiplied, and the buffer for the operand of the next matrix product."""


class _LinearCrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor | None, bias: Tensor | None, labels: Tensor, options: _Options) -> Any:
        needs_hidden, *needs_layer = ctx.needs_input_grad[:3]
        learns = options.graph and any(needs_layer)
        nll = hidden.new_empty(len(hidden), dtype=wide(hidden.dtype))
        correct = torch.empty_like(nll, dtype=torch.bool)
        log_sums = torch.empty_like(nll) if learns else None
        slopes = torch.empty_like(hidden) if options.graph and needs_hidden and not learns else None
        with no_autocast(hidden):
            for chunk in _chunks(hidden, weight, bias, options):
                part, z = chunk.part, chunk.logits
                if z is None:
                    sums = None if log_sums is None else log_sums[part]
                    cross_entropy_rows.losses(chunk.product, labels[part], nll[part], correct[part], sums, slopes=slopes is not None)
                    if slopes is not None:
                        _multiply_back(chunk.product, weight, options, slopes[part])
                    continue
                label = labels[part, None]
                own = z.gather(1, label)
                largest, correct[part] = _largest(z, own, label)
                total = z.sub_(largest).exp_().sum(1, keepdim=True)
                log_sum = total.log().add_(largest)
                nll[part] = (log_sum - own).squeeze(1)
                if log_sums is not None:
                    log_sums[part] = log_sum.squeeze(1)
                if slopes is not None:
                    _multiply_back(_to_logits(chunk, z.div_(total), label, None), weight, options, slopes[part])
        ctx.options, ctx.learns = options, learns
        ctx.mark_non_differentiable(correct)
        ctx.save_for_backward(*((hidden, weight, bias, labels, log_sums) if learns else (slopes,)))
        return nll, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> Any:
        if not ctx.learns:
            (slopes,) = ctx.saved_tensors
            return (slopes * grad[:, None]).to(slopes.dtype), None, None, None, None
        hidden, weight, bias, labels, log_sums = ctx.saved_tensors
        of_hidden, of_weight, of_bias = (
            torch.zeros_like(tensor, dtype=dtype) if needed else None
            for tensor, needed, dtype in zip((hidden, weight, bias), ctx.needs_input_grad, (None, grad.dtype, grad.dtype))
        )
        with no_autocast(hidden):
            for chunk in _chunks(hidden, weight, bias, ctx.options):
                part, z = chunk.part, chunk.logits
                if z is None:
                    slope = chunk.product
                    cross_entropy_rows.slopes(slope, labels[part], log_sums[part], grad[part])
                else:
                    slope = _to_logits(chunk, z.sub_(log_sums[part, None]).exp_(), labels[part, None], grad[part, None])
                if of_hidden is not None:
                    _multiply_back(slope, weight, ctx.options, of_hidden[part])
                if of_weight is not None:
                    _add_product(of_weight, slope, hidden[part])
                if of_bias is not None:
                    of_bias += slope.sum(0, dtype=grad.dtype)
        return of_hidden, _like(of_weight, weight), _like(of_bias, bias), None, None


def _rows_per_chunk(rows: int, most: int) -> int:
    """As many rows for each chunk as for the others: a short last one would read the whole weight for little.

    >>> _rows_per_chunk(600, 170), _rows_per_chunk(600, 1000), _rows_per_chunk(600, 0)
    (150, 600, 1)
    """
    chunks = -(-rows // max(1, most))
    return max(1, -(-rows // max(1, chunks)))


def _multiply_back(slope: Tensor, weight: Tensor | None, options: _Options, out: Tensor) -> None:
    """The hidden states' gradient from the logits'."""
    if options.product is not None:
        out.copy_(options.product.gradient(slope))
    else:
        assert weight is not None, "a weight or its product"
        torch.mm(slope, weight, out=out)


def _chunks(hidden: Tensor, weight: Tensor | None, bias: Tensor | None, options: _Options) -> Iterator[_Chunk]:
    product = hidden.new_empty(options.rows if options.product is None else 0, options.outputs)
    raw = options.softcap is None and cross_entropy_rows.takes(hidden)
    same = hidden.dtype == wide(hidden.dtype)
    logits = product if same else hidden.new_empty(0 if raw else options.rows, options.outputs, dtype=wide(hidden.dtype))
    squashed = None if options.softcap is None else hidden.new_empty(options.rows, options.outputs, dtype=wide(hidden.dtype))
    for start in range(0, len(hidden), options.rows):
        part = slice(start, min(start + options.rows, len(hidden)))
        count = part.stop - start
        into, z = _logits(hidden[part], weight, bias, options, product[:count]), logits[:count]
        if raw:
            yield _Chunk(part=part, logits=None, slope=None, product=into.contiguous())
            continue
        if into.dtype == z.dtype:
            z = into
        else:
            z.copy_(into)
        slope = None
        if squashed is not None and options.softcap is not None:
            slope = squashed[:count].copy_(z.div_(options.softcap).tanh_())
            slope.square_().neg_().add_(1)
            z.mul_(options.softcap)
        yield _Chunk(part=part, logits=z, slope=slope, product=into)


def _logits(hidden: Tensor, weight: Tensor | None, bias: Tensor | None, options: _Options, out: Tensor) -> Tensor:
    if options.product is not None:
        return options.product.forward(hidden, bias)
    assert weight is not None, "a weight or its product"
    return torch.mm(hidden, weight.t(), out=out) if bias is None else torch.addmm(bias, hidden, weight.t(), out=out)


def _largest(logits: Tensor, own: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit of each row (rows, 1), and whether it is the label's.

    ``argmax`` reads a row ten times slower than ``amax``, so it is asked only where the label's logit has an equal.
    """
    logits.scatter_(1, label, -torch.inf)
    others = logits.amax(1, keepdim=True)
    logits.scatter_(1, label, own)
    correct = (own > others).squeeze(1)
    tied = (own == others).squeeze(1).nonzero().squeeze(1)
    if len(tied):
        correct[tied] = logits[tied].argmax(1) == label[tied, 0]
    return torch.maximum(own, others), correct


def _to_logits(chunk: _Chunk, probabilities: Tensor, label: Tensor, factor: Tensor | None) -> Tensor:
    """Each row's gradient with respect to the raw logits, in the dtype of the products; overwrites the probabilities."""
    slope = probabilities.scatter_add_(1, label, probabilities.new_full((1, 1), -1).expand_as(label))
    if factor is not None:
        slope.mul_(factor)
    if chunk.slope is not None:
        slope.mul_(chunk.slope)
    return chunk.product.copy_(slope)


def _add_product(total: Tensor, slope: Tensor, hidden: Tensor) -> None:
    if total.dtype == slope.dtype:
        total.addmm_(slope.t(), hidden)
    else:
        total.add_(slope.t() @ hidden)  # a sum of many chunks in bfloat16 would lose the small ones


def _like(gradient: Tensor | None, tensor: Tensor | None) -> Tensor | None:
    return None if gradient is None or tensor is None else gradient.to(tensor.dtype)
