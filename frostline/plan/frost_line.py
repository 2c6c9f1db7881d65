"""Finding the frost line of any module, by asking autograd.

An output that does not require a gradient although gradients are on depends on nothing that learns. So one forward pass
tells, for every call of a submodule, whether it lies before the line; a second pass under another seed tells whether
chance (dropout, noise) plays a part. The outermost such calls are the frozen **prefix**.

Which of their outputs does the learning part read? Each is replaced by a leaf that requires a gradient, the forward pass
is run on these, and the leaves that a gradient reaches are the **border**: the only tensors that must be stored. In a run
from the store the border calls give what was stored and the other prefix calls give empty tensors of the right shape, so
that the model's own code runs unchanged after the line, whatever model it is. The store's pass proves the result: with
the empty tensors full of NaN, the logits must equal the plain ones.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from frostline.models.model import logits_of, with_own
from frostline.plan.recorded_calls import Call, Inputs, Recorded, observe, outermost_frozen, rebuilt, same


@dataclass(frozen=True, kw_only=True)
class BorderTensor:
    """One tensor that has to be stored: the ``position``-th tensor of what a prefix call returns."""

    call: Call
    position: int
    per_token: bool
    """Whether its second dimension is the text's length, so that rows are stored without padding."""
    shape: tuple[int, ...]
    """Of one row; for ``per_token``, of one token."""
    dtype: torch.dtype

    @property
    def bytes_per_unit(self) -> int:
        """Bytes of one row (or of one token)."""
        size = self.dtype.itemsize
        for side in self.shape:
            size *= side
        return size


@dataclass(kw_only=True)
class FrostLine:
    """Where what is frozen ends: prefix calls in their order, and the border tensors between them and what learns."""

    prefix: list[Call]
    border: list[BorderTensor]
    outputs: dict[Call, Recorded] = field(default_factory=dict, repr=False)
    """The structure that each prefix call returns, with its tensors' shapes."""
    deviation: float = math.nan
    """Largest difference between the plain logits and those from the border on, relative to the largest plain logit; NaN where the
    part after the line reads more than the border."""

    @property
    def names(self) -> list[str]:
        """Names of the modules before the line."""
        return list(dict.fromkeys(call.name for call in self.prefix))

    def touches(self, part: str) -> bool:
        """Whether a module, of which "" is the network, stands before the line or has a part that does."""
        return any(not part or part == name or name.startswith(f"{part}.") or part.startswith(f"{name}.") for name in self.names)


def find_frost_line(module: nn.Module, inputs: Inputs) -> FrostLine | None:
    """The frost line of ``module`` as it stands (its ``requires_grad`` flags and its modes), or None where there is none.

    ``inputs``: keyword arguments of a real batch, at least 2 rows, of texts some with padding. The module's buffers and the random
    state are left as they were.
    """
    with preserved(module):
        calls, logits = observe(module, inputs, seed=1)
        if not logits.requires_grad or not any(_computes(module, call) for call, seen in calls.items() if seen.frozen):
            return None
        again, plain = observe(module, inputs, seed=2)
        outermost = outermost_frozen(calls)
        if not all(same(calls[call], again.get(call)) for call in outermost):  # but parts of those that differ may be the same
            calls, _ = observe(module, inputs, seed=1, whole=True)
            again, plain = observe(module, inputs, seed=2, whole=True)
            outermost = outermost_frozen({call: seen for call, seen in calls.items() if seen.frozen and same(seen, again.get(call))})
        line = _settle(module, inputs, {call: calls[call] for call in outermost if calls[call].tensors})
    if line is not None:
        line.deviation = _deviation(module, line, inputs, plain, again, seed=2)
    return line


def _computes(module: nn.Module, call: Call) -> bool:
    """Whether a call multiplies with weights; looking up embeddings costs no more than reading what was stored."""
    if not call.name:
        return False
    parts = module.get_submodule(call.name).modules()
    return any(p.dim() > 1 for part in parts if not isinstance(part, nn.Embedding) for p in part.parameters(recurse=False))


def _settle(module: nn.Module, inputs: Inputs, prefix: dict[Call, Recorded]) -> FrostLine | None:
    """Drop calls whose border is not a matter of rows (rotary tables, say: they are cheap), and those whose outputs change otherwise than
    by rows and tokens (positions that are looked up once for all rows), until the rest is consistent."""
    rows = next(iter(inputs.values())).shape[0]
    while prefix:
        used = _used(module, inputs, prefix)
        by_rows = _of_rows(module, inputs, {(call, position): prefix[call].tensors[position] for call, position in used}, rows)
        whole = {call for call, position in used if not by_rows[call, position]} or _mark_token_dimensions(module, inputs, prefix)
        if not whole:
            break
        prefix = {call: seen for call, seen in prefix.items() if call not in whole}
    if not prefix or not used:
        return None
    border = []
    for call, position in used:
        tensor, per_token = prefix[call].tensors[position], prefix[call].per_token[position]
        shape = tuple(tensor.shape[2 if per_token else 1 :])
        border.append(BorderTensor(call=call, position=position, per_token=per_token, shape=shape, dtype=tensor.dtype))
    for seen in prefix.values():
        seen.keep_shapes()
    return FrostLine(prefix=list(prefix), border=border, outputs=prefix)


def _of_rows(module: nn.Module, inputs: Inputs, tensors: Mapping[tuple[Call, int], Tensor], rows: int) -> dict[tuple[Call, int], bool]:
    """Whether the first dimension of each is the batch's rows. Where another has as many, which an LSTM's last state may, it must grow
    with them."""
    found = {key: tensor.dim() > 0 and tensor.shape[0] == rows for key, tensor in tensors.items()}
    unclear = [key for key, tensor in tensors.items() if found[key] and rows in tensor.shape[1:]]
    if unclear:
        one_more = {name: value[[*range(rows), 0]] for name, value in inputs.items()}
        calls, _ = observe(module, one_more, seed=1)
        found |= {(call, position): calls[call].tensors[position].shape[0] == rows + 1 for call, position in unclear}
    return found


def _used(module: nn.Module, inputs: Inputs, prefix: Mapping[Call, Recorded]) -> list[tuple[Call, int]]:
    """The prefix outputs that the rest of the forward pass reads: those that a gradient reaches, and all that have none."""
    leaves: dict[tuple[Call, int], Tensor] = {}

    def give(call: Call) -> Any:
        seen = prefix[call]
        tensors = []
        for position, tensor in enumerate(seen.tensors):
            if tensor.is_floating_point():
                leaf = tensor.detach().clone().requires_grad_()
                leaves[call, position] = leaf
                tensor = leaf * 1.0  # not a leaf, so that the model may change it in place
            tensors.append(tensor)
        return rebuilt(seen, tensors)

    with replaced(module, prefix, give), torch.enable_grad():
        logits = logits_of(module(**inputs))
    keys = list(leaves)
    gradients = torch.autograd.grad(logits.float().sum(), [leaves[key] for key in keys], allow_unused=True)
    reached = {key for key, gradient in zip(keys, gradients, strict=True) if gradient is not None}
    return [
        (call, position)
        for call, seen in prefix.items()
        for position, tensor in enumerate(seen.tensors)
        if (call, position) in reached or not tensor.is_floating_point()
    ]


def _mark_token_dimensions(module: nn.Module, inputs: Inputs, prefix: Mapping[Call, Recorded]) -> set[Call]:
    """Fill ``per_token``: whether an output gets one shorter in dimension 1 when the text does. Those that change otherwise."""
    for seen in prefix.values():
        seen.per_token = [False] * len(seen.tensors)
    if "attention_mask" not in inputs:
        return set()
    width, otherwise = inputs["attention_mask"].shape[1], set()
    shorter = {name: value[:, :-1] if value.dim() > 1 and value.shape[1] == width else value for name, value in inputs.items()}
    calls, _ = observe(module, shorter, seed=1)
    for call, seen in prefix.items():
        for position, (long, short) in enumerate(zip(seen.tensors, calls[call].tensors, strict=True)):
            differing = [d for d in range(long.dim()) if long.shape[d] != short.shape[d]]
            if differing not in ([], [1]) or (differing == [1] and long.shape[1] != width):
                otherwise.add(call)
            seen.per_token[position] = differing == [1]
    return otherwise


@contextlib.contextmanager
def replaced(module: nn.Module, prefix: Mapping[Call, Any], give: Callable[[Call], Any]) -> Iterator[None]:
    """Within, the calls in ``prefix`` return ``give(call)`` and compute nothing; other calls run as ever."""
    wanted: dict[str, set[int]] = {}
    for call in prefix:
        wanted.setdefault(call.name, set()).add(call.index)
    counts = dict.fromkeys(wanted, 0)

    def forward(name: str, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        index = counts[name]
        counts[name] = index + 1
        return give(Call(name=name, index=index)) if index in wanted[name] else plain(*args, **kwargs)

    with contextlib.ExitStack() as stack:
        for name in wanted:
            child = module.get_submodule(name)
            stack.enter_context(with_own(child, "forward", functools.partial(forward, name, child.forward)))
        yield


def capture(module: nn.Module, line: FrostLine, inputs: Inputs) -> list[Tensor]:
    """Run the frozen prefix on a batch and return its border tensors, in the order of ``line.border``."""
    wanted = {(border.call.name, border.call.index) for border in line.border}
    found: dict[tuple[str, int], list[Tensor]] = {}
    counts: dict[str, int] = {}

    def leave(name: str, child: nn.Module, args: Any, output: Any) -> None:
        key = (name, counts.get(name, 0))
        counts[name] = key[1] + 1
        if key in wanted:
            found[key] = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
            if len(found) == len(wanted):
                raise _Enough

    names = {name for name, _ in wanted}
    handles = [module.get_submodule(name).register_forward_hook(functools.partial(leave, name)) for name in names]
    try:
        with torch.no_grad(), contextlib.suppress(_Enough):
            module(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [found[border.call.name, border.call.index][border.position] for border in line.border]


class _Enough(Exception):
    """The border is complete; the rest of the forward pass is not needed."""


def resume_from_border(module: nn.Module, line: FrostLine, inputs: Inputs, border: tuple[Tensor, ...], fill: float = 0.0) -> Tensor:
    """The logits of ``module``, computed from the border on. ``fill``: what stands in tensors that nothing may read."""
    rows = border[0].shape[0]
    width = inputs["attention_mask"].shape[1] if "attention_mask" in inputs else None
    stored = {(item.call, item.position): tensor for item, tensor in zip(line.border, border, strict=True)}

    def give(call: Call) -> Any:
        seen = line.outputs[call]
        tensors = []
        for position, example in enumerate(seen.tensors):
            tensor = stored.get((call, position))
            if tensor is None:
                shape = [rows, width if seen.per_token[position] else example.shape[1], *example.shape[2:]] if example.dim() > 1 else [rows]
                tensor = empty(shape, example.dtype, border[0].device, fill)
            tensors.append(tensor)
        return rebuilt(seen, tensors)

    with replaced(module, line.outputs, give):
        return logits_of(module(**inputs))


def empty(shape: Any, dtype: torch.dtype, device: torch.device, fill: float = 0.0) -> Tensor:
    """A tensor of the given shape that takes no memory: one number, expanded. ``fill`` counts for floating types only."""
    number = torch.full((1,) * len(shape), fill if dtype.is_floating_point else 0, dtype=dtype, device=device)
    return number.expand(tuple(shape))


def without_pixels(inputs: Inputs, fill: float = 0.0) -> Inputs:
    """The inputs with every floating tensor (pixels) replaced by an empty one; token ids and masks stay."""
    return {
        name: empty(value.shape, value.dtype, value.device, fill) if value.is_floating_point() else value for name, value in inputs.items()
    }


def _deviation(module: nn.Module, line: FrostLine, inputs: Inputs, plain: Tensor, calls: Mapping[Call, Recorded], seed: int) -> float:
    """As :attr:`FrostLine.deviation`, by the logits and the calls of a plain pass under ``seed``.

    Everything that must not be read (pixels, prefix outputs that are no border) is NaN, so that a line that was found
    wrongly gives NaN here, never a wrong number later. What a border has where a text is padded is zero, as from the store.
    """
    border = [calls[item.call].tensors[item.position].detach() for item in line.border]
    if any(calls[item.call].versions[item.position] != tensor._version for item, tensor in zip(line.border, border, strict=True)):
        border = capture(module, line, inputs)  # before what follows changes it in place
    read = tuple(_unpadded(item, tensor, inputs) for item, tensor in zip(line.border, border, strict=True))
    with preserved(module), torch.enable_grad():  # as the plain pass, whose kernels may be others without
        torch.manual_seed(seed)
        short = resume_from_border(module, line, without_pixels(inputs, float("nan")), read, fill=float("nan")).detach()
    plain = plain.detach()
    mask = inputs.get("attention_mask")
    if mask is not None and plain.dim() == 3 and plain.shape[:2] == mask.shape:  # what stands at padding is read by no loss
        plain, short = plain[mask.bool()], short[mask.bool()]
    return float((plain - short).abs().max() / plain.abs().max().clamp_min(1e-12))


def _unpadded(item: BorderTensor, tensor: Tensor, inputs: Inputs) -> Tensor:
    if not item.per_token:
        return tensor
    padding = (inputs["attention_mask"] == 0).reshape(*tensor.shape[:2], *[1] * (tensor.dim() - 2))
    return tensor.masked_fill(padding, 0)


@contextlib.contextmanager
def preserved(module: nn.Module) -> Iterator[None]:
    """Put back buffers (a learning BatchNorm's statistics), made anew or written to, and torch's random state afterwards."""
    state = torch.get_rng_state()
    places = [(part, name, buffer) for part in module.modules() for name, buffer in part._buffers.items() if isinstance(buffer, Tensor)]
    copies = [buffer.clone() for *_, buffer in places]
    try:
        yield
    finally:
        torch.set_rng_state(state)
        with torch.no_grad():
            for (part, name, buffer), copy in zip(places, copies, strict=True):
                part._buffers[name] = buffer
                if not torch.equal(buffer, copy):  # an expanded one cannot be written to, nor does anybody
                    buffer.copy_(copy)
