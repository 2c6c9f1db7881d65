"""How long `import frostline`, `frostline --help` and the plan of a model of 70 billion numbers take: the median of processes of their own.

    python benchmarks/startup.py

The plan is that of Llama-3-70B's config.json alone, without its weights, under LoRA and in full, for an H200; goals: 0.3 s for the
first two, 5 s and 1 GB for the plans.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness

LLAMA_70B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 80, "hidden_size": 8192,
    "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128_256,
    "max_position_embeddings": 8192, "tie_word_embeddings": False,
}  # fmt: skip


def row(name: str, arguments: list[str], repeat: int) -> list[object]:
    """One line of the table: the median of seconds, and the largest peak of resident memory."""
    times, peaks = [], []
    for _ in range(repeat):
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        times.append(time.perf_counter() - start)
        peaks.append(used.ru_maxrss / 2**20)
        if status:
            sys.exit(f"{name} failed ({os.waitstatus_to_exitcode(status)})")
    return [name, f"{harness.median(times):.3f}", f"{max(peaks):.2f}"]


def main() -> None:
    rows = [row("python -c 'import frostline'", ["-c", "import frostline"], 9), row("frostline --help", ["-m", "frostline", "--help"], 9)]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(LLAMA_70B), encoding="utf-8")
        for adapt in ("lora", "full"):
            words = ["-m", "frostline", "plan", "--model", str(config), "--on", "h200", "--adapt", adapt]
            rows.append(row(f"frostline plan --model llama-70b/config.json --on h200 --adapt {adapt}", words, 3))
    harness.publish("startup", ["", "seconds", "peak GB"], rows)


if __name__ == "__main__":
    main()
