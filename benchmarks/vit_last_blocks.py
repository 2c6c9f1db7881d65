"""ViT-base with random weights, 224 × 224, its last two blocks, last norm and head learning for 5 epochs, against HF Trainer.

    python benchmarks/vit_last_blocks.py [--hf PYTHON] [--peers ../shared/peers] [--images 64] [--epochs 5] [--repeat 3] [--quick]

``--hf`` is the Python of an environment with ``torch transformers accelerate pillow`` (`make .venv-hf/.stamp`). The peer runs unchanged,
as documented (fp32) and, where this machine is faster so, with its own --bf16;
ours runs exact in fp32 and with plan.quality=fast, which may use bf16 and int8. Each side is
a process of its own, one after the other, on the same images (scikit-learn's digits as JPEG files), with the same batch of 32, rate
1e-4, linear schedule and clipping at 1. Seconds are those of the training alone on both sides: the peer's own clock, reading images
included; ours from before the plan's probe to the saved model. Losses are means over the whole run: the orders of rows differ, and
so do the initial heads. The peer makes its weights itself; ours are the same draws of the same seed, saved as an HF folder.

A repetition takes about five minutes on two cores, most of them the peer's; ``--quick`` takes eight images and one epoch.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import inputs

BATCH = 32


def model_folder(out: str) -> None:
    """A ViT of the base shape, begun as the peer's is."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(num_labels=10)).save_pretrained(out)
    ViTImageProcessor(size={"height": 224, "width": 224}).save_pretrained(out)
    print("{}")


def ours(images: str, model_name: str, quality: str, epochs: int, out: str) -> None:
    """One run; prints one JSON line."""
    import frostline as fl

    data = fl.prepare(images, task="image-classification", size=224, val=0, test_share=0)
    model = fl.load(model_name, data=data)
    start = time.perf_counter()
    plan = fl.plan(model, data, adapt="last 2", epochs=epochs, batch=BATCH, lr=1e-4, schedule="linear", clip=1.0, quality=quality, out=out)
    run = fl.train(plan, quiet=True)
    seconds = time.perf_counter() - start
    print(json.dumps({
        "seconds": seconds, "samples_per_s": data.splits["train"].num_rows * epochs / seconds,
        "losses": [sum(epoch["loss"] for epoch in run.history) / len(run.history)],
        "peak_rss_gb": run.cost["actual"]["peak_bytes"] / 2**30, "predicted": plan.predicted.seconds,
        "decisions": {decision.what: decision.why for decision in plan.decisions if decision.on},
    }))  # fmt: skip


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Run the sides in turn and print the table."""
    images, model = str(inputs.digits_folder(folder / "images", options.images, 224)), str(folder / "vit")
    me, epochs = [sys.executable, __file__, "--side"], str(options.epochs)
    harness.last_json_line([*me, "model", model])
    peer = [options.hf, str(options.peers / "hf_last_layers.py"), images, "--epochs", epochs, "--batch", str(BATCH)]

    def frostline(quality: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            return harness.last_json_line([*me, "ours", images, model, quality, epochs, out])

    sides: dict[str, Callable[[], dict[str, Any]]] = {
        "HF Trainer": lambda: harness.last_json_line(peer, cwd=options.peers),
        "HF Trainer --bf16": lambda: harness.last_json_line([*peer, "--bf16"], cwd=options.peers),
        "Frostline": lambda: frostline("exact"),
        "Frostline, quality fast": lambda: frostline("fast"),
    }
    sides, left_out = harness.without_slow_bf16(sides)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for _ in range(options.repeat):
        for name, run in sides.items():
            runs[name].append(run())
    seconds = {name: harness.median([run["seconds"] for run in found]) for name, found in runs.items()}
    rows = [
        [
            name, f"{seconds[name]:.1f}", f"{options.images * options.epochs / seconds[name]:.1f}",
            f"{seconds['HF Trainer'] / seconds[name]:.2f} ×", f"{found[0]['losses'][0]:.4f}",
            f"{max(run['peak_rss_gb'] for run in found):.2f}",
        ]
        for name, found in runs.items()
    ]  # fmt: skip
    exact, fast = runs["Frostline"][0], runs["Frostline, quality fast"][0]
    harness.publish(
        "vit_last_blocks", ["", "seconds", "samples/s", "against the first", "mean training loss", "peak GB"], rows,
        images=options.images, epochs=options.epochs, batch=BATCH, repeats=options.repeat,
        predicted_seconds=f"{exact['predicted']:.0f}, fast {fast['predicted']:.0f}",
        decisions=list(exact["decisions"]), decisions_fast=fast["decisions"], **left_out,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hf", default=str(harness.ROOT / ".venv-hf" / "bin" / "python"), help="the Python of the peer's environment")
    parser.add_argument("--peers", type=Path, default=harness.ROOT.parent / "shared" / "peers")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="eight images, one epoch, once: to see that every side works")
    parser.add_argument("--side", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        name, *words = options.side
        {"ours": ours, "model": model_folder}[name](*(int(word) if word.isdigit() else word for word in words))
        return
    for needed in (options.peers, Path(options.hf)):
        if not needed.exists():
            sys.exit(f"{needed} is missing: the peers' folder is given with --peers, their environment with --hf (make .venv-hf/.stamp)")
    if options.quick:
        options.images, options.epochs, options.repeat = 8, 1, 1
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


if __name__ == "__main__":
    main()
