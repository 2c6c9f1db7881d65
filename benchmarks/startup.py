"""How long `import frostline` and `frostline --help` take: the median of nine processes each. The goal is 0.3 s."""

from __future__ import annotations

import subprocess
import sys
import time

import harness


def seconds(arguments: list[str]) -> float:
    times = []
    for _ in range(9):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return harness.median(times)


def main() -> None:
    rows: list[list[object]] = [["python -c 'import frostline'", f"{seconds(['-c', 'import frostline']):.3f}"]]
    rows.append(["frostline --help", f"{seconds(['-m', 'frostline', '--help']):.3f}"])
    harness.publish("startup", ["", "seconds"], rows)


if __name__ == "__main__":
    main()
