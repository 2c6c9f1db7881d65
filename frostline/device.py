"""Where a network is computed: by the processor, or by a GPU that PyTorch finds (CUDA, or Apple's MPS).

The network itself says it (:func:`device_of`): whatever is brought to it goes there, and whatever becomes a file, a hash or an array
comes back. What is begun on a GPU is done later, so a clock waits (:func:`wait`).

No GPU has run this yet. The tests use a device of PyTorch's that is none, whose memory is the host's (tests/stand_in_device.py): it shows
that the numbers are those of the processor, and that no operation mixes the two. How fast a GPU is, its counts of memory, bf16, int8 and
fp8 by its own products, its running out of memory, copies that do not wait, and all that MPS lacks (float64) were not seen.
"""

from __future__ import annotations

import platform
from collections.abc import Callable

import torch
from torch import Tensor, nn

from frostline.errors import RecipeError

CPU = torch.device("cpu")
_KINDS = ("cuda", "mps")
_in_use: set[torch.device] = set()
"""GPUs that :func:`wait` waits for."""


def accelerator() -> torch.device | None:
    """The GPU that PyTorch finds, of those that are known here."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is None or found.type not in _KINDS:
        return None
    return torch.device(found.type, torch.accelerator.current_device_index())


def missing(wish: str) -> str | None:
    """Why the recipe's ``train.device`` cannot be had; None where it can."""
    found = accelerator()
    if wish in ("auto", "cpu") or (found is not None and found.type == wish):
        return None
    there = "no GPU" if found is None else f"{found.type!r} alone"
    return f"train.device got {wish!r}, expected a device that is there: PyTorch {torch.__version__} finds {there}. Use: train.device=auto"


def choose(wish: str) -> torch.device:
    """The device that the recipe asks for; with ``auto`` a GPU where there is one. Raises RecipeError where it is not there."""
    if reason := missing(wish):
        raise RecipeError(reason)
    return CPU if wish == "cpu" else accelerator() or CPU


def device_of(module: nn.Module) -> torch.device:
    """Where a network is computed: where what learns is, for frozen weights may be brought there only as they are needed."""
    first = next((parameter for parameter in module.parameters()), None)
    return next((parameter.device for parameter in module.parameters() if parameter.requires_grad), CPU if first is None else first.device)


def bring(module: nn.Module, device: torch.device) -> None:
    """Put a network there, in place."""
    module.to(device)
    use(device)


def use(device: torch.device) -> None:
    """Let :func:`wait` wait for it."""
    if device.type != "cpu":
        _in_use.add(device)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """It there; itself where it is there already. To CUDA the copy does not hold up the thread, and what follows waits for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    if device.type == "mps" and tensor.dtype == torch.float64:  # which it does not have
        tensor = tensor.float()
    return tensor.to(device)


def finest(tensor: Tensor) -> Tensor:
    """In float64, for sums; float32 on MPS, which has no other."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def wait() -> None:
    """Return when all that was begun on a GPU is done; at once where none is in use."""
    for device in _in_use:
        torch.accelerator.synchronize(device)


def name_of(device: torch.device) -> str:
    """What a GPU calls itself, for people and for telling two apart."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} of {platform.processor() or platform.machine()}"


def capability(device: torch.device) -> tuple[int, int]:
    """Which kinds of numbers a CUDA GPU multiplies, as NVIDIA counts: (7, 5) int8, (8, 9) fp8, (9, 0) Hopper. (0, 0) of all else, AMD's
    among them, whose numbers mean something else."""
    if device.type != "cuda" or torch.version.hip is not None:
        return 0, 0
    return torch.cuda.get_device_capability(device)


def allocated_bytes(device: torch.device) -> int:
    """Memory of a GPU that tensors of this process take."""
    return torch.mps.current_allocated_memory() if device.type == "mps" else int(torch.accelerator.memory_allocated(device))


def available_bytes(device: torch.device) -> int:
    """Memory of a GPU that new tensors of this process may take: what is free, and what it has taken and does not use."""
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else torch.accelerator.get_memory_info(device)[0]
    return int(free + torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device))


def reset_peak(device: torch.device) -> None:
    """Let :func:`peak_bytes` begin anew. MPS keeps no peak."""
    if device.type != "mps":
        torch.accelerator.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Most memory of a GPU that tensors took at once; on MPS what was taken from the system, which is given back late."""
    return torch.mps.driver_allocated_memory() if device.type == "mps" else int(torch.accelerator.max_memory_allocated(device))


def bytes_needed(run: Callable[[], object], device: torch.device) -> int | None:
    """Most bytes that lived at once on a GPU while this ran, beyond those that lived before; None where nobody counts (MPS)."""
    if device.type == "mps":
        return None
    before = allocated_bytes(device)
    reset_peak(device)
    run()
    return peak_bytes(device) - before
