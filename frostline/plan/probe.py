"""The probe: a few real rows through the real network, timed and weighed, so that the plan predicts from measurements.

What is measured is one batch before the frost line and one after it; the rest is arithmetic in :mod:`frostline.plan.cost`.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from frostline.adapt.wrapper import Wrapper
from frostline.data.encode import SplitSource
from frostline.data.loader import Batch, epoch_batches, spread
from frostline.device import wait
from frostline.kernels.large_blocks import bytes_needed, taken_bytes
from frostline.kernels.unpad import fill_multiple
from frostline.plan.execution import Execution
from frostline.plan.frost_line import preserved
from frostline.plan.machine import best_seconds, memory_limit, resident_bytes, usual_seconds

Loss = Callable[[Any, Tensor], tuple[Tensor, Tensor]]
"""(outputs, labels) → (sum, count)."""

_SECONDS = 1.5  # what timing one part of the network may take, about
_LONG = 0.2  # of a pass
_SHARE = 0.02  # of what a part takes in the whole run: what is timed again and again, after once
_PART = 0.05  # of the same: timing a batch of images
_EPOCHS, _ROWS = 8, 200_000  # whose batches are looked at, about: more meet few new numbers of rows
_MET = 4  # numbers of rows that a probe meets of those of the run: of a light, a middling and a heavy batch, and of one between


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Seconds and bytes of this network on this machine with these rows."""

    batch: int
    """Rows of a training batch, to which the figures per batch refer."""
    encode_row: float
    """Seconds to read and encode one row, in one thread."""
    prefix_row: float
    """Seconds of the frozen prefix for one row of many; 0 without a frost line."""
    prefix_alone: float = 0.0
    """The same for a row that goes through it alone, as when the store is proved."""
    step: float
    """Seconds of forward and backward for one batch, from the frost line on (of the whole network without one)."""
    forward: float
    """Seconds of the forward pass alone, of the same part."""
    saved_bytes: int
    """Activations that the heaviest batch keeps for the backward pass."""
    transient_bytes: int
    """What comes and goes beside them while the heaviest batch is computed; where it cannot be measured, or most tensors are too small
    to be counted, the largest output of one module, counted twice."""
    input_bytes: int
    """One encoded batch."""
    has_gradients: bool = False
    """Whether ``transient_bytes`` counts gradients too, which are made while activations go, and cleared after each batch."""
    compiled_bytes: int = 0
    """What oneDNN keeps of products for all numbers of rows that the run meets, beyond those that the probe has met."""

    def of_rows(self, rows: int) -> Probe:
        """Memory of so many rows of a batch at a time; its seconds stay. From piece to piece gradients stay."""
        sizes = {name: getattr(self, name) * rows // self.batch for name in ("saved_bytes", "transient_bytes", "input_bytes")}
        return replace(self, **sizes, has_gradients=self.has_gradients and rows == self.batch)


def probe(execution: Execution, loss: Loss, batch: int, steps: float = math.inf, accumulate: int = 1) -> Probe:
    """Measure the parts before and after the execution's frost line, or without one the whole; the module is left as it was found.

    ``steps``: batches of the whole run. Of a short one less is timed, since what a prediction costs is a part of it too.
    ``accumulate``: batches of which gradients are added up.
    """
    source, line = execution.sources["train"], execution.line
    module, clears = execution.model.module, accumulate == 1
    module.train()
    encode = functools.partial(source.encode, spread(source.rows, 3), 0)  # epoch 0: augmented, as in training
    few = encode()
    encode_row = usual_seconds(encode, budget=0.05) / len(few.rows)
    with preserved(module):
        for _ in range(2):  # what is built in a first pass is no part of the others; of slow images in fp32 that is nothing
            start = time.perf_counter()
            largest = _largest_output(execution, few)
            wait()
            row = (time.perf_counter() - start) / len(few.rows)
            if source.lengths is None and not execution.compiles_by_shape and row * len(few.rows) > _LONG:
                break
        afford = functools.partial(_affordable_rows, math.inf if source.lengths is not None else steps * batch)
        sample = _affordable_sample(execution, few, batch, row, lambda row: afford(row, encode_row))
        prefix_row, prefix_alone, prefix_bytes = 0.0, 0.0, 0
        if line is not None:
            if source.lengths is None:  # of texts the heaviest rows are asked, below
                sample = _first(sample, prefix_rows(source))
                prefix_bytes = _prefix_needs(execution, (_first(sample, 1), sample))
            prefix_row, prefix_alone, row = _through_the_prefix(execution, sample, batch, afford, _budget(source.rows * row))
        width, heaviest, heavy, bend, prefix_bend = 1.0, 1.0, _first(sample, 3), 1.0, 1.0  # what images keep, few tell
        if source.lengths is not None:
            positions = _positions(execution, source, batch)
            width = float(positions.sum()) / source.rows / _positions_of_row(execution, sample)
            heavy = heaviest_rows(execution, batch)
            heaviest = float(positions.max()) / batch / _positions_of_row(execution, heavy)
            largest = _largest_output(execution, replace(heavy, border=None))
        scale, heavy_scale = (batch / (len(one.labels) if line is not None else len(one.rows)) for one in (sample, heavy))
        saved, fixed = _saved_bytes(lambda: loss(execution.forward(heavy), heavy.labels)[0], module)
        saved = int(heavy_scale * heaviest * saved) + fixed
        pair, budget = (_first(sample, 3), sample), _budget(3 * steps * batch * row)
        step_of, needs = functools.partial(_step, execution, loss, clears), functools.partial(_step_needs, execution, loss, batch, clears)
        needed, has_gradients = (None, False) if source.lengths is not None else needs(pair)
        step = usual_seconds(lambda: step_of(sample), budget, warm=needed is not None)
        if source.lengths is not None:
            if len(sample.rows) == batch:  # else a whole batch takes too long, or more memory than there is
                bend, prefix_bend = _bend(execution, step_of, batch, positions, step, prefix_row * batch)
            seconds = (scale * width * step + batch * width * prefix_row) * positions.max() / positions.mean()
            whole = seconds <= _SECONDS and saved < memory_limit(few.labels.device) / 4
            pair = (heaviest_rows(execution, batch, 2), heaviest_rows(execution, batch, batch) if whole else heavy)
            if line is not None:
                prefix_bytes = _prefix_needs(execution, (heaviest_rows(execution, batch, 2), heaviest_rows(execution, batch, 3)))
            needed, has_gradients = needs(pair)
        needed = None if needed is None else max(needed, prefix_bytes)
        measured = needed is not None and 2 * needed > saved  # most tensors may be too small to be counted
        result = Probe(
            batch=batch,
            encode_row=encode_row,
            prefix_row=prefix_bend * width * prefix_row,
            prefix_alone=width * prefix_alone,
            step=bend * scale * width * step,
            forward=bend * scale * width * usual_seconds(lambda: _forward(execution, sample), budget / 3, warm=True),
            saved_bytes=saved,
            transient_bytes=max(0, (needed or 0) - saved) if measured else int(2 * batch * heaviest * largest),
            input_bytes=int(batch * sum(value.nbytes for value in few.inputs.values()) / len(few.rows)),
            has_gradients=has_gradients and measured,
            compiled_bytes=_compiled_bytes(execution, step_of, batch, steps),
        )
    module.zero_grad()
    return result


def _affordable_sample(execution: Execution, few: Batch, batch: int, row: float, afford: Callable[[float], int]) -> Batch:
    """As many rows as can be timed in a few seconds, at most a batch; of texts, those of a batch of middling length.

    ``row``: seconds for one of the ``few`` forward; ``afford``: how many can be timed, by the seconds of one.
    """
    source = execution.sources["train"]
    rows = spread(source.rows, batch)
    if source.lengths is not None:
        positions = _positions(execution, source, batch)
        rows = epoch_batches(source.rows, batch, 0, 0, source.lengths)[int(np.abs(positions - positions.mean()).argmin())]
        row *= float(positions.sum()) / source.rows / _positions_of_row(execution, few)
    return source.encode(rows[spread(len(rows), max(2, afford(row)))], None)


def _through_the_prefix(
    execution: Execution, sample: Batch, batch: int, afford: Callable[[float], int], budget: float
) -> tuple[float, float, float]:
    """Give a sample its border, and its rows again and again, up to a batch, as far as they can be timed. Seconds of a row before the
    frost line, and of one alone; and of one forward from it on."""
    borders, one = list[list[Tensor]](), _first(sample, 1)
    images = execution.sources["train"].lengths is None  # which went through it already
    before = usual_seconds(lambda: borders.append(execution.prefix(sample)), budget, warm=images) / len(sample.rows)
    alone = before if before > _LONG / 4 else usual_seconds(lambda: execution.prefix(one), budget=0.01)
    sample.border = tuple(borders[0])
    behind = best_seconds(lambda: _forward(execution, sample), budget=0.1, most=1) / len(sample.rows)
    rows = min(batch, max(len(sample.rows), afford(behind)))
    sample.border = tuple(_repeated(tensor, rows) for tensor in sample.border)
    sample.inputs = {name: _repeated(value, rows) for name, value in sample.inputs.items()}
    sample.labels = _repeated(sample.labels, rows)
    return before, alone, behind


def _affordable_rows(of_run: float, row: float, encode_row: float = 0.0) -> int:
    """How many rows can be timed, of the many ``of_run``; ``row``: seconds for one forward."""
    return int(min(_SECONDS, max(_LONG, _PART * of_run * 4 * row)) / (4 * row + encode_row + 1e-9))


def _budget(seconds: float) -> float:
    """For timing again and again what takes so long in the whole run."""
    return min(0.6, max(0.01, _SHARE * seconds))


def _heaviest(execution: Execution, batch: int) -> np.ndarray:
    """The rows of the epoch's heaviest batch, which may be the last, of few but long texts; all rows where they are not texts."""
    source = execution.sources["train"]
    if source.lengths is None:
        return np.arange(source.rows)
    return epoch_batches(source.rows, batch, 0, 0, source.lengths)[int(_positions(execution, source, batch).argmax())]


def heaviest_rows(execution: Execution, batch: int, count: int = 3) -> Batch:
    """So many rows, of texts those of the epoch's heaviest batch: what attention keeps grows with the square of a row's length."""
    rows = _heaviest(execution, batch)
    return _at_the_line(execution, rows[spread(len(rows), count)])


def _at_the_line(execution: Execution, rows: np.ndarray) -> Batch:
    """The batch of these rows, as a step takes it."""
    batch = execution.sources["train"].encode(rows, None)
    if execution.line is not None:
        batch.border = tuple(execution.prefix(batch))
    return batch


def _bend(
    execution: Execution, step_of: Callable[[Batch], object], batch: int, positions: np.ndarray, step: float, prefix: float = 0.0
) -> tuple[float, float]:
    """How many times as long an epoch takes as its batch of middling length would have it: its steps, and what is before a frost line.

    A batch of long rows takes more than in proportion, for attention and where its numbers no longer fit in a cache, and so does a
    light one, for its calls. Beside the middling one, of ``step`` and ``prefix`` seconds, the lightest, the heaviest and one between
    are timed, as far as they are affordable, and the seconds of the others lie on straight lines between these.
    """
    source = execution.sources["train"]
    assert source.lengths is not None, "only texts have lengths"
    rows = epoch_batches(source.rows, batch, 0, 0, source.lengths)
    middle, most = float(positions.mean()), float(positions.max())
    usual = float(positions[np.abs(positions - middle).argmin()])
    known, before = {usual: step}, {usual: prefix}
    for wanted in (float(positions.min()), (middle * most) ** 0.5, most):
        index = int(np.abs(positions - wanted).argmin())
        size = float(positions[index])
        if size in known or (max(known.values()) + max(before.values())) * size / max(known) > _SECONDS:
            continue
        start = time.perf_counter()
        chosen = _at_the_line(execution, rows[index])
        wait()
        before[size] = time.perf_counter() - start
        known[size] = usual_seconds(functools.partial(step_of, chosen), budget=0.04, once=2 * _SECONDS)

    def in_all(timed: dict[float, float]) -> float:
        sizes = sorted(timed)
        each = np.interp(positions, sizes, [timed[size] for size in sizes]) * np.maximum(1, positions / sizes[-1])
        return float(each.sum() / (positions.sum() * timed[usual] / usual))

    return in_all(known), in_all(before) if prefix else 1.0


def prefix_rows(source: SplitSource) -> int:
    """Rows that go through the frozen prefix at a time, while its store is filled."""
    return 16 if source.lengths is None else 32


def _first(batch: Batch, rows: int) -> Batch:
    """In storages of their own: what is kept of them is counted."""
    border = None if batch.border is None else tuple(tensor[:rows].clone() for tensor in batch.border)
    inputs = {name: value[:rows].clone() for name, value in batch.inputs.items()}
    return replace(batch, inputs=inputs, labels=batch.labels[:rows].clone(), rows=batch.rows[:rows], border=border)


def _repeated(tensor: Tensor, rows: int) -> Tensor:
    return tensor[torch.arange(rows, device=tensor.device) % tensor.shape[0]]


def forward_and_backward(execution: Execution, loss: Loss, batch: Batch) -> None:
    """Add a batch's gradients to those that are there."""
    execution.backward(loss(execution.forward(batch), batch.labels)[0])


def _step(execution: Execution, loss: Loss, clears: bool, batch: Batch) -> None:
    forward_and_backward(execution, loss, batch)
    if clears:
        execution.model.module.zero_grad()


def _forward(execution: Execution, batch: Batch) -> None:
    with torch.no_grad():
        execution.forward(batch)


def _positions(execution: Execution, source: SplitSource, batch: int, epoch: int = 0) -> np.ndarray:
    """What is computed of each batch of an epoch, in tokens; what stands on either side of a frost line is measured padded.

    Texts of like length meet, so padding is less than up to the longest.
    """
    assert source.lengths is not None, "only texts have lengths"
    return np.array([_computed(execution, rows) for rows in epoch_batches(source.rows, batch, 0, epoch, source.lengths)])


def _computed(execution: Execution, rows: np.ndarray) -> int:
    """The same of these rows."""
    lengths = execution.sources["train"].lengths
    assert lengths is not None, "only texts have lengths"
    return int(lengths[rows].sum()) if _packed(execution) else len(rows) * int(lengths[rows].max())


def _positions_of_row(execution: Execution, batch: Batch) -> float:
    """The same in a row of this batch."""
    mask = batch.inputs["attention_mask"]
    if _packed(execution):
        return float(mask.sum()) / len(batch.rows)
    tokens = mask.shape[1] + batch.inputs.get("decoder_attention_mask", mask[:, :0]).shape[1]  # as a row's length counts them
    return execution.task.sequences * tokens


def _packed(execution: Execution) -> bool:
    return execution.pack and execution.line is None


def _compiled_bytes(execution: Execution, step_of: Callable[[Batch], object], batch: int, steps: float) -> int:
    """What oneDNN keeps of its products for all numbers of rows in the run's batches of texts: of what two numbers took that it had not
    met, as much for each."""
    source = execution.sources["train"]
    if source.lengths is None or not execution.compiles_by_shape:
        return 0
    epochs = range(math.ceil(min(_EPOCHS, steps * batch / source.rows, 1 + _ROWS / source.rows)))
    sizes = {_filled(execution, size) for epoch in epochs for size in _positions(execution, source, batch, epoch).tolist()}
    fresh: dict[int, np.ndarray] = {}
    few = (spread(source.rows, count) for count in range(4, batch + 1))
    for rows in itertools.chain(few, epoch_batches(source.rows, batch, 0, 1, source.lengths)):
        fresh.setdefault(_filled(execution, _computed(execution, rows)), rows)
        if len(fresh) == 3:
            break
    taken = []
    for rows in fresh.values():
        step_of(_at_the_line(execution, rows))
        taken.append(resident_bytes() - taken_bytes())
    each = (taken[-1] - taken[0]) / max(1, len(taken) - 1)
    return int(max(0, len(sizes) - _MET) * max(0.0, each))


def _filled(execution: Execution, tokens: int) -> int:
    """What so many tokens are filled up to."""
    return tokens + (-tokens % fill_multiple(tokens) if _packed(execution) else 0)


def _saved_bytes(forward: Callable[[], Tensor], module: nn.Module) -> tuple[int, int]:
    """Bytes of the distinct storages that autograd keeps, parameters left out: those that grow with the rows, and casts of weights."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    shapes = {shape for p in module.parameters() for shape in (tuple(p.shape), tuple(reversed(p.shape)))}
    kept: dict[int, int] = {}
    casts: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            group = casts if tuple(tensor.shape) in shapes and tensor.dtype != torch.float32 else kept
            group[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself would hold the function that keeps it, and the two, and the weights, would never go

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(kept.values()), sum(casts.values())


def _step_needs(execution: Execution, loss: Loss, batch: int, clears: bool, pair: tuple[Batch, Batch]) -> tuple[int | None, bool]:
    """Most bytes that live at once in a step on the heaviest batch, by the steps on few and more of its rows. And whether gradients are
    counted, as where they are cleared after each batch and the whole batch was run: of fewer rows, they would hide what the others add."""
    source = execution.sources["train"]
    texts = source.lengths is not None  # whose labels need not be one for each row; of images behind a line only they are repeated
    counts, whole = [len(one.rows if texts else one.labels) for one in pair], min(batch, len(_heaviest(execution, batch)))
    clears = clears and counts[1] >= whole
    return _bytes_needed(functools.partial(_step, execution, loss, clears), pair, counts, whole), clears


def _prefix_needs(execution: Execution, pair: tuple[Batch, Batch]) -> int:
    """The same while the rows of a store go through the frozen prefix, as some did before; 0 where it cannot be measured."""
    rows = prefix_rows(execution.sources["train"])
    return _bytes_needed(execution.prefix, pair, [len(one.rows) for one in pair], rows, warm=True) or 0


def _bytes_needed(
    work: Callable[[Batch], object], pair: Sequence[Batch], counts: Sequence[int], rows: int, warm: bool = False
) -> int | None:
    """Most bytes that live at once in the work on so many rows, on a straight line through the work on a pair of batches of fewer: a part
    is there for any number. None where it cannot be measured; small tensors are not counted."""
    if not warm:  # what is made once, as gradients and packed weights, is there from then on
        work(pair[0])
    few, more = (bytes_needed(functools.partial(work, batch), batch.labels.device) for batch in pair)
    if few is None or more is None:
        return None
    each = (more - few) / (counts[1] - counts[0]) if counts[1] > counts[0] else more / counts[1]
    return int(more + (rows - counts[1]) * max(0.0, each))


def _largest_output(execution: Execution, batch: Batch) -> float:
    """Bytes of one row in the largest output of one module."""
    module, largest = execution.model.module, 0

    def leave(child: nn.Module, args: object, output: object) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.nbytes)

    wrapped = {id(inner) for part in module.modules() if isinstance(part, Wrapper) for inner in part.modules() if inner is not part}
    parts = [part for part in module.modules() if id(part) not in wrapped and (isinstance(part, Wrapper) or not list(part.children()))]
    handles = [part.register_forward_hook(leave) for part in parts]  # a wrapped layer with a hook would be called by itself
    try:
        with torch.no_grad():
            execution.forward(batch)
    finally:
        for handle in handles:
            handle.remove()
    return largest / len(batch.rows)
