"""What tuning a head costs where all before it is frozen, against the least that it can: one forward epoch, and epochs of the head alone.

    python benchmarks/head_tuning.py [--repeat 3] [--quick]

The least, in plain PyTorch: every row of training and validation goes once through the frozen network in inference mode, in batches,
and what reaches the head is held in memory; then the head alone learns from that for as many epochs, and is validated after each.
Ours is the whole run from the plan's end to the saved model: stores, their proofs, a checkpoint after each epoch and the
model's file are in it; the column beside is without that file, which the least does not write either. Each side is a process of
its own, in turn, with an empty cache. The goal is 1.15 times the least.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import inputs
import vgg16_keras

JOBS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # name: options of prepare, of load, of plan
    "EfficientNet-Lite0, 1 500 clothes": (
        {"limit": 1875, "size": 96, "val": 0.2, "test_share": 0},
        {"name": "efficientnet-lite0"},
        {"epochs": 10, "batch": 32, "optimizer": "adam", "lr": 1e-3},
    ),
    "VGG16 (random weights), 192 clothes": (
        {"limit": 240, "size": 224, "val": 0.2, "test_share": 0},
        {"name": "vgg16", "head": vgg16_keras.HEAD},
        {"epochs": 10, "batch": 32, "optimizer": "adam", "lr": 1e-4},
    ),
}
GOAL = 1.15


def _made(name: str, source: str, quick: str) -> tuple[Any, Any, dict[str, Any]]:
    import frostline as fl

    of_data, of_model, of_plan = JOBS[name]
    if quick == "quick":
        of_data, of_plan = {**of_data, "limit": 60, "size": 64}, {**of_plan, "epochs": 2}
    data = fl.prepare(source, seed=0, **of_data)
    return data, fl.load(data=data, **of_model), of_plan


def ours(name: str, source: str, quick: str) -> None:
    import frostline as fl

    data, model, options = _made(name, source, quick)
    with tempfile.TemporaryDirectory() as out:
        actual = fl.train(fl.plan(model, data, adapt="head", out=f"{out}/run", **options), quiet=True).cost["actual"]
    print(json.dumps({"seconds": actual["seconds"], "unsaved": actual["seconds"] - actual["parts"]["saving"]}))


def least(name: str, source: str, quick: str) -> None:
    import numpy as np
    import torch
    from torch.nn.functional import cross_entropy

    from frostline.data.encode import split_source

    data, model, options = _made(name, source, quick)
    batch, module = options["batch"], model.module
    sources = {split: split_source(table, data.schema, model.card.preprocess) for split, table in data.splits.items()}
    head = module.get_submodule(model.head[0])
    optimizer = torch.optim.Adam(head.parameters(), lr=options["lr"])  # the first one that is made imports much
    features, labels, reached = dict[str, Any](), dict[str, Any](), list[torch.Tensor]()
    module.eval()
    start = time.perf_counter()
    with torch.inference_mode():
        watching = head.register_forward_pre_hook(lambda _, args: reached.append(args[0].clone()))
        for split, rows in sources.items():
            found = []
            for begin in range(0, rows.rows, batch):
                one = rows.encode(np.arange(begin, min(begin + batch, rows.rows)), None)
                module(**one.inputs)
                found.append(one.labels)
            features[split], labels[split] = torch.cat(reached), torch.cat(found)
            reached.clear()
        watching.remove()
    forward = time.perf_counter() - start
    features = {split: tensor.clone() for split, tensor in features.items()}  # outside of inference mode: may be saved for gradients
    for _ in range(options["epochs"]):
        head.train()
        for rows in torch.randperm(len(labels["train"])).split(batch):
            optimizer.zero_grad()
            cross_entropy(head(features["train"][rows]), labels["train"][rows]).backward()
            optimizer.step()
        head.eval()
        with torch.inference_mode():
            for rows in torch.arange(len(labels["validation"])).split(batch):
                cross_entropy(head(features["validation"][rows]), labels["validation"][rows]).item()
    print(json.dumps({"seconds": time.perf_counter() - start, "forward": forward, "epochs": options["epochs"]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few small pictures and two epochs: to see that every way works")
    parser.add_argument("--side", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        {"ours": ours, "least": least}[options.side[0]](*options.side[1:])
        return
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        source = str(inputs.fashion_mnist(Path(folder)))
        for name in JOBS:
            runs: dict[str, list[dict[str, Any]]] = {"least": [], "ours": []}
            for _ in range(options.repeat):
                for side, found in runs.items():
                    words = ["--side", side, name, source, "quick" if options.quick else "whole"]
                    found.append(harness.last_json_line([sys.executable, __file__, *words]))
            least_seconds, whole, unsaved, forward = (
                harness.median([run[what] for run in runs[side]])
                for side, what in [("least", "seconds"), ("ours", "seconds"), ("ours", "unsaved"), ("least", "forward")]
            )
            rows.append([
                name, runs["least"][0]["epochs"], f"{forward:.1f}", f"{least_seconds:.1f}",
                f"{whole:.1f}", f"{whole / least_seconds:.2f} ×", f"{unsaved:.1f}", f"{unsaved / least_seconds:.2f} ×",
            ])  # fmt: skip
            print(*rows[-1], flush=True)
    headers = ["", "epochs", "forward epoch s", "least s", "ours s", "against the least", "without saving s", "against the least"]
    harness.publish("head_tuning", headers, rows, repeats=options.repeat, goal=f"at most {GOAL} × the least")


if __name__ == "__main__":
    main()
