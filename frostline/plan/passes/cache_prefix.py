"""cache_prefix: run the frozen prefix once, store its outputs, and train on them.

Condition: a frost line, and nothing new before it in every epoch (augmentation changes the pixels, unless the recipe asks for k
views in turn). Saving: E - 1 (E - k) of E passes through the prefix. Exact: the stored numbers are those that the prefix gives, up
to the rounding of other batch sizes. Taken only where reading the store is predicted to cost less than running the prefix.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from frostline.data.encode import SplitSource
from frostline.data.loader import Batch, load, plain_batches, spread
from frostline.data.preprocess import TextPreprocess
from frostline.models.model import Card, Model
from frostline.plan.cost import Work, predict_seconds
from frostline.plan.decision import Decision
from frostline.plan.execution import TOLERANCE, Execution, stored_at
from frostline.plan.frost_line import FrostLine, preserved
from frostline.plan.machine import Machine
from frostline.plan.probe import Probe, prefix_rows
from frostline.plan.store import PrefixStore, create_store, open_store, prefix_hash, store_bytes, store_key, stores
from frostline.progress import progress
from frostline.recipe import DataRecipe, Recipe

CACHED_SPLITS = ("train", "validation")


def stored_bytes(line: FrostLine, sources: dict[str, SplitSource]) -> int:
    """Disk that the stores of the splits which are read every epoch take."""
    return sum(store_bytes(line.border, *_sizes(source)) for name, source in sources.items() if name in CACHED_SPLITS)


def find_line(recipe: Recipe, execution: Execution) -> Decision | None:
    """Give the execution its frost line; where the part before it cannot be cached, none, and the decision that says why."""
    execution.line, reason = None, _never(recipe, execution)
    if reason is None:
        source, module = execution.sources["train"], execution.model.module
        module.train()
        if source.rows >= 2:
            with preserved(module):
                execution.line = execution.find_line(_few(source).inputs)
        reason = _not_behind(execution.line, recipe, execution)
    if reason is None:
        return None
    execution.line = None
    return _decide(False, reason)


def _never(recipe: Recipe, execution: Execution) -> str | None:
    """Why nothing could be cached wherever the line is."""
    if recipe.plan.cache == "off":
        return "switched off in the recipe"
    augment = recipe.data.augment
    if augment.random and augment.views is None:
        return (
            "images are augmented anew every epoch, so the frozen part sees other pixels each time; data.augment.views=3 would store three"
        )
    if augment.mixup or augment.cutmix:
        return "images are mixed with others of their batch, which are others in every epoch"
    if recipe.adapt.method == "gradual":
        return "the frost line moves while blocks thaw"
    if execution.task.sequences > 1:
        return "each row is more than one row of the network's, and the store holds one for each"
    if "decoder_input_ids" in getattr(execution.model.card.preprocess, "inputs", ()):
        return "an encoder-decoder's row has two lengths, and the store knows one"
    return None


def _not_behind(line: FrostLine | None, recipe: Recipe, execution: Execution) -> str | None:
    """Why what stands before this line cannot be cached, or not within the limits."""
    if line is None:
        return "nothing that is frozen stands before everything that learns"
    if recipe.plan.cache == "auto" and execution.model.blocks and not _blocks_before(line, execution.model):
        return "no block of the network lies before everything that learns"
    if not line.deviation <= TOLERANCE["fp32"]:
        return f"the part after the line reads more than the line's border (logits differ by {line.deviation:.1e})"
    size = stored_bytes(line, execution.sources)
    if size > recipe.plan.cache_limit_gb * 1e9:
        return f"the store would take {size / 1e9:.1f} GB, more than plan.cache_limit_gb={recipe.plan.cache_limit_gb}"
    return None


def propose(recipe: Recipe, execution: Execution, work: Work, probe: Probe, machine: Machine) -> Decision:
    """Whether reading the store is worth it, and what it saves; `plan.cache: on` is obeyed. The execution has a line."""
    line = execution.line
    assert line is not None, "no frost line"
    size = stored_bytes(line, execution.sources)
    plain = sum(predict_seconds(work, probe, machine, stored_bytes=None).values())
    cached = sum(predict_seconds(work, probe, machine, stored_bytes=size).values())
    if recipe.plan.cache == "auto" and cached >= 0.97 * plain:
        return _decide(False, f"reading the store ({cached:.1f} s in all) is not faster than running the frozen part ({plain:.1f} s)")
    if work.stored_rows == work.views * work.train_rows + work.validation_rows:
        return _decide(True, "an earlier run has stored what the frozen part gives for these rows", plain - cached)
    where = f"after {line.border[-1].call.name!r}, {size / 1e6:.1f} MB on disk"
    runs = "once" if work.views == 1 else f"once for each of {work.views} views"
    instead = f"instead of {work.epochs} times" if work.epochs > work.views else "and is kept for the next run on these rows"
    return _decide(True, f"the frozen part runs {runs} {instead}", plain - cached, where)


def saved_with_store(made: Decision, work: Work) -> Decision:
    """A decision about frozen layers where what is before the line runs once, for the rows that are not stored yet."""
    stored = work.views * work.train_rows + work.validation_rows - work.stored_rows
    spared = made.saves_before_line * (1 - stored / (work.epochs * work.train_rows))
    return replace(made, saves_seconds=made.saves_seconds - spared, saves_before_line=made.saves_before_line - spared)


def _decide(on: bool, why: str, saves: float = 0.0, costs: str = "") -> Decision:
    return Decision(what="cache_prefix", on=on, why=why, saves_seconds=saves, costs=costs, exact=True)


def _blocks_before(line: FrostLine, model: Model) -> list[str]:
    """The network's blocks that lie whole before the line."""
    return [block for block in model.blocks if any(block == name or block.startswith(f"{name}.") for name in line.names)]


def _few(source: SplitSource) -> Batch:
    """Two rows show what depends on the row; of texts three, from the shortest to a middle one, so that there is padding; where these
    are as long as each other, to the longest."""
    if source.lengths is None:
        return source.encode(spread(source.rows, 2), None)
    order = np.argsort(source.lengths, kind="stable")
    shorter = order[: len(order) // 2 + 1]
    uneven = source.lengths[shorter[0]] < source.lengths[shorter[-1]]
    return source.encode((shorter if uneven else order)[spread(len(shorter) if uneven else len(order), 3)], None)


def _offsets(source: SplitSource) -> torch.Tensor:
    rows = source.rows * (source.views or 1)
    lengths = np.ones(rows, dtype=np.int64) if source.lengths is None else np.asarray(source.lengths, dtype=np.int64)
    return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))


def _sizes(source: SplitSource) -> tuple[int, int]:
    """Rows and tokens that a store of this split holds."""
    offsets = _offsets(source)
    return len(offsets) - 1, int(offsets[-1])


def stored_rows(recipe: Recipe, execution: Execution) -> int:
    """Rows, or views of them, that an earlier run has stored. The execution has a line."""
    if not (there := stores()):
        return 0
    return sum(_sizes(execution.sources[split])[0] for split, key in _keys(recipe, execution).items() if key in there)


def _keys(recipe: Recipe, execution: Execution) -> dict[str, str]:
    """The names of the stores of each split."""
    line, keys = execution.line, {}
    assert line is not None, "stores need a frost line"
    weights = prefix_hash(execution.model.module, line.names)
    about = _preprocess_key(execution.model.card, recipe.data) + f"{execution.precision} {execution.lowered}"
    for split, source in execution.sources.items():
        if split in CACHED_SPLITS:
            views = repr((recipe.data.augment, recipe.seed)) if source.views else ""
            keys[split] = store_key(line, _row_names(source), weights, about + views)
    return keys


def fill_stores(recipe: Recipe, execution: Execution, quiet: bool, between: Callable[[], None] = lambda: None) -> int:
    """Open the stores that exist and make those that do not. Returns the rows for which the prefix had to be run.

    ``between`` is called after each batch and may raise. Whatever ends the process before a store is whole, the next call
    goes on with the batches that are missing. A batch of which one row is missing is run whole, so that every row is always
    computed in the same company: the store is bit for bit what it would be without the interruption.
    """
    line = execution.line
    assert line is not None, "fill_stores needs a frost line"
    ran = 0
    for split, key in _keys(recipe, execution).items():
        source = execution.sources[split]
        offsets = _offsets(source)
        store = open_store(key, line.border, len(offsets) - 1, offsets)
        if store is None:
            store = create_store(key, line.border, len(offsets) - 1, offsets, recipe.plan.cache_limit_gb * 1e9)
            try:
                ran += _fill(execution, split, store, quiet, between)
                store.finish({"split": split, "rows": source.rows})
            except BaseException:
                store.leave()
                raise
        execution.stores[split] = store
    return ran


def _fill(execution: Execution, split: str, store: PrefixStore, quiet: bool, between: Callable[[], None]) -> int:
    source, there = execution.sources[split], store.stored().numpy()
    batches = plain_batches(source.rows, prefix_rows(source), source.lengths)
    views = range(source.views or 1)
    missing = {view: [rows for rows in batches if not there[view * source.rows + rows].all()] for view in views}
    count, total = sum(len(rows) for of_view in missing.values() for rows in of_view), len(there)
    if count < total:
        before, rows = (f"{number:,}".replace(",", " ") for number in (total - count, total))
        execution.say(f"frozen part, {split}: {before} of {rows} rows were stored before")
    if store.lock is None:
        execution.say(f"frozen part, {split}: another process stores the same rows; this one makes a copy, kept only once it is whole")
    with progress(total=total, label=f"frozen part, {split}", quiet=quiet) as bar:
        bar.update(total - count)
        for view, of_view in missing.items():
            for batch in load(source.encode, of_view, view if source.views else None, execution.workers):
                store.write(stored_at(batch.rows, source, view), execution.prefix(batch))
                bar.update(len(batch.rows))
                between()
    return count


def _row_names(source: SplitSource) -> list[str]:
    """The hashes of the rows' contents; a block of several documents is named by its tokens."""
    if source.schema.task != "causal-lm":
        return source.table["id"].to_pylist()
    blocks = (source.encode(np.array([row]), None).inputs["input_ids"].cpu().numpy() for row in range(source.rows))
    return [hashlib.blake2b(block.tobytes(), digest_size=20).hexdigest() for block in blocks]


def _preprocess_key(card: Card, data: DataRecipe) -> str:
    """All that makes a row's inputs, beside the row."""
    text = repr(sorted(card.preprocess.to_dict().items()))
    if isinstance(card.preprocess, TextPreprocess):
        tokenizer = card.preprocess.tokenizer
        text += tokenizer.backend_tokenizer.to_str() + repr((tokenizer.chat_template, data.prompt, data.too_long))
    return text
