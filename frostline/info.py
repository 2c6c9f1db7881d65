"""What is installed, and what this machine can do: its processor, and the GPU that training would take."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from frostline import __version__
from frostline.device import CPU, choose
from frostline.plan.machine import machine, memory_limit
from frostline.plan.rates import as_table, product_rates


def info(*, calibrate: bool = False) -> dict[str, Any]:
    """Versions, and of the processor the fields of :class:`~frostline.plan.machine.Machine`, its free memory and the rates of its
    products; of a GPU the same under ``gpu``. ``calibrate``: measured anew, in some seconds each."""
    import transformers

    gpu = choose("auto")
    versions = {"frostline": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return {**versions, **_of(CPU, calibrate), **({"gpu": _of(gpu, calibrate)} if gpu.type != "cpu" else {})}


def as_text(content: dict[str, Any]) -> str:
    """The same for people."""
    parts = [content, content["gpu"]] if "gpu" in content else [content]
    return "\n\n".join(f"{_lines(part)}\n\n{as_table(part['products'])}" for part in parts)


def _of(device: torch.device, calibrate: bool) -> dict[str, Any]:
    measured = asdict(machine(device, again=calibrate))
    return {"free_memory_gb": memory_limit(device) / 1e9, **measured, "products": product_rates(device, again=calibrate)}


def _lines(part: dict[str, Any]) -> str:
    values = {name: value for name, value in part.items() if name not in ("products", "gpu")}
    return "\n".join(f"{name:<22} {_short(value)}" for name, value in values.items())


def _short(value: object) -> object:
    return value if not isinstance(value, float) else f"{value:.1f}" if value >= 1 else f"{value:.2g}"
