"""How true the planner is: small jobs of many kinds, what was predicted for each beside what it took.

    python benchmarks/planner.py [JOB …] [--rows SHARE]

Each job runs in a process of its own, with an empty cache: data, model and plan are made, the plan's prediction is kept, the plan is
carried out, and the run's own cost.json is read. Errors are predicted / actual - 1, of the seconds from the plan's end to the saved
model and of the peak of resident memory over that time. Where cost.json holds predictions of several stages, each is judged. The
column "epochs" is what of the actual seconds was spent in epochs, validation included; the rest is stores, checkpoints and the saved
model. ``--rows 0.1`` takes a tenth of the rows, to see that every job works.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness
import inputs

GOALS = "memory: median 5 %; time: median 12 %, worst 30 %"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One call of each verb; ``rows`` is the limit of prepare."""

    source: str
    rows: int
    plan: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)


_LITE0 = {"name": "efficientnet-lite0"}
_GPT = {"name": "gpt", "width": 192, "depth": 3, "vocabulary": 4000}
_LORA = {"adapt.method": "lora", "adapt.targets": ["query", "value"], "lr": 1e-3}
_ALL = {"adapt.method": "lora", "adapt.targets": ["all-linear"], "lr": 1e-3}
_ZERO = {"lr": 1e-3, "clip": 1.0}


def _text(name: str, **options: Any) -> dict[str, Any]:
    return {"name": name, "width": 128, "depth": 1, "tokenizer": "word", **options}


JOBS: dict[str, Job] = {
    "cnn": Job(source="digits", rows=1000, model={"name": "cnn", "width": 96, "depth": 3}, plan={"epochs": 3, "batch": 32}),
    "cnn-batch-8": Job(source="digits", rows=600, model={"name": "cnn", "width": 64, "depth": 2}, plan={"epochs": 2, "batch": 8}),
    "mlp": Job(source="digits", rows=1500, model={"name": "mlp", "width": 512}, plan={"epochs": 4, "batch": 64}),
    "image-transformer": Job(source="digits", rows=600, model={"name": "transformer", "width": 128}, plan={"epochs": 2, "batch": 32}),
    "lite0-head": Job(source="clothes", rows=600, data={"size": 96}, model=_LITE0, plan={"adapt": "head", "epochs": 4, "batch": 32}),
    "lite0-head-uncached": Job(
        source="clothes", rows=300, data={"size": 96}, model=_LITE0, plan={"adapt": "head", "epochs": 2, "batch": 32, "cache": "off"}
    ),
    "lite0-head-augmented": Job(
        source="clothes", rows=300, data={"size": 96, "augment": {"rotation": 10.0, "zoom": 0.1}}, model=_LITE0,
        plan={"adapt": "head", "epochs": 2, "batch": 16},
    ),
    "lite0-head-views": Job(
        source="clothes", rows=300, data={"size": 96, "augment": {"rotation": 10.0, "zoom": 0.1, "views": 2}}, model=_LITE0,
        plan={"adapt": "head", "epochs": 5, "batch": 16},
    ),
    "lite0-last": Job(source="clothes", rows=400, data={"size": 96}, model=_LITE0, plan={"adapt": "last 2", "epochs": 3, "batch": 16}),
    "lite0-full": Job(source="digits", rows=160, data={"size": 96}, model=_LITE0, plan={"adapt": "full", "epochs": 1, "batch": 16}),
    "gru": Job(source="docstrings", rows=1600, model=_text("gru"), plan={**_ZERO, "epochs": 3, "batch": 64}),
    "text-transformer": Job(
        source="docstrings", rows=1600, model=_text("transformer", depth=2, tokenizer="bpe", vocabulary=4000),
        plan={**_ZERO, "epochs": 3, "batch": 32},
    ),
    "minilm-head": Job(source="docstrings", rows=1200, model={"name": "minilm"}, plan={"adapt": "head", "epochs": 4, "batch": 32}),
    "minilm-head-uncached": Job(
        source="docstrings", rows=400, model={"name": "minilm"}, plan={"adapt": "head", "epochs": 2, "batch": 64, "cache": "off"}
    ),
    "minilm-last": Job(source="docstrings", rows=600, model={"name": "minilm"}, plan={"adapt": "last 2", "epochs": 3, "batch": 16}),
    "minilm-full": Job(source="docstrings", rows=300, model={"name": "minilm"}, plan={"adapt": "full", "epochs": 1, "batch": 16}),
    "minilm-full-recomputed": Job(
        source="docstrings", rows=300, model={"name": "minilm"},
        plan={"adapt": "full", "epochs": 1, "batch": 16, "checkpoint_activations": "on"},
    ),
    "minilm-lora": Job(source="docstrings", rows=500, model={"name": "minilm"}, plan={**_LORA, "epochs": 1, "batch": 32}),
    "minilm-lora-unpacked": Job(
        source="docstrings", rows=400, model={"name": "minilm"}, plan={**_LORA, "epochs": 1, "batch": 8, "pack": "off"}
    ),
    "minilm-lora-bf16": Job(
        source="docstrings", rows=500, model={"name": "minilm"}, plan={**_LORA, "epochs": 1, "batch": 32, "precision": "bf16"}
    ),
    "minilm-lora-fast": Job(
        source="docstrings", rows=500, model={"name": "minilm"}, plan={**_LORA, "epochs": 1, "batch": 32, "quality": "fast"}
    ),
    "chat-gpt": Job(source="chat", rows=400, data={"task": "chat"}, model=_GPT, plan={**_ZERO, "epochs": 2, "batch": 8}),
    "chat-gpt-lora": Job(source="chat", rows=400, data={"task": "chat"}, model=_GPT, plan={**_ALL, "epochs": 2, "batch": 16}),
    "chat-gpt-lora-unpacked": Job(
        source="chat", rows=400, data={"task": "chat"}, model=_GPT, plan={**_ALL, "epochs": 2, "batch": 16, "pack": "off"}
    ),
    "chat-gpt-recomputed": Job(
        source="chat", rows=400, data={"task": "chat"}, model=_GPT,
        plan={**_ZERO, "epochs": 2, "batch": 8, "checkpoint_activations": "on"},
    ),
    "chat-smollm2-lora": Job(
        source="chat", rows=40, data={"task": "chat"}, model={"name": "smollm2"}, plan={**_ALL, "epochs": 1, "batch": 4}
    ),
    "causal-gpt": Job(
        source="docstrings", rows=1600, data={"task": "causal-lm", "input_column": "text", "max_length": 128}, model=_GPT,
        plan={**_ZERO, "epochs": 2, "batch": 16, "accumulate": 2},
    ),
}  # fmt: skip


def clothes(out: Path, count: int = 600) -> Path:
    """Small grey pictures of three made-up garments with noise, a folder a class."""
    import numpy as np
    from PIL import Image, ImageDraw

    parts = {
        "bag": [(6, 12, 22, 26), (10, 4, 18, 12)],
        "shirt": [(8, 4, 20, 26), (1, 5, 27, 10)],
        "trousers": [(8, 3, 20, 8), (8, 8, 12, 27), (16, 8, 20, 27)],
    }
    rng = np.random.default_rng(0)
    for index in range(count):
        name = sorted(parts)[index % 3]
        picture = Image.new("L", (28, 28), 255)
        draw = ImageDraw.Draw(picture)
        for box in parts[name]:
            draw.rectangle([float(edge) + float(rng.uniform(-1, 1)) for edge in box], fill=int(rng.integers(20, 160)))
        pixels = np.asarray(picture, float) + rng.normal(0, 12, (28, 28))
        path = out / name / f"{index:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(path)
    return out


def chat(docstrings: Path, out: Path, count: int = 400) -> Path:
    """A question and an answer a row, the answers of log-normal length in characters."""
    rows = [json.loads(line) for line in docstrings.read_text(encoding="utf-8").splitlines()]
    rng = random.Random(0)
    with out.open("w", encoding="utf-8") as file:
        for _ in range(count):
            wanted, found = rng.lognormvariate(6.0, 0.65), rng.choices(rows, k=20)
            answer = "\n".join(row["text"] for row in found)[: max(40, round(wanted))]
            question = {"role": "user", "content": f"What does {found[0]['label']} do?"}
            file.write(json.dumps({"messages": [question, {"role": "assistant", "content": answer}]}) + "\n")
    return out


def make_inputs(folder: Path) -> dict[str, str]:
    texts = inputs.docstrings(folder)
    made = {
        "digits": inputs.digits_folder(folder, 1500, 64),
        "clothes": clothes(folder / "clothes"),
        "docstrings": texts,
        "chat": chat(texts, folder / "chat.jsonl"),
    }
    return {name: str(path) for name, path in made.items()}


def run(name: str, source: str, share: str, out: str, changed: str = "{}") -> None:
    """One job, in a process of its own; prints one JSON line. ``changed``: other options of its plan, as JSON."""
    import frostline as fl

    job = JOBS[name]
    began = time.perf_counter()
    data = fl.prepare(source, seed=0, limit=max(24, round(job.rows * float(share))), **job.data)
    model = fl.load(data=data, **{**job.model, "name": inputs.packaged(job.model["name"])})
    plan = fl.plan(model, data, out=out, **{**job.plan, **json.loads(changed)})
    before = time.perf_counter() - began
    done = fl.train(plan, quiet=True)
    print(json.dumps({
        "cost": done.cost, "epochs": sum(epoch["seconds"] for epoch in done.history), "before": before,
        "rows": data.splits["train"].num_rows, "on": [decision.what for decision in plan.decisions if decision.on],
        "off": [decision.what for decision in plan.decisions if not decision.on],
    }))  # fmt: skip


def stages(cost: dict[str, Any]) -> list[str]:
    """The predictions that a run's record holds, beside what it took."""
    return [name for name, value in cost.items() if name != "actual" and isinstance(value, dict) and "seconds" in value]


def error(cost: dict[str, Any], stage: str, what: str) -> float:
    return cost[stage][what] / max(cost["actual"][what], 1e-9) - 1


def row(name: str, found: dict[str, Any]) -> list[object]:
    """One line of the table, by the last stage of prediction."""
    cost = found["cost"]
    stage, actual = stages(cost)[-1], cost["actual"]
    return [
        name,
        f"{cost[stage]['seconds']:.1f}", f"{actual['seconds']:.1f}", f"{found['epochs']:.1f}", f"{error(cost, stage, 'seconds'):+.0%}",
        f"{cost[stage]['peak_bytes'] / 1e6:.0f}", f"{actual['peak_bytes'] / 1e6:.0f}", f"{error(cost, stage, 'peak_bytes'):+.0%}",
        f"{found['before']:.1f}", ", ".join(found["on"]),
    ]  # fmt: skip


def judged(costs: list[dict[str, Any]], stage: str) -> dict[str, Any]:
    """How far one stage's predictions lie from what the jobs took."""
    facts: dict[str, Any] = {}
    for what, name in [("seconds", "time"), ("peak_bytes", "memory")]:
        errors = [error(cost, stage, what) for cost in costs]
        sizes = [abs(value) for value in errors]
        facts[f"{stage}_{name}"] = (
            f"median |error| {statistics.median(sizes):.1%}, worst {max(sizes):.0%}, "
            f"{sum(value < 0 for value in errors) / len(errors):.0%} under-estimated, median error {statistics.median(errors):+.1%}"
        )
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=", ".join(JOBS))
    parser.add_argument("--rows", default="1", help="share of each job's rows")
    parser.add_argument("--side", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run(*options.side)
        return
    if unknown := [name for name in options.jobs if name not in JOBS]:
        parser.error(f"unknown job {unknown[0]!r}, expected one of {', '.join(JOBS)}")
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        made = make_inputs(folder)
        for name in options.jobs or JOBS:
            side = [sys.executable, __file__, "--side", name, made[JOBS[name].source], options.rows, str(folder / name)]
            found[name] = harness.last_json_line(side)
            print(*row(name, found[name]), flush=True)
    costs = [result["cost"] for result in found.values()]
    facts = {key: value for stage in stages(costs[0]) for key, value in judged(costs, stage).items()}
    headers = ["job", "predicted s", "actual s", "epochs s", "error", "predicted MB", "actual MB", "error", "until planned s", "decisions"]
    harness.publish("planner", headers, [row(name, result) for name, result in found.items()], **facts, goals=GOALS)


if __name__ == "__main__":
    main()
