"""offload: frozen weights that are elsewhere than where they are computed with, where memory would not do otherwise.

On the CPU they lie in files that are mapped into memory (kernels/mapped_weights.py), and the system takes them back as it needs.
Condition: the predicted peak is above the free memory with all that ``checkpoint_activations`` and ``micro_batch`` can do; room on the
disk. Cost: where the weights that a step reads do not fit beside the rest, they are read from the disk in each pass, forward and backward.
Weights that are run once and stored, or multiplied by in a form of their own, are not read again.

For a GPU those of blocks stay in the host's memory, and are brought there while their block is computed (kernels/hosted_weights.py).
Condition: the weights and what the optimiser keeps of those that learn are more than nine tenths of the GPU's free memory; so many blocks
as are too many. Cost: they are brought twice in a step, and their blocks are computed once more in the backward pass.

Both where the recipe asks for it, and both exact, bit for bit.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from frostline.device import bring, device_of
from frostline.files import private_folder
from frostline.kernels.hosted_weights import hosted, left_at_home
from frostline.kernels.mapped_weights import frozen_weights, map_weights
from frostline.models.model import Model
from frostline.plan.cost import Work, state_bytes
from frostline.plan.decision import Decision
from frostline.plan.execution import Execution
from frostline.plan.machine import memory_limit
from frostline.plan.passes.checkpoint_activations import can_recompute
from frostline.recipe import Recipe

_OF_A_GPU = 0.9
"""Of its free memory, that weights and the optimiser may take."""


@dataclass(frozen=True, kw_only=True)
class Offloaded:
    """What the pass has done."""

    decision: Decision | None = None
    bytes: int = 0
    """In files: they count as memory only as long as there is enough."""
    seconds: float = 0.0
    """Of reading, in a pass through all that is read again."""


def place(recipe: Recipe, model: Model, device: torch.device, forced: Sequence[Decision] | None = None) -> Decision | None:
    """Bring the network to the device; None where all of it is there. The blocks whose weights are not are the decision's settings.

    ``forced``: the decisions of the run that is resumed, which are taken as they are.
    """
    if device.type == "cpu":
        names: list[str] = []
    elif forced is not None:
        names = next((one.settings.get("blocks", []) for one in forced if one.what == "offload"), [])
    else:
        names = _too_many(recipe, model, memory_limit(device))
    sizes = _hosted_bytes(model.module, names)
    with left_at_home(model.module, names, pin=device.type == "cuda"):
        bring(model.module, device)
    if not names:
        return None
    why = f"{sum(sizes.values()) / 1e9:.2f} GB of frozen weights of {len(names)} blocks stay in the host's memory"
    return Decision(what="offload", on=True, why=why, costs="brought twice in a step", settings={"blocks": names})


def _too_many(recipe: Recipe, model: Model, room: int) -> list[str]:
    """The first blocks, as many as have to stay away."""
    wish = recipe.plan.offload
    sizes = {name: size for name, size in _hosted_bytes(model.module, can_recompute(model, None)).items() if size}
    if wish == "off" or not sizes or recipe.adapt.method == "gradual":  # which will learn, on the GPU
        return []
    if wish == "on":
        return list(sizes)
    learning = sum(parameter.numel() for parameter in model.module.parameters() if parameter.requires_grad)
    state = learning * 4 + state_bytes(learning, recipe.train.optimizer, recipe.train.ema is not None)
    missing = state + sum(tensor.nbytes for tensor in model.module.state_dict().values()) - _OF_A_GPU * room
    if missing <= 0:
        return []
    missing += 2 * max(sizes.values())  # what is computed, and what autograd still holds of the block before
    freed = itertools.accumulate(sizes.values(), initial=0)
    return [name for name, before in zip(sizes, freed, strict=False) if before < missing]


def _hosted_bytes(module: nn.Module, names: Sequence[str]) -> dict[str, int]:
    return {name: sum({id(one): one.nbytes for _, _, one in hosted(module.get_submodule(name))}.values()) for name in names}


def propose(recipe: Recipe, execution: Execution, missing: int) -> Offloaded:
    """On the CPU, move the frozen weights into files; ``missing``: bytes that are needed beyond those that are free."""
    wish = recipe.plan.offload
    if wish == "off" or (wish == "auto" and missing <= 0) or device_of(execution.model.module).type != "cpu":
        return Offloaded()
    off = Decision(what="offload", on=False, why="nothing frozen is large enough")
    if not (weights := frozen_weights(execution.model.module)):
        return Offloaded(decision=off if wish == "on" else None)
    size = sum(tensor.nbytes for tensor in weights.values())
    try:
        free = shutil.disk_usage(private_folder("mapped")).free
        if size > free:
            raise OSError(f"it takes {size / 1e9:.2f} GB of disk, and {free / 1e9:.2f} GB are free")
        rate = map_weights(list(weights.values()))
    except OSError as error:
        return Offloaded(decision=replace(off, why=str(error)))
    again = sum(tensor.nbytes for tensor in read_again(execution, weights).values())
    reading = missing > size - again  # else what is not read again makes room for what is
    why = f"{size / 1e9:.2f} GB of frozen weights lie in files; "
    why += f"{missing / 1e9:.2f} GB of memory are missing" if missing > 0 else "the recipe asks for it"
    each = again / rate if reading else 0.0
    costs = f"{again / 1e9:.2f} GB read in each pass, {rate / 1e9:.1f} GB/s" if reading else "nothing is read again"
    return Offloaded(decision=Decision(what="offload", on=True, why=why, costs=costs), bytes=size, seconds=each)


def seconds(work: Work, offloaded: Offloaded) -> dict[str, float]:
    """Of the whole run: forward and backward for each training batch, forward for each validation batch."""
    passes = work.epochs * (2 * work.train_rows + work.validation_rows) / work.batch
    return {"weights from disk": passes * offloaded.seconds} if offloaded.seconds else {}


def read_again(execution: Execution, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those that steps compute with: not what stands before the line, nor what is multiplied by in a form of its own."""
    before = () if execution.line is None else tuple(execution.line.names)
    apart = (*before, *execution.products)
    return {name: tensor for name, tensor in weights.items() if not any(name.startswith(f"{part}.") for part in apart)}
