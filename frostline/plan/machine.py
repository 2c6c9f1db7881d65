"""What this machine can do, measured once and kept: floating-point rates, memory and disk bandwidth, free memory.

Nothing is assumed from the processor's name. Of two machines that call themselves the same, one multiplied fp32 twice as
fast as bf16 and the other the reverse.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from frostline.device import CPU, allocated_bytes, available_bytes, name_of, use, wait
from frostline.files import cache_folder, write_atomically
from frostline.plan.container import container_room

_BUDGET = 0.1
"""Seconds for each rate."""
_SHORT = 0.25
"""Seconds of what is not timed once alone."""
_GPU_SIDE = 4096
"""Of the matrices that a GPU's rate is measured with: smaller ones are multiplied in less time than it takes to ask for it."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Measured rates. GFLOP/s count a multiplication and an addition as two."""

    name: str
    cores: int
    fp32_gflops: float
    bf16_gflops: float
    memory_gb_per_s: float
    """Reading and writing one large array."""
    disk_write_gb_per_s: float
    disk_read_gb_per_s: float
    disk_sync_seconds: float
    """Until a small file is on the disk."""

    @property
    def fastest_precision(self) -> str:
        """``bf16`` where it is at least a quarter faster than fp32, else ``fp32``."""
        return "bf16" if self.bf16_gflops > 1.25 * self.fp32_gflops else "fp32"


def machine(device: torch.device = CPU, *, again: bool = False) -> Machine:
    """The calibration of this machine, from the cache or, the first time (or ``again``), measured in about a second.

    ``device``: where networks are computed; of a GPU the products and the memory are its own, cores and disk the machine's.
    """
    path = cache_folder() / f"machine-{fingerprint(device)}.json"
    if not again:
        try:
            return Machine(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            pass  # not measured yet, or by an older version: measure
    measured = _measure() if device.type == "cpu" else _measure_gpu(device, machine())
    write_atomically(path, json.dumps(asdict(measured), indent=1).encode())
    return measured


def memory_limit(device: torch.device = CPU) -> int:
    """Bytes that this process may use: free memory, or less where a container's limit (cgroup) is lower; of a GPU, of its memory."""
    if device.type != "cpu":
        return available_bytes(device)
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo") as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass  # not Linux: physical memory is the best that is known
    room = container_room()
    return free if room is None else min(free, room)


def resident_bytes(device: torch.device = CPU) -> int:
    """Resident memory of this process now; of a GPU, what tensors take of its memory."""
    if device.type != "cpu":
        return allocated_bytes(device)
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def fingerprint(device: torch.device = CPU) -> str:
    """Of what the measurements depend on: processor, cores, threads, PyTorch, and the GPU."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = sorted({line for line in file if line.startswith(("model name", "flags", "cpu MHz")) and "MHz" not in line})
    except OSError:
        lines = [platform.processor()]
    text = "".join(lines) + f"{os.cpu_count()} {torch.get_num_threads()} {torch.__version__} {torch.cuda.is_available()}"
    text += f" {name_of(device)}" if device.type != "cpu" else ""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _measure() -> Machine:
    write, read, sync = _disk_rates()
    return Machine(
        name=f"{platform.machine()} {platform.processor() or 'processor'}, {torch.get_num_threads()} threads",
        cores=os.cpu_count() or 1,
        fp32_gflops=_gemm_rate(torch.float32),
        bf16_gflops=_gemm_rate(torch.bfloat16),
        memory_gb_per_s=_memory_rate(),
        disk_write_gb_per_s=write,
        disk_read_gb_per_s=read,
        disk_sync_seconds=sync,
    )


def _measure_gpu(device: torch.device, host: Machine) -> Machine:
    use(device)
    with torch.device(device):
        try:
            bf16 = _gemm_rate(torch.bfloat16, _GPU_SIDE)
        except (RuntimeError, TypeError):  # an older one does not have it
            bf16 = 0.0
        fp32, memory = _gemm_rate(torch.float32, _GPU_SIDE), _memory_rate()
    return replace(host, name=name_of(device), fp32_gflops=fp32, bf16_gflops=bf16, memory_gb_per_s=memory)


def best_seconds(work: Callable[[], object], budget: float = 0.3, most: int = 1000) -> float:
    """The shortest of the times that fit in ``budget`` seconds (one at least, ``most`` at most), after one run to warm up.

    What takes far longer than the budget is run once: what a first run costs beside its work hardly shows there.
    """
    return best_seconds_each([work], budget, most)[0]


def best_seconds_each(works: Sequence[Callable[[], object]], budget: float = 0.3, most: int = 1000, *, warm: bool = False) -> list[float]:
    """The same of several, in turns: a machine whose speed wanders would favour one of two that are timed one after the other."""
    return [min(times) for times in zip(*_rounds(works, budget, most, 20 * budget, warm))]


def usual_seconds(work: Callable[[], object], budget: float = 0.6, most: int = 10, *, once: float = 1.2, warm: bool = False) -> float:
    """The median of the times that fit in ``budget`` seconds, after one run to warm up where it is not ``warm``: what one of many will
    take, for a prediction. A mean would let a single pause of the machine stand for them all. What takes more than ``once`` seconds is
    run once: let something like it have run before."""
    times = [seconds for (seconds,) in _rounds([work], budget, most, once, warm)]
    if len(times) == 1 and times[0] < min(_SHORT, once):  # the first ones still page in what a step frees and takes again
        times.append(_seconds(work))
    return statistics.median_low(times)


def _rounds(works: Sequence[Callable[[], object]], budget: float, most: int, once: float, warm: bool) -> list[list[float]]:
    first = [_seconds(work) for work in works]
    if sum(first) > once * len(works):
        return [first]
    rounds: list[list[float]] = [first] if warm else []
    while sum(map(sum, rounds)) < budget * len(works) and len(rounds) < most:
        rounds.append([_seconds(work) for work in works])
    return rounds


def _seconds(work: Callable[[], object]) -> float:
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def _gemm_rate(dtype: torch.dtype, side: int = 768) -> float:
    a, b = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
    with torch.inference_mode():
        return 2 * side**3 / best_seconds(lambda: a @ b, _BUDGET) / 1e9


def _memory_rate() -> float:
    source = torch.ones(16 * 2**20)  # 64 MB: beyond most caches
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_seconds(lambda: target.copy_(source), _BUDGET) / 1e9


def _disk_rates(size: int = 64 * 2**20) -> tuple[float, float, float]:
    """Writing with fsync, reading back, and the seconds of an fsync; the read comes from the page cache, as a store's that was just
    written."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    content = os.urandom(2**20) * (size // 2**20)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        start = time.perf_counter()
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        wrote = time.perf_counter() - start

        def sync() -> None:
            file.write(b"small")
            file.flush()
            os.fsync(file.fileno())

        synced = best_seconds(sync, _BUDGET)
        start = time.perf_counter()
        with open(file.name, "rb") as again:
            again.read()
        return size / wrote / 1e9, size / (time.perf_counter() - start) / 1e9, synced
