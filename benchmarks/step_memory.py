"""What a training step holds, by where its tensors come from and what is computed once more.

    python benchmarks/step_memory.py [--repeat 3] [--quick]

A Llama-like network of 12 blocks and width 512, frozen under LoRA of rank 2 on all linear layers, forward and back for 4 rows of 512
tokens, in PyTorch's own modules: from glibc's malloc as it is, with what plan.allocator sets of it, from the allocator of
kernels/large_blocks.py, and with all blocks computed once more in the backward pass (plan.checkpoint_activations). Each way is a
process of its own. Peaks are resident memory over what was resident before the first of five steps; seconds are the shortest step's.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import harness

WAYS = {
    # the way: malloc's thresholds, large blocks, blocks computed once more
    "glibc": (False, False, False),
    "glibc, thresholds set": (True, False, False),
    "large blocks": (True, True, False),
    "glibc, thresholds set, recomputed": (True, False, True),
    "large blocks, recomputed": (True, True, True),
}
STEPS = 5


def step(way: str, quick: bool) -> dict[str, Any]:
    import time

    import torch
    from torch import nn
    from transformers import LlamaConfig, LlamaModel

    from frostline.adapt.lora_layers import PLAIN, wrap
    from frostline.adapt.wrapper import replace
    from frostline.kernels.large_blocks import use_large_blocks
    from frostline.kernels.recompute import recomputing
    from frostline.plan.machine import resident_bytes
    from frostline.plan.passes.allocator import keep_freed_memory
    from frostline.train.memory import peak_bytes, reset_peak

    thresholds, large, again = WAYS[way]
    if thresholds:
        keep_freed_memory()
    if large and (reason := use_large_blocks()):
        raise SystemExit(f"large blocks: {reason}")
    torch.manual_seed(0)
    width, rows, length = (64, 2, 32) if quick else (512, 4, 512)
    config = LlamaConfig(
        num_hidden_layers=12, hidden_size=width, intermediate_size=3 * width, num_attention_heads=8, num_key_value_heads=4, vocab_size=1000
    )
    module = LlamaModel(config).requires_grad_(False).train()
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.Linear):
            replace(module, name, wrap(part, {"rank": 2, "alpha": 4.0, "dropout": 0.0}, PLAIN, None))
    ids = torch.randint(1000, (rows, length))
    with torch.no_grad():
        module(input_ids=ids, use_cache=False)
    reset_peak()
    before, seconds = resident_bytes(), []
    with recomputing(module, [f"layers.{i}" for i in range(12)] if again else []):
        for _ in range(STEPS):
            start = time.perf_counter()
            total = module(input_ids=ids, use_cache=False).last_hidden_state.square().sum()
            total.backward()
            seconds.append(time.perf_counter() - start)
    gradients = sum(float(p.grad.double().square().sum()) for p in module.parameters() if p.grad is not None)
    return {"peak_mb": (peak_bytes() - before) / 1e6, "seconds": min(seconds), "loss": float(total.detach()), "gradients": gradients}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tiny network, once: to see that every way works")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(step(options.side, options.quick)))
        return
    quick = ["--quick"] if options.quick else []
    repeat = 1 if options.quick else options.repeat
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(repeat):
        for way, found in runs.items():
            found.append(harness.last_json_line([sys.executable, __file__, "--side", way, *quick]))
    first = next(iter(runs.values()))
    rows = []
    for way, found in runs.items():
        peak, seconds = (harness.median([run[what] for run in found]) for what in ("peak_mb", "seconds"))
        share = peak / harness.median([run["peak_mb"] for run in first])
        rows.append([way, f"{peak:.0f}", f"{share:.2f} ×", f"{seconds:.2f}"])
    same = len({(run["loss"], run["gradients"]) for found in runs.values() for run in found}) == 1
    facts = {"losses and gradients": "equal bit for bit" if same else "differ"}
    harness.publish("step_memory", ["", "peak MB", "against the first", "seconds a step"], rows, **facts, repeats=repeat)


if __name__ == "__main__":
    main()
