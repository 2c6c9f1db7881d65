"""What the plan only knows by trying it: on how many cores a step is computed while others load, and PyTorch's compiler for blocks.

    python benchmarks/trials.py [--repeat 1] [--quick]

Photographs of 500 × 375 as JPEG, read in every epoch, into a small network: as planned, and on all cores. A network that reads
a picture in a loop over its rows: plainly, with plan.compile_blocks=on and nothing in the cache, and the same once more with what
is in the cache then. Each side in a process of its own, in turn; seconds are of planning, its trials included, and of training;
the loss is that of the first epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import inputs

PASSES = {"photographs": "threads", "a loop over rows": "compile_blocks"}
JOBS: dict[str, dict[str, dict[str, Any]]] = {
    "photographs": {"all cores": {"threads": os.cpu_count()}, "as planned": {}},
    "a loop over rows": {
        "plainly": {"compile_blocks": "off"},
        "compiled": {"compile_blocks": "on"},
        "compiled, from the cache": {"compile_blocks": "on"},
    },
}
EPOCHS = {"photographs": 120, "a loop over rows": 60}
SIZE = 32


def photographs(out: Path, count: int = 240) -> Path:
    """Made-up pictures in four folders: colours that change slowly, and noise, which takes as long to decode as a photograph."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for index in range(count):
        kind = index % 4
        few = Image.fromarray(rng.integers(0, 255, (6 + kind, 8, 3), dtype=np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
        pixels = (np.asarray(few, float) + rng.normal(0, 12, (375, 500, 3))).clip(0, 255).astype(np.uint8)
        path = out / f"kind {kind}" / f"{index:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)
    return out


def reader(outputs: int, width: int = 128) -> Any:
    """A recurrent network by hand, which reads a picture row by row from its top."""
    import torch
    from torch import Tensor, nn

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.Linear(3 * SIZE + width, width), nn.Linear(width, outputs)

        def forward(self, pixels: Tensor) -> Tensor:
            state = pixels.new_zeros(pixels.shape[0], width)
            for row in pixels.transpose(1, 2).flatten(2).unbind(1):
                state = torch.tanh(self.cell(torch.cat([row, state], 1)))
            return self.head(state)

    torch.manual_seed(0)
    return Reader()


def side(job: str, name: str, source: str, rows: str) -> None:
    """Plan and train; prints one JSON line."""
    import frostline as fl

    if job == "photographs":
        data = fl.prepare(source, seed=0, size=64, limit=int(rows))
        model = fl.load("mlp", data=data, width=256)
    else:
        data = fl.prepare(source, seed=0, size=SIZE, limit=int(rows))
        model = fl.load(reader(data.schema.outputs), task=data.task, size=SIZE)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        plan = fl.plan(model, data, epochs=EPOCHS[job], batch=32, lr=1e-3, adapt="full", out=folder, **JOBS[job][name])
        planned = time.perf_counter()
        loss = fl.train(plan, quiet=True).history[0]["loss"]
    why = next((one.why for one in plan.decisions if one.what == PASSES[job]), "")
    print(json.dumps({
        "planning": planned - began, "training": time.perf_counter() - planned, "loss": loss, "why": why,
    }))  # fmt: skip


def compare(options: argparse.Namespace, folder: Path) -> list[list[object]]:
    """All sides in turn; a row each."""
    sources = {"photographs": photographs(folder / "photographs"), "a loop over rows": Path(inputs.digits_folder(folder, 1500, SIZE))}
    rows: list[list[object]] = []
    for job, sides in JOBS.items():
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        for turn in range(options.repeat):
            kernels = {"TORCHINDUCTOR_CACHE_DIR": str(folder / f"kernels-{turn}")}
            for name in sides:
                words = [sys.executable, __file__, "--side", job, name, str(sources[job]), str(options.rows)]
                found[name].append(harness.last_json_line(words, **kernels))
        for name, results in found.items():
            planning, training = (harness.median([one[part] for one in results]) for part in ("planning", "training"))
            rows.append([job, name, f"{planning:.1f}", f"{training:.1f}", f"{results[0]['loss']:.6f}", results[0]["why"]])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="few rows: to see that all sides work")
    parser.add_argument("--side", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rows = 48 if options.quick else 2000
    if options.side:
        side(*options.side)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(options, Path(folder))
    harness.publish("trials", ["", "", "planning s", "training s", "first loss", ""], rows, repeats=options.repeat, epochs=EPOCHS)


if __name__ == "__main__":
    main()
