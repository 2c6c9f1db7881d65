"""What plan.quality=fast costs in quality: the loss and the task's own metric on held-out rows after training, beside exact.

    python benchmarks/fast_quality.py [JOB …] [--seeds N] [--quick]

Real inputs and pretrained weights: Fashion-MNIST into EfficientNet-Lite0 (a new head), docstrings of eight Python modules into MiniLM
(a new head; LoRA), chats made of such docstrings into SmolLM2-135M (LoRA). Each job is trained in fp32 with plan.quality=exact, and
with fast, which may take bf16 and int8, by the same seeds, each in a process of its own with an empty cache. The test split is scored
by the saved model in fp32, so that what is compared is what was learned; the epoch with the least validation loss is kept. The goal
is 1 % for both; a metric counts whole rows, of which the table says how many there are. The short run with LoRA in all layers of
MiniLM differs from seed to seed by more than that, so it is made with three, and means are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness
import inputs
import planner

LORA = {"adapt.method": "lora", "adapt.rank": 16, "adapt.alpha": 32.0, "adapt.targets": ["all-linear"]}
JOBS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], str]] = {
    # name: input, options of prepare, model, options of plan, metric
    "lite0-head": (
        "clothes", {"limit": 7000, "size": 96, "val": 0.1, "test_share": 0.3}, "efficientnet-lite0",
        {"adapt": "head", "epochs": 5, "batch": 32, "lr": 1e-3}, "accuracy",
    ),
    "minilm-head": (
        "docstrings", {"max_length": 64, "test_share": 0.3}, "minilm",
        {"adapt": "head", "epochs": 10, "batch": 32, "lr": 3e-3}, "accuracy",
    ),
    "minilm-lora": (
        "docstrings", {"max_length": 64, "test_share": 0.3}, "minilm", {**LORA, "epochs": 3, "batch": 32, "lr": 1e-3}, "accuracy",
    ),
    "smollm2-lora": (
        "chat", {"task": "chat", "max_length": 256, "limit": 160, "test_share": 0.4}, "smollm2",
        {**LORA, "epochs": 2, "batch": 8, "lr": 5e-4, "schedule": "one-cycle"}, "token_accuracy",
    ),
}  # fmt: skip
SEEDS = {"minilm-lora": 3}
GOAL = "both within 1 %"


def side(name: str, source: str, quality: str, seed: str, quick: str) -> None:
    """One run; prints one JSON line."""
    import frostline as fl

    _, of_data, model, of_plan, metric = JOBS[name]
    if quick == "quick":
        of_data, of_plan = {**of_data, "limit": 60}, {**of_plan, "epochs": 1}
    data = fl.prepare(source, seed=0, **of_data)
    loaded = fl.load(inputs.packaged(model), data=data, seed=int(seed))
    with tempfile.TemporaryDirectory() as out:
        plan = fl.plan(loaded, data, best_by="loss", quality=quality, out=f"{out}/run", **of_plan)
        run = fl.train(plan, quiet=True)
        report, seconds = fl.evaluate(run, written=0), run.cost["actual"]["seconds"]
    lowered = [made.what for made in plan.decisions if made.on and made.what in ("bf16", "lower_frozen")]
    loss = report.metrics["log_loss" if "log_loss" in report.metrics else "loss"]
    print(json.dumps({"loss": loss, "metric": report.metrics[metric], "rows": report.rows, "seconds": seconds, "on": lowered}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=", ".join(JOBS))
    parser.add_argument("--seeds", type=int, help="of each job; one when not given, of minilm-lora three")
    parser.add_argument("--quick", action="store_true", help="60 rows and one epoch: to see that every job works")
    parser.add_argument("--side", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side(*options.side)
        return
    if unknown := [name for name in options.jobs if name not in JOBS]:
        parser.error(f"unknown job {unknown[0]!r}, expected one of {', '.join(JOBS)}")
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as place:
        made = {"clothes": inputs.fashion_mnist(Path(place)), "docstrings": inputs.docstrings(Path(place))}
        made["chat"] = planner.chat(made["docstrings"], Path(place) / "chat.jsonl")
        for name in options.jobs or JOBS:
            runs: dict[str, list[dict[str, Any]]] = {"exact": [], "fast": []}
            for seed in range(options.seeds or SEEDS.get(name, 1)):
                for quality, found in runs.items():
                    words = ["--side", name, str(made[JOBS[name][0]]), quality, str(seed), "quick" if options.quick else "whole"]
                    found.append(harness.last_json_line([sys.executable, __file__, *words]))
            rows.append(row(name, runs))
            print(*rows[-1], flush=True)
    of_loss, of_metric = ["loss, exact", "loss, fast", "off"], ["metric", "exact", "fast", "off"]
    headers = ["", "exact s", "fast s", *of_loss, *of_metric, "test rows", "seeds", "fast took"]
    harness.publish("fast_quality", headers, rows, goal=GOAL)


def row(name: str, runs: dict[str, list[dict[str, Any]]]) -> list[object]:
    """One line of the table: means over the seeds."""
    mean = {
        quality: {what: statistics.fmean(run[what] for run in found) for what in ("seconds", "loss", "metric")}
        for quality, found in runs.items()
    }
    exact, fast = mean["exact"], mean["fast"]
    return [
        name, f"{exact['seconds']:.1f}", f"{fast['seconds']:.1f}",
        f"{exact['loss']:.4f}", f"{fast['loss']:.4f}", f"{fast['loss'] / exact['loss'] - 1:+.1%}", JOBS[name][4],
        f"{exact['metric']:.4f}", f"{fast['metric']:.4f}", f"{fast['metric'] / max(exact['metric'], 1e-9) - 1:+.1%}",
        runs["fast"][0]["rows"], len(runs["fast"]), ", ".join(runs["fast"][0]["on"]) or "nothing",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
