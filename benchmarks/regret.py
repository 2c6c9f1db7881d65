"""Never slower: small jobs carried out as planned, plainly, and with each of the plan's choices the other way.

    python benchmarks/regret.py [JOB …] [--repeat 3] [--rows SHARE]

Jobs are those of planner.py. Plainly: every pass off that can be switched. The other way: a pass that the plan took is left out, one
that it left is taken, where it can be. Seconds are those from the plan's end to the saved model; each run is a process of its own, and
the median counts. Goals: as planned at least 0.98 times as fast as plainly, and at most 1.05
times the seconds of the best that was tried.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness
import planner

SWITCHES = {
    "cache_prefix": "cache", "channels_last": "channels_last", "pack": "pack", "allocator": "allocator", "fuse_adapter": "fuse_adapter",
    "fuse_blocks": "fuse_blocks", "fuse_attention": "fuse_attention", "prepack_frozen": "prepack", "fuse_convolutions": "fuse_convolutions",
    "onednn_linear": "onednn_linear",
}  # fmt: skip
"""Decisions, and the keys that switch them. int8 and bf16 are not exact, and so no mere question of speed."""
PLAINLY = dict.fromkeys(SWITCHES.values(), "off")
CHOSEN = ["cnn", "lite0-head", "lite0-head-augmented", "minilm-head", "minilm-lora", "chat-gpt", "chat-gpt-lora", "causal-gpt"]
GOALS = "as planned >= 0.98 x as fast as plainly, and <= 1.05 x the seconds of the best"


def ways(planned: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Options of each other way, by a name for the table."""
    found = {"plainly": PLAINLY}
    found |= {f"without {what}": {SWITCHES[what]: "off"} for what in planned["on"] if what in SWITCHES}
    found |= {f"with {what}": {SWITCHES[what]: "on"} for what in planned["off"] if what in SWITCHES}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=", ".join(planner.JOBS))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--rows", default="1", help="share of each job's rows")
    options = parser.parse_args()
    if unknown := [name for name in options.jobs if name not in planner.JOBS]:
        parser.error(f"unknown job {unknown[0]!r}, expected one of {', '.join(planner.JOBS)}")
    rows: list[list[object]] = []
    faster, regrets = [], []
    with tempfile.TemporaryDirectory() as place:
        made = planner.make_inputs(Path(place))
        for name in options.jobs or CHOSEN:
            job = [sys.executable, planner.__file__, "--side", name, made[planner.JOBS[name].source], options.rows]

            def run(number: int, changed: dict[str, str], job: list[str] = job, name: str = name) -> dict[str, Any]:
                return harness.last_json_line([*job, str(Path(place) / f"{name}-{number}"), json.dumps(changed)])

            others = {"as planned": {}, **ways(run(0, {}))}
            runs: dict[str, list[float]] = {way: [] for way in others}
            for turn in range(options.repeat):
                for number, (way, changed) in enumerate(others.items()):
                    try:
                        runs[way].append(run(1 + turn * len(others) + number, changed)["cost"]["actual"]["seconds"])
                    except SystemExit as refused:
                        print(f"{name} {way}: left out, {str(refused).strip().splitlines()[-1]}", flush=True)
            took = {way: harness.median(found) for way, found in runs.items() if found}
            best = min(took, key=lambda way: took[way])
            faster.append(took["plainly"] / took["as planned"])
            regrets.append(took["as planned"] / took[best])
            row = [
                name,
                f"{took['as planned']:.1f}",
                f"{took['plainly']:.1f}",
                f"{faster[-1]:.2f} ×",
                f"{best}: {took[best]:.1f}",
                f"{regrets[-1]:.2f}",
            ]
            print(*row, flush=True)
            rows.append(row)
    headers = ["job", "as planned s", "plainly s", "faster", "best that was tried", "regret"]
    harness.publish(
        "regret", headers, rows, slowest_against_plainly=f"{min(faster):.2f} ×", median_regret=f"{harness.median(regrets):.2f}",
        worst_regret=f"{max(regrets):.2f}", repeats=options.repeat, goals=GOALS,
    )  # fmt: skip


if __name__ == "__main__":
    main()
