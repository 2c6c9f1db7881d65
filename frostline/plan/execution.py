"""A plan made runnable: where batches come from, and how a batch becomes logits.

The training loop, the evaluation and the learning-rate finder all call :meth:`Execution.forward`; whether the frozen
prefix is run or read from its store is decided batch by batch, here and nowhere else.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frostline.data.encode import SplitSource
from frostline.data.loader import Batch, Encode
from frostline.data.randomness import generator
from frostline.device import CPU, bring, device_of, moved
from frostline.kernels.attention import with_wide_gradients
from frostline.kernels.batch_attention import attending_in_sequences
from frostline.kernels.caches import without_caches
from frostline.kernels.compiled_blocks import Functions, compiling
from frostline.kernels.first_token import FirstToken, reading_first
from frostline.kernels.frozen_convolution import convolving
from frostline.kernels.frozen_linear import multiplying
from frostline.kernels.frozen_product import FrozenProduct
from frostline.kernels.fused_blocks import FusedBlocks, computing
from frostline.kernels.hosted_weights import hosting
from frostline.kernels.int8_chain import chained
from frostline.kernels.lora_linear import fused
from frostline.kernels.lora_siblings import sharing
from frostline.kernels.onednn_linear import multiplying_by_convolution
from frostline.kernels.outputs import outputs_of, passing_through
from frostline.kernels.recompute import recomputing
from frostline.kernels.unpad import unpadded
from frostline.models.model import Model, logits_of
from frostline.plan.frost_line import FrostLine, capture, empty, find_frost_line, resume_from_border
from frostline.plan.store import PrefixStore, StoreDamaged
from frostline.tasks.task import Task

TOLERANCE = {"fp32": 1e-4, "tf32": 1e-2, "int8": 2e-2, "bf16": 5e-2, "fp8": 6e-2}
"""Largest relative difference between stored and recomputed values, by precision: batches of other sizes round differently. tf32: what a
GPU may take for fp32, with factors of 10 bits. fp8 is three times as coarse as int8."""


_ONE_THREAD = threading.RLock()


def stored_at(rows: Tensor, source: SplitSource, epoch: int | None) -> Tensor:
    """Where a store holds these rows: one view of all rows behind the other."""
    return rows + (epoch or 0) % (source.views or 1) * source.rows


@dataclass(kw_only=True)
class Reference:
    """What the frozen reference gives for the rows of a split."""

    values: Tensor
    """float64 (rows, 2); NaN until it is known."""
    store: PrefixStore | None = None
    """Where it is kept."""


@dataclass(kw_only=True)
class Execution:
    """How the batches of each split are made and run. ``say`` takes what the user should be told."""

    model: Model
    task: Task
    sources: dict[str, SplitSource]
    workers: int
    precision: str = "fp32"
    channels_last: bool = False
    pack: bool = False
    """Whether the blocks of a transformer are computed for real tokens only."""
    fused: bool = False
    """Whether linear layers and their LoRA updates are computed as one function."""
    siblings: list[list[str]] = field(default_factory=list)
    """Of those layers, by their names, which read one input and are computed together."""
    blocks: FusedBlocks = field(default_factory=FusedBlocks)
    """What is computed as one function between the matrix products."""
    products: dict[str, FrozenProduct] = field(default_factory=dict)
    """What multiplies with the weights of frozen layers, by the layers' names, where not their own ``forward``."""
    attends_in_sequences: bool = False
    """Whether attention of rows that are all as long is computed in C++."""
    by_convolution: list[str] = field(default_factory=list)
    """Learning linear layers that oneDNN multiplies, by their names."""
    first_token: FirstToken | None = None
    """What is computed for the first token alone."""
    recomputed: list[str] = field(default_factory=list)
    """Blocks that are computed once more in the backward pass, by their names."""
    micro_batch: int | None = None
    """Rows of a batch that are computed at a time; None: all."""
    hosted: list[str] = field(default_factory=list)
    """Blocks whose frozen weights are brought to the GPU only while they are computed."""
    compiled: Functions = field(default_factory=dict)
    """What PyTorch's compiler has made of blocks, by their names."""
    threads: int | None = None
    """Cores that compute a step, where not all do."""
    line: FrostLine | None = None
    """Set where the prefix is read from stores."""
    stores: dict[str, PrefixStore] = field(default_factory=dict)
    references: dict[str, Reference] = field(default_factory=dict)
    """Of each split, where the loss compares with the model as it was (passes/reference.py)."""
    say: Callable[[str], None] = lambda text: None
    _computing: bool = field(default=False, init=False, repr=False)

    def encoder(self, split: str) -> Encode:
        """What makes the batches of a split: from its store where there is one."""
        source = self.sources[split]
        return self._stored(split, source) if split in self.stores else source.encode

    def forward(self, batch: Batch) -> Any:
        """The task's outputs: logits (rows, outputs), float32 at least, or the scores of labelled tokens."""
        with self._numerics(batch):
            return outputs_of(self.task, self.model, batch, lambda: self._run(batch), self.products.get(self.model.output or ""))

    @property
    def lowered(self) -> dict[str, str]:
        """The layers that do not multiply exactly, by their names in order, and in what numbers they do."""
        return {name: product.lowered_to for name, product in sorted(self.products.items()) if not product.exact}

    @property
    def tolerance(self) -> float:
        """Largest relative difference between the same rows computed twice, in other batches."""
        own = TOLERANCE["tf32" if self.precision == "fp32" and device_of(self.model.module).type != "cpu" else self.precision]
        return max([own, *(TOLERANCE[numbers] for numbers in self.lowered.values())])

    def _run(self, batch: Batch) -> Tensor:
        if batch.border is not None:
            assert self.line is not None, "a batch has border tensors but the plan has no frost line"
            return resume_from_border(self.model.module, self.line, batch.inputs, batch.border)
        if not self.pack:
            return logits_of(self.model.module(**self._laid_out(batch.inputs)))
        with unpadded(self.model.module, self.model.blocks, batch.inputs["attention_mask"], self.compiles_by_shape):
            return logits_of(self.model.module(**batch.inputs))

    @property
    def compiles_by_shape(self) -> bool:
        """Whether oneDNN multiplies, which compiles each product anew for each number of rows, and keeps it."""
        return device_of(self.model.module).type == "cpu" and (self.precision == "bf16" or bool(self.products or self.by_convolution))

    def find_line(self, inputs: dict[str, Tensor]) -> FrostLine | None:
        """The frost line, found in the precision that the prefix will run in, which its border tensors are stored in."""
        with self._numerics(), passing_through(self.task, self.model):
            return find_frost_line(self.model.module, self._laid_out(inputs))

    def prefix(self, batch: Batch) -> list[Tensor]:
        """The border tensors of a batch, by running the frozen prefix."""
        assert self.line is not None, "no frost line"
        with self._numerics(), passing_through(self.task, self.model):
            return [tensor.contiguous() for tensor in capture(self.model.module, self.line, self._laid_out(batch.inputs))]

    def prove(self, split: str, rows: int = 1, epoch: int = 0) -> bool:
        """Recompute ``rows`` stored rows, others in each epoch, and compare; on a mismatch drop the store and say so.

        Each alone: a frozen output that depended on its batch mates would be found here too. Damage to any row is found by
        its checksum when it is read; this finds a store that is whole but not what the prefix gives.
        """
        store = self.stores.get(split)
        if store is None:
            return True
        count = self.sources[split].rows
        for row in generator(0, epoch, -1, f"prove {split}").permutation(count)[:rows]:
            source = self.sources[split]
            batch = source.encode(np.array([row]), epoch if source.views else None)
            fresh = self.prefix(batch)
            width = batch.inputs["attention_mask"].shape[1] if "attention_mask" in batch.inputs else None
            try:
                stored = store.read(stored_at(torch.tensor([row]), source, epoch), width)
            except StoreDamaged as damage:
                return self._drop(split, str(damage))
            for a, b in zip((tensor.cpu() for tensor in fresh), stored, strict=True):
                difference = (a.float() - b.float()).abs().max()
                if not difference <= self.tolerance * a.float().abs().max().clamp_min(1e-6):
                    return self._drop(split, f"row {row} recomputed differs by {float(difference):.2e}")
        return True

    def _stored(self, split: str, source: SplitSource) -> Encode:
        images = "pixels" in source.table.column_names or "path" in source.table.column_names
        example = source.encode(np.array([0]), None)

        def encode(rows: np.ndarray, epoch: int | None) -> Batch:
            store = self.stores.get(split)
            if store is None or (source.views and epoch is None):  # it was dropped since; it holds no image as it is
                return source.encode(rows, epoch)
            index = torch.as_tensor(rows)
            if images:
                inputs = {name: empty((len(rows), *value.shape[1:]), value.dtype, source.device) for name, value in example.inputs.items()}
                batch = Batch(inputs=inputs, labels=moved(source.labels[index], source.device), rows=index)
            else:
                batch = source.encode(rows, epoch)
            try:
                width = batch.inputs["attention_mask"].shape[1] if not images else None
                batch.border = tuple(moved(tensor, source.device) for tensor in store.read(stored_at(index, source, epoch), width))
            except StoreDamaged as damage:
                self._drop(split, str(damage))
                return source.encode(rows, epoch)
            return batch

        return encode

    def _drop(self, split: str, reason: str) -> bool:
        store = self.stores.pop(split, None)
        if store is not None:
            store.discard()
            self.say(
                f"The stored outputs of the frozen prefix ({split}) failed their proof: {reason}. "
                "They were deleted; the prefix runs from here on."
            )
        return False

    def _laid_out(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self.channels_last:
            return inputs
        return {name: value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value for name, value in inputs.items()}

    @contextlib.contextmanager
    def _numerics(self, batch: Batch | None = None) -> Iterator[None]:
        with self.autocast(), self.kernels(batch):
            yield

    def come_home(self) -> None:
        """A network that the GPU does not hold as a whole is one with the host again."""
        if self.hosted:
            bring(self.model.module, CPU)
            self.hosted = []

    @contextlib.contextmanager
    def on_its_threads(self) -> Iterator[None]:
        """Within, products are computed on as many cores as the plan says."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def backward(self, loss: Tensor) -> None:
        """As ``loss.backward()``; blocks that are recomputed are computed as they were."""
        with self.kernels():
            loss.backward()

    @contextlib.contextmanager
    def kernels(self, batch: Batch | None = None) -> Iterator[None]:
        """Within, what computes in place of the module's own layers; of those that a pass over ``batch`` asks for, where it is given. One
        thread at a time: functions of torch and transformers are exchanged as well, for the whole process. Entered once around several
        passes it is entered for each of them."""
        with _ONE_THREAD:
            if self._computing:
                yield
                return
            self._computing = True
            try:
                with self._in_place(self.products if batch is None or batch.border is None else self._products_behind()):
                    yield
            finally:
                self._computing = False

    def _products_behind(self) -> dict[str, FrozenProduct]:
        """Those of layers behind the line: of a network with a hundred before it, putting all in place takes as long as a head."""
        assert self.line is not None, "no frost line"
        before = tuple(f"{name}." for name in self.line.names)
        return {name: product for name, product in self.products.items() if not f"{name}.".startswith(before)}

    @contextlib.contextmanager
    def _in_place(self, products: dict[str, FrozenProduct]) -> Iterator[None]:
        module = self.model.module
        lora = fused(module) if self.fused else contextlib.nullcontext()
        blocks, first = computing(module, self.blocks), reading_first(module, self.first_token)
        attention = with_wide_gradients() if self.precision == "bf16" else contextlib.nullcontext()
        in_sequences = attending_in_sequences(self.attends_in_sequences)
        multiplied, convolved = multiplying(module, products), convolving(module, products)
        learned = multiplying_by_convolution(module, self.by_convolution)
        together, chains = sharing(module, self.siblings, products), chained(module, products)
        uncached, again = without_caches(module, self.model.blocks), recomputing(module, [*self.hosted, *self.recomputed])
        made, brought = compiling(module, self.compiled), hosting(module, self.hosted, device_of(module))
        with made, brought, uncached, lora, blocks, attention, in_sequences, multiplied, learned, together, convolved, chains, first, again:
            yield

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """The precision of the run."""
        if self.precision != "bf16":
            return contextlib.nullcontext()
        return torch.autocast(device_of(self.model.module).type, dtype=torch.bfloat16)
