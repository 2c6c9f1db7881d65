"""checkpoint_activations: blocks that keep their input only and are computed once more in the backward pass (kernels/recompute.py).

Condition: the predicted peak is above the free memory even for the fewest rows that can be computed at a time, or the recipe asks for
it. Cost: another forward pass of these blocks. Of all sets of blocks that free enough, the one that costs the least time is taken, a
knapsack (Beaumont et al. 2019, "Optimal checkpointing for heterogeneous chains", without its nesting). Exact, bit for bit: the second
pass has the random state and the precision of the first.

Left as they are: blocks in which a batch norm learns (it would count each batch twice), blocks that write to a buffer or to what they
are handed, and blocks that the frost line runs through.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from frostline.device import wait
from frostline.models.model import Model
from frostline.plan.decision import Decision
from frostline.plan.execution import Execution
from frostline.plan.frost_line import FrostLine, preserved
from frostline.plan.passes.micro_batch import depends_on_the_batch, learning_batch_norm
from frostline.plan.probe import Loss, Probe, heaviest_rows
from frostline.recipe import Recipe

_UNITS = 500
"""Into how many units the bytes that are needed are divided, each block's share rounded down."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """What computing one block again would free, and what it would take."""

    saved: int
    """Bytes that it keeps for the backward pass."""
    kept: int
    """Bytes of what it is handed, which stay."""
    seconds: float
    """Of its forward pass."""


def propose(
    recipe: Recipe, execution: Execution, loss: Loss, measured: Probe, peak: Callable[[Probe], int], room: int
) -> tuple[Decision | None, Probe]:
    """Choose the blocks; returns the probe with what then stays in memory and how long a step then takes.

    ``peak``: bytes, by a probe's figures; ``room``: most bytes. No decision where the run fits without, or nothing can be done.
    """
    wish = recipe.plan.checkpoint_activations
    if wish == "off":
        return None, measured
    fewest = measured.batch if depends_on_the_batch(recipe, execution) else min(recipe.plan.micro_batch or 1, measured.batch)
    missing = peak(measured.of_rows(fewest)) - room
    if wish == "auto" and missing <= 0:
        return None, measured
    if not (names := can_recompute(execution.model, execution.line)):
        return Decision(what="checkpoint_activations", on=False, why="no block could be computed again by itself"), measured
    blocks = weigh(execution, loss, measured, names)
    if not blocks:
        return Decision(what="checkpoint_activations", on=False, why="every block writes to its inputs or buffers"), measured
    largest = max(block.saved for block in blocks.values())
    share = fewest / measured.batch
    freed = {name: block.saved - block.kept for name, block in blocks.items() if block.saved > block.kept}
    needed = int(missing / share) + largest if wish == "auto" else sum(freed.values())
    chosen = cheapest({name: blocks[name].seconds for name in freed}, freed, needed)
    if not chosen:
        return Decision(what="checkpoint_activations", on=False, why="the blocks keep no more than they are handed"), measured
    execution.recomputed = chosen
    saved, seconds = sum(freed[name] for name in chosen) - largest, sum(blocks[name].seconds for name in chosen)
    why = f"{len(chosen)} of {len(names)} blocks keep {max(0, saved) / 1e9:.2f} GB less of a batch; "
    why += "the recipe asks for it" if wish == "on" else f"{missing / 1e9:.2f} GB are missing"
    decision = Decision(
        what="checkpoint_activations", on=True, why=why, costs=f"{seconds:.2f} s a batch", settings={"blocks": chosen}
    )  # fmt: skip
    kept = max(0, measured.saved_bytes - saved)  # beside which gradients count, that were made while more was freed
    return decision, replace(measured, saved_bytes=kept, step=measured.step + seconds, has_gradients=False)


def can_recompute(model: Model, line: FrostLine | None) -> list[str]:
    """The blocks, by their names, that may be computed a second time by themselves."""
    names = [name for name in dict.fromkeys(model.blocks) if line is None or not line.touches(name)]
    return [name for name in names if learning_batch_norm(model.module.get_submodule(name)) is None]


def weigh(execution: Execution, loss: Loss, measured: Probe, names: list[str]) -> dict[str, Block]:
    """What each block keeps of the heaviest batch, and its seconds in a usual one: its shares of what the probe has found for all.

    Blocks that write to a buffer or to what they are handed, which a second pass would find changed, are left out.
    """
    module, batch = execution.model.module, heaviest_rows(execution, measured.batch)
    found: dict[int, tuple[str, int]] = {}  # each storage once: the block that kept it first, "" for none, and its bytes
    handed, seconds, inside = dict.fromkeys(names, 0), dict.fromkeys(names, 0.0), [""]
    parameters = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    read: dict[str, list[tuple[torch.Tensor, int]]] = {}
    writing: set[str] = set()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            found.setdefault(storage.data_ptr(), (inside[-1], storage.nbytes()))
        return tensor.detach()  # as in plan/probe.py

    def enter(name: str, part: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = [value for value in (*args, *kwargs.values(), *part.buffers()) if isinstance(value, torch.Tensor)]
        read[name] = [(tensor, tensor._version) for tensor in tensors]
        inside.append(name)
        handed[name] += sum(value.nbytes for value in args if isinstance(value, torch.Tensor))
        hidden = kwargs.get("hidden_states")
        handed[name] += hidden.nbytes if isinstance(hidden, torch.Tensor) else 0
        wait()
        seconds[name] -= time.perf_counter()

    def leave(name: str, *_: Any) -> None:
        wait()
        seconds[name] += time.perf_counter()
        inside.pop()
        if any(tensor._version != version for tensor, version in read.pop(name)):
            writing.add(name)

    with preserved(module):
        handles = []
        for name in names:
            part = module.get_submodule(name)
            handles.append(part.register_forward_pre_hook(functools.partial(enter, name), with_kwargs=True))
            handles.append(part.register_forward_hook(functools.partial(leave, name)))
        began = time.perf_counter()
        try:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                result = loss(execution.forward(batch), batch.labels)[0]
        finally:
            for handle in handles:
                handle.remove()
    wait()
    whole = time.perf_counter() - began
    del result
    kept = dict.fromkeys(["", *names], 0)
    for name, size in found.values():
        kept[name] += size
    scale = measured.saved_bytes / max(1, sum(kept.values()))
    return {
        name: Block(saved=int(scale * kept[name]), kept=int(scale * handed[name]), seconds=measured.forward * seconds[name] / whole)
        for name in names
        if name not in writing
    }


def cheapest(seconds: dict[str, float], freed: dict[str, int], needed: int) -> list[str]:
    """The names whose ``freed`` bytes are together ``needed`` or more at the fewest seconds, in their order; all where that is too few.

    >>> cheapest({"a": 3.0, "b": 2.0, "c": 2.0}, {"a": 30, "b": 10, "c": 25}, 34)
    ['b', 'c']
    """
    if sum(freed.values()) <= needed:
        return list(freed)
    unit = max(1, needed) / _UNITS
    best: list[tuple[float, tuple[str, ...]] | None] = [(0.0, ()), *[None] * _UNITS]  # for each number of units, or more
    for name, size in freed.items():
        units = int(size / unit)
        for have in range(_UNITS, -1, -1):
            if (before := best[have]) is None or not units:
                continue
            reached, cost = min(_UNITS, have + units), before[0] + seconds[name]
            if (known := best[reached]) is None or cost < known[0]:
                best[reached] = (cost, (*before[1], name))
    return list(found[1]) if (found := best[_UNITS]) is not None else list(freed)
