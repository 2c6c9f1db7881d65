"""reference: what the frozen reference model gives for each answer, computed once before training (for preferences).

DPO, IPO and KTO compare the model with itself as it was. There is one copy of the weights: with an adapter the reference is the
model with its adapter off; without one, or where something beside it learns too, it is the model before its first step. Its
log-probabilities, two numbers a row, do not change, so they are computed once, before the last checkpoint of a resumed run is
read, and kept in a store like the prefix's (law 4): found by the hash of the base's weights and of every token and label of the
rows, each row with a checksum, a few rows computed anew and compared when a store is opened and, where an adapter can be switched
off, in every epoch.

A run's folder notes the hash of the weights that it began with (reference.json). A run that goes on with a model of other weights
(a module handed over that is trained already) takes the stored numbers of the right ones or is refused: log-probabilities of
trained weights are no reference. Until they are known, the numbers are NaN, so that a loss without them cannot go unseen.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from frostline.adapt import virtual
from frostline.adapt.adapters import adapters_off
from frostline.adapt.settings import in_place
from frostline.adapt.wrapper import learning_names, wrappers
from frostline.data.dataset import Schema
from frostline.data.encode import SplitSource
from frostline.data.loader import Batch, Encode, load, plain_batches
from frostline.data.randomness import generator
from frostline.device import moved
from frostline.errors import RunError
from frostline.files import write_atomically
from frostline.kernels.outputs import outputs_of
from frostline.models.model import Model, evaluating
from frostline.plan.cost import Work
from frostline.plan.decision import Decision
from frostline.plan.execution import Execution, Reference
from frostline.plan.frost_line import BorderTensor
from frostline.plan.probe import Probe
from frostline.plan.recorded_calls import Call
from frostline.plan.store import PrefixStore, StoreDamaged, create_store, open_store, stores_folder
from frostline.progress import progress
from frostline.recipe import Recipe, TrainRecipe
from frostline.tasks.losses import loss_name
from frostline.tasks.preference import WITH_REFERENCE, answers
from frostline.tasks.task import Task

VERSION = 1
_NOTE = "reference.json"
_PROVED = 4
_BORDER = [BorderTensor(call=Call(name="reference", index=0), position=0, per_token=False, shape=(2,), dtype=torch.float64)]


def needed(recipe: TrainRecipe, schema: Schema) -> bool:
    """Whether the recipe's loss compares with the reference."""
    return schema.task == "preference" and loss_name(recipe, schema) in WITH_REFERENCE


def attach(recipe: Recipe, execution: Execution) -> None:
    """Let the batches of every split hold their reference, where the loss needs one; NaN until :func:`fill_reference`."""
    for split, source in execution.sources.items():
        if needed(recipe.train, source.schema):
            reference = Reference(values=torch.full((source.rows, 2), torch.nan, dtype=torch.float64))
            execution.references[split] = reference
            source.encode = _with_reference(source.encode, reference.values)


def seconds(execution: Execution, work: Work, probe: Probe) -> dict[str, float]:
    """What computing the reference takes, as a part of the run's seconds; empty where there is none."""
    rows = work.train_rows + work.validation_rows
    return {"reference": rows / probe.batch * probe.forward} if execution.references else {}


def propose(execution: Execution, work: Work, probe: Probe) -> Decision | None:
    """What is saved; None where the loss needs no reference."""
    if not execution.references:
        return None
    took, rows = seconds(execution, work, probe)["reference"], work.train_rows + work.validation_rows
    which = "with its adapter off" if can_be_recomputed(execution.model.module) else "before its first step"
    return Decision(
        what="reference",
        on=True,
        why=f"{rows} rows are scored once by the model {which}, instead of in each of {work.epochs} epochs by a second copy",
        saves_seconds=(work.epochs - 1) * took,
        costs=f"{took:.1f} s before training, {16 * rows / 1e6:.1f} MB on disk",
    )


def fill_reference(
    recipe: Recipe, execution: Execution, folder: Path | None = None, quiet: bool = True, between: Callable[[], None] = lambda: None
) -> int:
    """Open the stores that exist and make those that do not. Returns the rows for which the model had to be run.

    To be called with the weights that the run began with. ``folder``: the run's, to note them in. ``between``: as in
    ``fill_stores``. Raises RunError where the weights are others and nothing is stored.
    """
    if not execution.references:
        return 0
    weights, noted = base_hash(execution.model.module), _noted(folder)
    same = noted is None or noted["weights"] == weights
    ran, keys = 0, {}
    for split in execution.references:
        keys[split] = key = _key(execution, split, weights) if same or noted is None else noted["keys"].get(split, "none")
        if not _take(execution, split, key, same):
            if not same:
                raise RunError(
                    f"{folder}: the weights of the model are not those that the run began with, and what those gave for the {split} "
                    f"rows is not in {str(stores_folder())!r}. Go on with the model that the run began with, or start a new run"
                )
            _run(recipe, execution, split, key, quiet, between)
            ran += execution.sources[split].rows
    if noted is None:
        _tell_of_another_start(execution)
    if folder is not None and noted is None:
        write_atomically(folder / _NOTE, json.dumps({"weights": weights, "keys": keys}).encode())
    return ran


def prove_reference(recipe: Recipe, execution: Execution, split: str, epoch: int) -> bool:
    """Recompute a few rows, others in each epoch, and compare; on a mismatch drop the store, say so, and compute all rows anew.

    Nothing is done where no adapter can be switched off: what learns is no reference any more.
    """
    reference = execution.references.get(split)
    if reference is None or not can_be_recomputed(execution.model.module):
        return True
    if (difference := _difference(execution, split, epoch)) is None:
        return True
    _drop(execution, split, reference.store, difference)
    reference.store = None
    _run(recipe, execution, split, None, True, lambda: None)
    return False


def reference_of(task: Task, model: Model, batch: Batch) -> Tensor | None:
    """A batch's reference by a model with an adapter; None for one without, whose reference is gone once it is trained."""
    if in_place(model) is None:
        return None
    learning = [parameter for parameter in model.module.parameters() if parameter.requires_grad]
    try:
        model.module.requires_grad_(False)  # a model that was read back is not frozen, and its base would pass for what learns
        with torch.no_grad(), adapters_off(model.module):
            return answers(outputs_of(task, model, batch)).logp
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def can_be_recomputed(module: nn.Module) -> bool:
    """Whether there is an adapter, and all that learns can be switched off."""
    own = learning_names(module) | set(virtual.learning_names(module))
    return bool(own) and all(name in own for name, parameter in module.named_parameters() if parameter.requires_grad)


def base_hash(module: nn.Module) -> str:
    """Hash of all that the reference computes with: with an adapter that can be switched off the same as with another one or none."""
    switched = can_be_recomputed(module)
    state = {name: tensor for name, tensor in module.state_dict().items() if not switched or virtual.NAME not in name.split(".")}
    for place, _ in wrappers(module) if switched else ():
        own, base = f"{place}.", f"{place}.base."
        state = {
            own + name.removeprefix(base) if name.startswith(base) else name: tensor
            for name, tensor in state.items()
            if name.startswith(base) or not name.startswith(own)
        }
    digest = hashlib.blake2b(digest_size=20)
    for name, tensor in sorted(state.items(), key=lambda item: item[0]):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _as_it_was(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Within, the module is its base; where it has no adapter that can be switched off, it is what it is, before its first step."""
    return adapters_off(module) if can_be_recomputed(module) else contextlib.nullcontext()


def _tell_of_another_start(execution: Execution) -> None:
    """An adapter that is trained already makes the run begin away from its reference, which is easily overlooked."""
    module, source = execution.model.module, execution.sources["train"]
    if not can_be_recomputed(module):
        return
    batch = source.encode(np.arange(min(_PROVED, source.rows)), None)
    with evaluating(module), torch.no_grad():
        now = answers(execution.forward(batch)).logp.cpu()
    difference = (now - execution.references["train"].values[batch.rows]).abs()
    if (difference > execution.tolerance * now.abs().clamp_min(1.0)).any():
        execution.say(
            f"The adapter changes the model before the first step (log-probabilities of answers by up to {float(difference.max()):.2g}), "
            "and the run compares with the model below it. To compare with the model as it is now, fold the adapter first: "
            "frostline.adapt.adapters.merge_into_base(model)"
        )


# -- The store --------------------------------------------------------------------------------------------------------


def _with_reference(encode: Encode, values: Tensor) -> Encode:
    def with_reference(rows: np.ndarray, epoch: int | None) -> Batch:
        batch = encode(rows, epoch)
        batch.reference = moved(values[batch.rows], batch.labels.device)
        return batch

    return with_reference


def _noted(folder: Path | None) -> dict[str, Any] | None:
    if folder is None or not (folder / _NOTE).exists():
        return None
    try:
        found = json.loads((folder / _NOTE).read_text(encoding="utf-8"))
        keys = {str(split): str(key) for split, key in found["keys"].items()}
        if not all(re.fullmatch("[0-9a-f]{40}", key) for key in keys.values()):  # a key names a folder
            raise ValueError(f"keys are {keys!r}, expected 40 hexadecimal digits each")
        return {"weights": str(found["weights"]), "keys": keys}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{str(folder / _NOTE)!r} cannot be read ({error}). Start a new run") from error


def _key(execution: Execution, split: str, weights: str) -> str:
    """The name of the store that holds exactly this: the network, its numbers, and all that it is given."""
    model, source = execution.model, execution.sources[split]
    arguments = {name: value for name, value in model.card.arguments.items() if name != "adapt"}
    of = [VERSION, torch.__version__, execution.precision, execution.lowered, weights, model.card.name, arguments]
    about = json.dumps(of, sort_keys=True, default=str)
    digest = hashlib.sha256(about.encode())
    for rows in plain_batches(source.rows, 256, source.lengths):
        batch = source.encode(rows, None)
        for name, tensor in [*sorted(batch.inputs.items()), ("labels", batch.labels), ("rows", batch.rows)]:
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:40]


def _offsets(source: SplitSource) -> Tensor:
    return torch.arange(source.rows + 1)


def _take(execution: Execution, split: str, key: str, same: bool) -> bool:
    """Take the numbers of a finished store, proved; False where there is none, or its proof failed and it was deleted."""
    source, reference = execution.sources[split], execution.references[split]
    store = open_store(key, _BORDER, source.rows, _offsets(source))
    if store is None:
        return False
    try:
        reference.values.copy_(store.read(torch.arange(source.rows))[0])
    except StoreDamaged as damage:
        _drop(execution, split, store, str(damage))
        return False
    if same and (difference := _difference(execution, split, -1)) is not None:
        _drop(execution, split, store, difference)
        return False
    reference.store = store
    return True


def _run(recipe: Recipe, execution: Execution, split: str, key: str | None, quiet: bool, between: Callable[[], None]) -> None:
    """Compute a split's numbers, and keep them under ``key``; without one, in memory alone."""
    source, reference = execution.sources[split], execution.references[split]
    batches = plain_batches(source.rows, recipe.train.batch, source.lengths)
    store = None
    if key is not None and recipe.plan.cache != "off":
        store = create_store(key, _BORDER, source.rows, _offsets(source), recipe.plan.cache_limit_gb * 1e9)
        there = store.stored()
        reference.values[there] = store.arrays[0][there]
        batches = [rows for rows in batches if not there[rows].all()]
    try:
        with progress(total=source.rows, label=f"reference, {split}", quiet=quiet) as bar:
            bar.update(source.rows - sum(len(rows) for rows in batches))
            for batch in load(source.encode, batches, None, execution.workers):
                reference.values[batch.rows] = made = _log_probabilities(execution, batch)
                if store is not None:
                    store.write(batch.rows, [made])
                bar.update(len(batch.rows))
                between()
        if store is not None:
            store.finish({"split": split, "rows": source.rows})
            reference.store = store
    except BaseException:
        if store is not None:
            store.leave()
        raise


def _log_probabilities(execution: Execution, batch: Batch) -> Tensor:
    """float64 (rows, 2): ln p of the chosen and the rejected answer by the base."""
    module = execution.model.module
    with evaluating(module), _as_it_was(module), torch.no_grad():
        return answers(execution.forward(batch)).logp.cpu()


def _difference(execution: Execution, split: str, epoch: int) -> str | None:
    """What differs between a few rows recomputed and what is held for them; None: nothing."""
    source, values = execution.sources[split], execution.references[split].values
    rows = generator(0, epoch, -1, f"prove reference {split}").permutation(source.rows)[:_PROVED]
    fresh = _log_probabilities(execution, source.encode(rows, None))
    difference = (fresh - values[torch.from_numpy(rows)]).abs()
    fine = difference <= execution.tolerance * fresh.abs().clamp_min(1.0)  # False for NaN too
    if fine.all():
        return None
    worst = int((~fine).any(dim=1).nonzero()[0, 0])
    return f"row {rows[worst]} recomputed differs by {float(difference[worst].max()):.2e}"


def _drop(execution: Execution, split: str, store: PrefixStore | None, reason: str) -> None:
    if store is not None:
        store.discard()
    execution.say(f"The reference's log-probabilities ({split}) failed their proof: {reason}. They were deleted and are computed anew.")
