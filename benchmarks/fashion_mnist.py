"""Fashion-MNIST: a small CNN from zero, and EfficientNet-Lite0 with its head tuned and fully tuned.

    python benchmarks/fashion_mnist.py [cnn head full]

The CNN learns from all 60 000 rows but those held out for validation, and is tested on the 10 000 test rows. EfficientNet is
tuned on 10 000 rows at 96 × 96, which is what two cores do in minutes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import harness
import inputs

import frostline as fl

RUNS: dict[str, tuple[dict, dict, dict]] = {
    # name: options of prepare, of load, of plan
    "cnn": (
        {"val": 0.05},
        {"name": "cnn", "width": 192, "depth": 3, "dropout": 0.2},
        {"adapt": "full", "epochs": 8, "batch": 64, "lr": 4e-3, "schedule": "one-cycle", "weight_decay": 0.02},
    ),
    "head": (
        {"limit": 12_000, "size": 96},
        {"name": "efficientnet-lite0"},
        {"adapt": "head", "epochs": 20, "batch": 64, "lr": 3e-3, "schedule": "cosine"},
    ),
    "full": (
        {"limit": 12_000, "size": 96},
        {"name": "efficientnet-lite0"},
        {"adapt": "full", "epochs": 3, "batch": 32, "lr": 1e-3, "schedule": "one-cycle"},
    ),
}


def run(name: str, source: Path, folder: Path) -> list[object]:
    """One row of the table."""
    of_data, of_model, of_plan = RUNS[name]
    data = fl.prepare(source, seed=0, **of_data)
    start = time.perf_counter()
    model = fl.load(data=data, **of_model)
    done = fl.train(fl.plan(model, data, out=str(folder / name), **of_plan))
    seconds = time.perf_counter() - start
    report = fl.evaluate(done)
    low, high = report.intervals["accuracy"]
    rows = data.splits["train"].num_rows
    peak = done.cost["actual"]["peak_bytes"] / 1e9
    return [name, rows, of_plan["epochs"], f"{seconds:.0f}", f"{report.metrics['accuracy']:.4f}", f"{low:.4f}–{high:.4f}", f"{peak:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(RUNS))
    wanted = parser.parse_args().names or list(RUNS)
    if unknown := sorted(set(wanted) - set(RUNS)):
        parser.error(f"{unknown[0]!r} is none of {', '.join(RUNS)}")
    with tempfile.TemporaryDirectory() as folder:
        source = inputs.fashion_mnist(Path(folder))
        rows = [run(name, source, Path(folder)) for name in wanted]
    harness.publish("fashion_mnist", ["", "training rows", "epochs", "seconds", "test accuracy", "95 % interval", "peak GB"], rows)


if __name__ == "__main__":
    main()
