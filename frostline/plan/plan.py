"""Plan: what will be done, why, how long it takes and how much memory and disk it needs. ``train`` does exactly that."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from frostline.adapt.apply import adapt, frozen_at_random, resolve_method
from frostline.adapt.gradual import thaw
from frostline.adapt.groups import default_lr
from frostline.adapt.quantize import QuantizedLinear
from frostline.data.dataset import Dataset
from frostline.data.encode import SplitSource, split_source
from frostline.device import choose, device_of, name_of
from frostline.errors import DataError, RecipeError
from frostline.kernels.first_token import FirstToken
from frostline.kernels.large_blocks import free_bytes
from frostline.kernels.recompute import switch_off_own
from frostline.models.model import Model, evaluating
from frostline.plan.cost import Cost, Work, held_bytes, mapped_bytes, passing_bytes, predict_peak_bytes, predict_seconds, state_bytes
from frostline.plan.decision import Decision
from frostline.plan.execution import Execution
from frostline.plan.frost_line import preserved
from frostline.plan.frozen_layers import frozen_layers
from frostline.plan.machine import Machine, machine, memory_limit, resident_bytes
from frostline.plan.passes import (
    allocator,
    cache_prefix,
    channels_last,
    checkpoint_activations,
    compile_blocks,
    first_token,
    fuse_adapter,
    fuse_attention,
    fuse_blocks,
    fuse_convolutions,
    label_logits,
    lower_frozen,
    micro_batch,
    offload,
    onednn_linear,
    pack,
    precision,
    prepack_frozen,
    reference,
    threads,
)
from frostline.plan.probe import Loss, Probe, probe
from frostline.recipe import Recipe
from frostline.tasks import get_task
from frostline.tasks.losses import balanced_weights
from frostline.tasks.task import LossOptions, Task
from frostline.terminal import table


@dataclass(kw_only=True)
class Plan:
    """The product of ``plan``; ``print`` shows the decisions, ``train`` carries them out."""

    recipe: Recipe
    model: Model
    data: Dataset
    task: Task
    loss_options: LossOptions
    execution: Execution
    decisions: list[Decision]
    predicted: Cost
    parameters: dict[str, int] = field(default_factory=dict)
    """Numbers: all, learning, frozen, before the line; bytes of weights, gradients, optimiser, activations, temporaries, stored rows."""
    warnings: list[str] = field(default_factory=list)
    """What the labels of the training rows' tokens must be known for: cuts, missing end tokens, templates."""
    carried_out: bool = False
    """Set by ``train``: the model is trained then, and the same plan would not give the same run again."""

    def decision(self, what: str) -> bool:
        """Whether a pass is on."""
        return any(decision.on for decision in self.decisions if decision.what == what)

    def loss(self, outputs: Any, labels: Any) -> Any:
        """The task's loss under the recipe: ``(sum, count)``."""
        return self.task.loss(outputs, labels, self.loss_options)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, as a run's plan.json holds them."""
        return {
            "decisions": [asdict(decision) for decision in self.decisions],
            "predicted": self.predicted.to_dict(),
            "parameters": self.parameters,
            "model": self.model.card.name,
            "data": self.data.fingerprint,
        }

    def __str__(self) -> str:
        counts = self.parameters
        share = 100 * counts["learning"] / max(1, counts["all"])
        rows = [
            [
                decision.what,
                "on" if decision.on else "off",
                decision.why,
                f"{decision.saves_seconds:.1f} s" if decision.saves_seconds else "",
                decision.costs,
            ]
            for decision in self.decisions
        ]
        recipe, trained = self.recipe, self.execution.sources["train"].rows
        method = f"last {recipe.adapt.last}" if recipe.adapt.method == "last" else recipe.adapt.method
        batches = -(-trained // recipe.train.batch)
        device = device_of(self.model.module)
        on = "" if device.type == "cpu" else f", on {name_of(device)}"
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in sorted(self.predicted.parts.items(), key=lambda part: -part[1]))
        return "\n".join(
            [
                f"Plan for {self.model.card.name}, {self.model.card.schema.task}: adapt {method}{on}",
                table(["pass", "", "why", "saves", "costs"], rows),
                f"parameters: {counts['all']:,}, of which {counts['learning']:,} ({share:.2f} %) learn",
                "bytes: "
                + ", ".join(f"{name} {_size(counts[name + '_bytes'])}" for name in ("weights", "gradients", "optimizer", "activations")),
                f"work: {trained} rows in batches of {recipe.train.batch} × {recipe.train.accumulate}"
                f" = {-(-batches // recipe.train.accumulate)} steps an epoch,"
                f" {recipe.train.epochs} epochs, lr {recipe.train.lr:g} ({recipe.train.optimizer})",
                f"predicted: {self.predicted.seconds:.1f} s ({parts});"
                f" peak memory {_size(self.predicted.peak_bytes)}; disk {_size(self.predicted.disk_bytes)}",
                *(f"warning: {text}" for text in self.warnings),
            ]
        )

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def plan_recipe(recipe: Recipe, model: Model, data: Dataset, forced: list[Decision] | None = None) -> Plan:
    """Plan a run from a complete recipe; ``forced``: the decisions of the run that is resumed, taken as they are."""
    if not data.splits.get("train", ()):
        raise DataError("the dataset has no training rows, expected at least one. Check data.path with: frostline check DATA")
    method = resolve_method(model, recipe.adapt)
    lr = recipe.train.lr if recipe.train.lr is not None else default_lr(recipe.train, method, model.card.pretrained)
    recipe = recipe.with_values({"adapt.method": method, "train.lr": lr})
    model, device = adapt(model, recipe.adapt, seed=recipe.seed), choose(recipe.train.device)
    hosted = offload.place(recipe, model, device, forced)
    switched = switch_off_own(model.module)
    task = get_task(data.schema.task)
    execution = Execution(model=model, task=task, sources=_sources(recipe, model, data), workers=_workers(recipe))
    options = _loss_options(recipe, data, execution.sources["train"])
    execution.hosted = hosted.settings["blocks"] if hosted else []
    reference.attach(recipe, execution)
    if forced is not None:
        return _resumed(recipe, model, data, task, options, execution, forced)

    _refuse_single_rows(recipe, execution)
    thaw(model, recipe.adapt, recipe.train.epochs - 1)  # a gradual run is planned as its last epoch, which needs the most
    kept = allocator.propose(recipe) if device.type == "cpu" else None  # before anything is timed: it may still be building
    here, work = machine(device), _work(recipe, model, execution.sources)
    steps = work.epochs * work.train_rows / work.batch

    def loss(outputs: Any, labels: Any) -> Any:
        return task.loss(outputs, labels, options)

    others = [made for made in (kept, *_numerics(recipe, execution, loss, here, work.batch, steps)) if made]
    impossible = cache_prefix.find_line(recipe, execution)
    measured = probe(execution, loss, work.batch, steps, work.accumulate)
    if impossible is None:
        work = replace(work, stored_rows=cache_prefix.stored_rows(recipe, execution))
    caching = impossible or cache_prefix.propose(recipe, execution, work, measured, here)
    line = execution.line = execution.line if caching.on else None
    stored = cache_prefix.stored_bytes(line, execution.sources) if line else None
    others = [cache_prefix.saved_with_store(made, work) for made in others] if line else others
    if line and execution.pack:
        others[-1] = replace(others[-1], on=False, why="the blocks before the frost line run once and are stored")
        execution.pack = False
    if (referring := reference.propose(execution, work, measured)) is not None:
        others.append(referring)
    on_cores, measured = threads.propose(recipe, execution, loss, measured, steps)
    work = replace(work, workers=execution.workers, held_bytes=held_bytes(work, measured, here))
    resident, free = resident_bytes(device), free_bytes(device)
    room = memory_limit(device) + resident

    def peak(probed: Probe) -> int:
        return predict_peak_bytes(work, probed, resident, free, stored_bytes=stored)

    fitting, measured = _fit(recipe, execution, loss, measured, peak, room)
    compiled, measured = compile_blocks.propose(recipe, execution, loss, measured, steps)
    needed = measured.of_rows(execution.micro_batch or work.batch)
    offloaded = offload.propose(recipe, execution, peak(needed) - room)
    others += [made for made in (on_cores, *fitting, compiled, hosted, offloaded.decision) if made]
    parts = predict_seconds(work, measured, here, stored_bytes=stored) | reference.seconds(execution, work, measured)
    parts |= offload.seconds(work, offloaded)
    disk = (stored or 0) + _run_bytes(data, work)
    predicted = Cost(seconds=sum(parts.values()), peak_bytes=peak(needed), disk_bytes=disk, parts=parts)
    _refuse_what_cannot_fit(recipe, predicted.peak_bytes - offloaded.bytes, room)
    parameters = _count(model, work, needed.saved_bytes, line.names if line else [])
    parameters |= {
        "passing_bytes": passing_bytes(needed, work.workers) + work.held_bytes,
        "mapped_bytes": mapped_bytes(stored) if work.host else 0,
    }
    thaw(model, recipe.adapt, 0)
    return Plan(
        recipe=recipe, model=model, data=data, task=task, loss_options=options, execution=execution,
        decisions=[caching, *others], predicted=predicted, parameters=parameters,
        warnings=[*execution.sources["train"].warnings, *frozen_at_random(model), *switched],
    )  # fmt: skip


def _numerics(recipe: Recipe, execution: Execution, loss: Loss, here: Machine, batch: int, steps: float) -> list[Decision | None]:
    """In which numbers, by which kernels and for which tokens the network is computed; the last is ``pack``, where texts are computed."""
    types = precision.propose(recipe, here)
    execution.precision = "bf16" if types.on else "fp32"
    layout = channels_last.propose(recipe, execution)  # timed in that precision: which is faster differs between them
    fused = [fuse_adapter.propose(recipe, execution), fuse_blocks.propose(recipe, execution)]
    packed = pack.propose(recipe, execution)
    first = first_token.propose(execution)
    attended = fuse_attention.propose(recipe, execution, batch, steps)
    layers = frozen_layers(execution, batch)
    prepacked = prepack_frozen.propose(recipe, execution, layers, steps)
    convolved = fuse_convolutions.propose(recipe, execution, layers, steps)
    lowered = lower_frozen.propose(recipe, execution, layers, loss, steps)
    learning = onednn_linear.propose(recipe, execution, batch, steps)
    return [layout, types, label_logits.propose(execution), *fused, first, attended, prepacked, convolved, lowered, learning, packed]


def _fit(
    recipe: Recipe, execution: Execution, loss: Loss, measured: Probe, peak: Callable[[Probe], int], room: int
) -> tuple[list[Decision | None], Probe]:
    """What is computed again, and how many rows at a time, so that there is memory enough; the probe of whole batches then."""
    again, measured = checkpoint_activations.propose(recipe, execution, loss, measured, peak, room)
    divided = micro_batch.propose(recipe, execution, measured.batch, lambda rows: peak(measured.of_rows(rows)), room)
    return [again, divided], measured


def _resumed(
    recipe: Recipe, model: Model, data: Dataset, task: Task, options: LossOptions, execution: Execution, forced: list[Decision]
) -> Plan:
    """The plan of a run that goes on: its decisions again, nothing measured, so that it goes on bit for bit."""
    on = {decision.what for decision in forced if decision.on}
    channels_last.lay_out(execution, "channels_last" in on)
    execution.precision = "bf16" if "bf16" in on else "fp32"
    if "allocator" in on:
        allocator.propose(recipe)
    execution.pack = "pack" in on
    if "fuse_blocks" in on:
        fuse_blocks.fuse(execution)
    execution.attends_in_sequences = "fuse_attention" in on
    settings = {decision.what: decision.settings for decision in forced if decision.on}
    execution.fused, execution.siblings = "fuse_adapter" in on, settings.get("fuse_adapter", {}).get("siblings", [])
    work = _work(recipe, model, execution.sources)
    layers = frozen_layers(execution, work.batch)
    prepack_frozen.pack(execution, layers, settings.get("prepack_frozen", {}))
    execution.by_convolution = settings.get("onednn_linear", {}).get("layers", [])
    if "fuse_convolutions" in on:
        fuse_convolutions.fuse(execution, layers)
    if names := settings.get("first_token"):
        execution.first_token = FirstToken(**names)
    execution.recomputed = settings.get("checkpoint_activations", {}).get("blocks", [])
    execution.micro_batch = settings.get("micro_batch", {}).get("rows")
    execution.compiled = compile_blocks.compile_blocks(model.module, settings.get("compile_blocks", {}).get("blocks", []))
    execution.threads = settings.get("threads", {}).get("threads")
    execution.workers = settings.get("threads", {}).get("workers", execution.workers)
    if "offload" in on and not execution.hosted:
        offload.map_weights(list(offload.frozen_weights(model.module).values()))
    lower_frozen.lower(execution, layers, settings.get("lower_frozen", {}).get("layers", {}))
    if "cache_prefix" in on:
        source = execution.sources["train"]
        model.module.train()
        execution.line = execution.find_line(source.encode(np.arange(min(3, source.rows)), None).inputs)
    cost = Cost(seconds=0.0, peak_bytes=0, disk_bytes=0, parts={})
    return Plan(
        recipe=recipe, model=model, data=data, task=task, loss_options=options, execution=execution,
        decisions=forced, predicted=cost, parameters=_count(model, work, 0, []),
    )  # fmt: skip


def _sources(recipe: Recipe, model: Model, data: Dataset) -> dict[str, SplitSource]:
    """The splits that training reads: train (augmented) and validation."""
    sources: dict[str, SplitSource] = {}
    for name in ("train", "validation"):
        if name in data.splits:
            augment = recipe.data.augment if name == "train" and recipe.data.augment.random else None
            source = split_source(
                data.splits[name], data.schema, model.card.preprocess, recipe=recipe.data, augment=augment, seed=recipe.seed, name=name
            )
            sources[name] = source.to(device_of(model.module))
    truncated = [source.truncated for source in sources.values() if source.truncated is not None]
    lengths = [source.lengths for source in sources.values() if source.lengths is not None]
    if lengths:
        data.report.with_lengths(np.concatenate(lengths), float(np.mean(truncated)))
    return sources


def _loss_options(recipe: Recipe, data: Dataset, source: SplitSource) -> LossOptions:
    weights = None
    if recipe.train.class_weights == "balanced" and data.schema.target in ("class", "multi-label"):
        weights = balanced_weights(source.labels, data.schema.outputs)
    elif recipe.train.class_weights == "balanced" and data.schema.target == "tags":
        weights = balanced_weights(pc.list_flatten(source.table["label"]).to_numpy(), data.schema.outputs)
    return LossOptions(recipe=recipe.train, schema=data.schema, class_weights=weights)


def _workers(recipe: Recipe) -> int:
    return recipe.data.workers if recipe.data.workers is not None else os.cpu_count() or 1


def _work(recipe: Recipe, model: Model, sources: dict[str, SplitSource]) -> Work:
    train, validation = sources["train"], sources.get("validation")
    learning = sum(p.numel() for p in model.module.parameters() if p.requires_grad)
    weights = sum(tensor.nbytes for tensor in model.module.state_dict().values())
    kept = weights if recipe.adapt.method == "gradual" else learning * 4
    return Work(
        train_rows=train.rows,
        validation_rows=validation.rows if validation is not None else 0,
        epochs=recipe.train.epochs,
        batch=min(recipe.train.batch, train.rows),
        accumulate=recipe.train.accumulate,
        learning=learning,
        optimizer=recipe.train.optimizer,
        ema=recipe.train.ema is not None,
        views=train.views or 1,
        workers=_workers(recipe),
        checkpoint_bytes=kept + state_bytes(learning, recipe.train.optimizer, recipe.train.ema is not None),
        model_bytes=weights,
        host=train.device.type == "cpu",
    )


def _run_bytes(data: Dataset, work: Work) -> int:
    """The run's folder: the rows, the saved model, and two checkpoints (last and best)."""
    return sum(table.nbytes for table in data.splits.values()) + work.model_bytes + 2 * work.checkpoint_bytes


def _count(model: Model, work: Work, saved_bytes: int, before: list[str]) -> dict[str, int]:
    named = dict(model.module.named_parameters())
    prefix = tuple(f"{name}." for name in before)
    packed = [part for part in model.module.modules() if isinstance(part, QuantizedLinear)]
    return {
        "all": sum(p.numel() for p in named.values()) + sum(part.in_features * part.out_features for part in packed),
        "learning": work.learning,
        "before_line": sum(p.numel() for name, p in named.items() if prefix and name.startswith(prefix)),
        "weights_bytes": sum(p.nbytes for p in named.values()) + sum(buffer.nbytes for part in packed for buffer in part.buffers()),
        "gradients_bytes": work.learning * 4,
        "optimizer_bytes": state_bytes(work.learning, work.optimizer, work.ema),
        "activations_bytes": saved_bytes,
    }


def _refuse_single_rows(recipe: Recipe, execution: Execution) -> None:
    """A batch norm over rows alone needs two of them; torch would say so in the middle of the first epoch."""
    source, batch, module = execution.sources["train"], recipe.train.batch, execution.model.module
    name = micro_batch.learning_batch_norm(module)
    if name is None or not (batch == 1 or source.rows % batch == 1):
        return
    with preserved(module), evaluating(module), torch.no_grad():
        module.train()
        try:
            execution.forward(source.encode(np.arange(1), None))
        except ValueError as error:
            raise RecipeError(
                f"train.batch got {batch!r}: of {source.rows} training rows the last batch would hold one, "
                f"and the batch norm {name!r} needs two. "
                f"Use: train.batch={batch + 1 if source.rows % (batch + 1) != 1 else batch + 2}"
            ) from error


def _refuse_what_cannot_fit(recipe: Recipe, needed: int, room: int) -> None:
    if needed > room:
        raise RecipeError(
            f"the run would need {needed / 1e9:.1f} GB of memory and {room / 1e9:.1f} GB are free. "
            f"Try train.batch={max(1, recipe.train.batch // 2)} train.accumulate={2 * recipe.train.accumulate}, or adapt=head"
        )
