"""The machine that a plan is made for: this one, a named accelerator, or so many cores and so much memory.

Named machines have their vendors' dense peak rates (no sparsity) and memory bandwidths, which no training reaches: half of the
peak is counted on (``efficiency``). This machine's rates are measured, and products reach most of them, so they are counted whole.

The figures are those of NVIDIA's and AMD's data sheets as they are commonly given. The sheets themselves were not read: sizes,
bandwidths and fp32 rates were compared with public lists of specifications (which differ by 1 % for the fp32 rate of MI300X), bf16
rates with the tables of peak rates in public training code. Where a sheet gives a rate with sparsity, the dense one is half of it.
RTX cards: bf16 with float32 accumulation. A100, H100, H200 and B200 are the SXM modules; PCIe cards of these names are slower.
Memory counts 10⁹ bytes to a GB.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import asdict, dataclass
from typing import Any

from frostline.device import choose
from frostline.errors import RecipeError
from frostline.plan.machine import Machine, machine, memory_limit, resident_bytes

EFFICIENCY = 0.5


@dataclass(frozen=True, kw_only=True)
class Target:
    """Rates at their peak or as measured; multiply by ``efficiency`` for what a run can count on."""

    name: str
    device: str
    """``gpu`` or ``cpu``."""
    cores: int | None
    """Of a processor."""
    memory_bytes: int
    gflops: dict[str, float]
    """``fp32``, ``bf16`` → 10⁹ operations a second; a missing type is not supported."""
    memory_gb_per_s: float
    efficiency: float

    def rate(self, precision: str) -> float:
        """FLOPs a second that a run in ``precision`` can count on; RecipeError for one that the machine does not have."""
        if precision not in self.gflops:
            known = ", ".join(self.gflops)
            raise RecipeError(f"train.precision got {precision!r}, expected one of {known} on {self.name}. Use: train.precision=fp32")
        return self.gflops[precision] * 1e9 * self.efficiency

    @property
    def bandwidth(self) -> float:
        """Bytes a second that a run can count on."""
        return self.memory_gb_per_s * 1e9 * self.efficiency

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


# GB of memory, 10¹² operations a second in fp32 (no TF32) and bf16 (None: not in hardware), GB a second
_NAMED: dict[str, tuple[float, float, float | None, float]] = {
    "t4": (16, 8.1, None, 320),
    "l4": (24, 30.3, 121, 300),
    "l40s": (48, 91.6, 362, 864),
    "a100-40gb": (40, 19.5, 312, 1555),
    "a100-80gb": (80, 19.5, 312, 2039),
    "h100": (80, 67, 989, 3350),
    "h200": (141, 67, 989, 4800),
    "b200": (180, 75, 2250, 7700),
    "mi300x": (192, 163.4, 1307, 5300),
    "rtx3090": (24, 35.6, 71, 936),
    "rtx4090": (24, 82.6, 165, 1008),
    "rtx5090": (32, 104.8, 209.5, 1792),
}
_ALSO = {"a100": "a100-80gb"}
_CORES = re.compile(r"(\d+)\s*cores?[\s,]+(\d+(?:\.\d+)?)\s*gb", re.IGNORECASE)


def parse_target(text: str) -> Target:
    """``h200``, ``a100-80gb``, ``rtx 4090`` …; ``this`` (its GPU, where there is one); or ``2 cores 24GB``, by this machine's
    measured rates a core.

    Raises RecipeError for anything else, with the nearest name.
    """
    if text.strip().lower() == "this":
        device = choose("auto")
        here, room = machine(device), memory_limit(device) + resident_bytes(device)
        return _processor("this", here, here.cores, room) if device.type == "cpu" else _own_gpu(here, room)
    if found := _CORES.fullmatch(text.strip()):
        cores, size = int(found[1]), float(found[2])
        if cores < 1 or size <= 0:
            raise RecipeError(f"--on got {text!r}, expected at least one core and some memory. Use: '2 cores 24GB'")
        return _processor(f"{cores} cores {size:g} GB", machine(), cores, int(size * 1e9))
    plain = {re.sub(r"[\s_-]", "", name): name for name in (*_NAMED, *_ALSO)}
    wanted = re.sub(r"[\s_-]", "", text.lower())
    if wanted not in plain:
        near = difflib.get_close_matches(wanted, plain, n=1)
        hint = f"Did you mean {plain[near[0]]!r}?" if near else "Use: this"
        raise RecipeError(f"--on got {text!r}, expected this, '2 cores 24GB', or one of {', '.join(_NAMED)}. {hint}")
    return _named(_ALSO.get(plain[wanted], plain[wanted]))


def named_targets() -> list[Target]:
    """All machines that are known by name."""
    return [_named(name) for name in _NAMED]


def _named(name: str) -> Target:
    size, fp32, bf16, bandwidth = _NAMED[name]
    return Target(
        name=name, device="gpu", cores=None, memory_bytes=int(size * 1e9), memory_gb_per_s=bandwidth, efficiency=EFFICIENCY,
        gflops={kind: 1000 * rate for kind, rate in {"fp32": fp32, "bf16": bf16}.items() if rate is not None},
    )  # fmt: skip


def _own_gpu(here: Machine, size: int) -> Target:
    rates = {"fp32": here.fp32_gflops} | ({"bf16": here.bf16_gflops} if here.bf16_gflops else {})
    return Target(
        name=f"this {here.name}", device="gpu", cores=None, memory_bytes=size, efficiency=1.0, gflops=rates,
        memory_gb_per_s=here.memory_gb_per_s,
    )  # fmt: skip


def _processor(name: str, here: Machine, cores: int, size: int) -> Target:
    share = cores / here.cores
    return Target(
        name=name, device="cpu", cores=cores, memory_bytes=size, efficiency=1.0,
        gflops={"fp32": here.fp32_gflops * share, "bf16": here.bf16_gflops * share},
        memory_gb_per_s=here.memory_gb_per_s * min(1.0, share),  # more cores do not widen this memory
    )  # fmt: skip
