"""What every benchmark shares: running a side in a process of its own, and the table with the date and the machine."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def machine_line() -> str:
    """The processor, its cores, and this machine's rates as Frostline measures them."""
    from frostline.plan.machine import machine

    name = platform.processor()
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as lines:
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    here = machine(again=True)
    return f"{name}, {os.cpu_count()} cores; fp32 {here.fp32_gflops:.0f}, bf16 {here.bf16_gflops:.0f} GFLOP/s"


def without_slow_bf16(sides: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The sides without those in bf16 where this machine multiplies fp32 faster, and a fact that says so: some take hours there."""
    from frostline.plan.machine import machine

    here = machine()
    if here.fastest_precision == "bf16":
        return sides, {}
    left = {name: side for name, side in sides.items() if "bf16" not in name}
    return left, {"left_out": f"bf16, which is slower on this machine ({here.bf16_gflops:.0f} GFLOP/s)"} if len(left) < len(sides) else {}


def last_json_line(command: list[str], cwd: Path | None = None, **environment: str) -> dict[str, Any]:
    """Run a command in a process of its own, with an empty Frostline cache, and read the last line that it prints."""
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            command, cwd=cwd, env={**os.environ, "FROSTLINE_CACHE": cache, **environment}, capture_output=True, text=True, check=False
        )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed ({done.returncode}):\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def median(values: list[float]) -> float:
    return statistics.median(values)


def publish(name: str, headers: list[str], rows: list[list[object]], **facts: Any) -> None:
    """Print the table, and write it with all facts to benchmarks/results/NAME.json, from which the README's figures come."""
    from frostline.terminal import table

    about = {"date": datetime.date.today().isoformat(), "machine": machine_line()}
    print(f"\n{name} · {about['date']} · {about['machine']}\n")
    print(table(headers, rows))
    for key, value in facts.items():
        print(f"{key}: {value}")
    RESULTS.mkdir(exist_ok=True)
    content = {**about, "headers": headers, "rows": rows, "facts": facts}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
