"""LoRA against HF Trainer + PEFT: a chat model (SmolLM2-135M, all linear layers) and a classifier (MiniLM, query and value).

    python benchmarks/lora_peft.py [chat] [classify] [--hf PYTHON] [--peers ../shared/peers] [--repeat 3] [--steps 12]

``--hf`` is the Python of an environment with ``torch transformers peft datasets accelerate`` (`make .venv-hf/.stamp`). The peers
run unchanged, as documented (fp32) and with their own --bf16; ours in fp32, in bf16 (both sides' only where the machine is faster so)
and with plan.quality=fast, which may take bf16 and int8. Each side is a process of its own, one after the other, on the same
rows in the same order, from the same weights; seconds are those of the steps after the first two (chat) or four. Ours are the
steps of the training loop itself. A last comparison starts both from the same adapter, with the peer's labels (which count the
line break behind an answer, ours do not), and compares the losses step by step and the gradients of the first step.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import inputs

WARM_UP = {"chat": 2, "classify": 4}
RANK = {"chat": 16, "classify": 8}
LR = {"chat": 2e-4, "classify": 5e-4}
BATCH = {"chat": 8, "classify": 32}
PEERS = {"chat": "hf_peft_chat.py", "classify": "hf_peft_classify.py"}


def ours(kind: str, model_folder: str, file: str, way: str, steps: int, same: str = "") -> None:
    """One run of the training loop's own steps; prints one JSON line. ``same``: the folder of the peer's adapter, to start from it."""
    import numpy as np
    import torch

    from frostline.train.loop import _take_step, start

    torch.manual_seed(0)
    plan = _plan(kind, model_folder, file, way, same)
    source, batch = plan.execution.sources["train"], BATCH[kind]
    encode = _peer_labels(plan, file, steps * batch) if same and kind == "chat" else source.encode
    state = start(plan)
    plan.model.module.train()
    losses, marks, tokens, labelled = [], [], [], []
    for step in range(steps):
        one = encode(np.arange(step * batch, min((step + 1) * batch, source.rows)), 0)
        sums = _take_step(state, [one], 0, "", None)
        marks.append(time.perf_counter())
        losses.append(sums["loss"] / sums["count"])
        tokens.append(int(one.inputs["attention_mask"].sum()))
        labelled.append(sums["count"])
    timed = slice(WARM_UP[kind], None)
    seconds = marks[-1] - marks[WARM_UP[kind] - 1]
    body = sum(m.weight.numel() for n, m in plan.model.module.named_modules() if hasattr(m, "lora_A") and n != plan.model.output)
    head = plan.model.module.get_submodule(plan.model.output).weight.numel() if plan.model.output else 0
    flops = 4 * body * sum(tokens[timed]) + 4 * head * sum(labelled[timed]) if kind == "chat" else 0
    print(json.dumps({
        "seconds": seconds, "tokens_per_s": sum(tokens[timed]) / seconds, "losses": losses, "gflops": flops / seconds / 1e9,
        "samples_per_s": batch * (steps - WARM_UP[kind]) / seconds,
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "predicted_step": plan.predicted.parts["step"], "decisions": [d.what for d in plan.decisions if d.on],
    }))  # fmt: skip


def _plan(kind: str, model_folder: str, file: str, way: str, same: str) -> Any:
    import frostline as fl
    from frostline.adapt.peft_files import load_adapter

    task = {"chat": "chat", "classify": "text-classification"}[kind]
    data = fl.prepare(file, task=task, val=0, test_share=0, max_length={"chat": 2048, "classify": 256}[kind])
    model = fl.load(model_folder, data=data)
    targets = {"chat": ["all-linear"], "classify": ["query", "value"]}[kind]
    adapt = {"method": "lora", "rank": RANK[kind], "alpha": 2.0 * RANK[kind], "targets": targets}
    if same:
        load_adapter(model, Path(same))
    options = {f"adapt.{name}": value for name, value in adapt.items()}
    options |= {"quality": "fast"} if way == "fast" else {"precision": way}
    return fl.plan(model, data, epochs=1, batch=BATCH[kind], lr=LR[kind], clip=1.0, out="unused", **options)


def _peer_labels(plan: Any, file: str, count: int) -> Callable[..., Any]:
    """Batches with the labels as the peer's script makes them: all that stands behind the question."""
    from frostline.data.token_rows import IGNORED, token_rows

    tokenizer = plan.model.card.preprocess.tokenizer
    ids, labels = [], []
    for line in Path(file).read_text().splitlines()[:count]:
        messages = json.loads(line)["messages"]
        whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        question = tokenizer.apply_chat_template(messages[:1], tokenize=True, add_generation_prompt=True, return_dict=False)
        ids.append(whole)
        answer = whole[len(question) :]
        labels.append([*[IGNORED] * (len(question) - 1), *answer, IGNORED])
    return token_rows(ids, labels, list(range(len(ids))), 0, []).encoded(plan.model.card.preprocess).encode


def adapter(model_folder: str, file: str, out: str) -> None:
    """The adapter that the chat peer begins with, and PEFT's gradients of the first batch in float32 and float64, written to ``out``."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.save_pretrained(out)
    for name, dtype in {"gradients": torch.float32, "exact": torch.float64}.items():
        model.to(dtype).zero_grad()
        total = count = 0
        for line in Path(file).read_text().splitlines()[: BATCH["chat"]]:
            messages = json.loads(line)["messages"]
            whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
            question = tokenizer.apply_chat_template(messages[:1], tokenize=True, add_generation_prompt=True, return_dict=False)
            logits = model(torch.tensor([whole])).logits[0, len(question) - 1 : -1]
            total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(whole[len(question) :]), reduction="sum")
            count += len(logits)
        (total / count).backward()
        gradients = {n.removeprefix("base_model.model."): p.grad for n, p in model.named_parameters() if p.grad is not None}
        save_file(gradients, f"{out}/{name}.safetensors")
    print(json.dumps({"loss": float(total / count)}))


def gradients(model_folder: str, file: str, folder: str) -> None:
    """The largest differences of the first step's gradients, over the largest gradient: ours, PEFT's, and PEFT's in float64."""
    import numpy as np
    from safetensors.torch import load_file

    plan = _plan("chat", model_folder, file, "fp32", folder)
    plan.model.module.train()
    batch = _peer_labels(plan, file, BATCH["chat"])(np.arange(BATCH["chat"]), 0)
    total, count = plan.loss(plan.execution.forward(batch), batch.labels)
    (total / count).backward()
    mine = {name: p.grad for name, p in plan.model.module.named_parameters() if p.grad is not None}
    theirs, exact = (load_file(f"{folder}/{name}.safetensors") for name in ("gradients", "exact"))
    ours = {name: mine[name.replace(".default.weight", "")] for name in theirs}
    largest = max(float(g.abs().max()) for g in exact.values())

    def difference(one: dict[str, Any], other: dict[str, Any]) -> str:
        return f"{max(float((one[name].double() - other[name]).abs().max()) for name in exact) / largest:.1e}"

    found = {"of each other": difference(ours, theirs), "ours from float64": difference(ours, exact)}
    print(json.dumps({"differences": found | {"PEFT's from float64": difference(theirs, exact)}, "loss": float(total / count)}))


def compare(kind: str, options: argparse.Namespace, folder: Path) -> None:
    """Run the sides in turn and print the table."""
    model = str(folder / "inputs" / "smollm2") if kind == "chat" else str(inputs.minilm())
    file = str(folder / "inputs" / f"{kind}.jsonl")
    steps = options.steps if kind == "chat" else 40
    peer = [options.hf, str(options.peers / PEERS[kind]), model, file, "--steps", str(steps)]
    me = [sys.executable, __file__, "--side", "ours", kind, model, file]
    sides: dict[str, Callable[[], dict[str, Any]]] = {
        "HF Trainer + PEFT": lambda: harness.last_json_line(peer, cwd=options.peers),
        "HF Trainer + PEFT --bf16": lambda: harness.last_json_line([*peer, "--bf16"], cwd=options.peers),
        "Frostline fp32": lambda: harness.last_json_line([*me, "fp32", str(steps)]),
        "Frostline bf16": lambda: harness.last_json_line([*me, "bf16", str(steps)]),
        "Frostline fast": lambda: harness.last_json_line([*me, "fast", str(steps)]),
    }
    sides, left_out = harness.without_slow_bf16(sides)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for _ in range(options.repeat):
        for name, run in sides.items():
            runs[name].append(run())
    rate = "tokens_per_s" if kind == "chat" else "samples_per_s"
    rates = {name: harness.median([run[rate] for run in found]) for name, found in runs.items()}
    rows = [
        [name, f"{rates[name]:.1f}", f"{rates[name] / rates['HF Trainer + PEFT']:.2f} ×", f"{max(r['peak_rss_gb'] for r in found):.2f}"]
        for name, found in runs.items()
    ]
    facts: dict[str, Any] = {"steps": steps, "batch": BATCH[kind], "rank": RANK[kind], "repeats": options.repeat}
    facts |= left_out | {"decisions": runs["Frostline fp32"][0]["decisions"], "decisions_fast": runs["Frostline fast"][0]["decisions"]}
    if kind == "chat":
        facts |= _same(model, file, folder, steps, runs)
    harness.publish(f"lora_{kind}", ["", rate.replace("_per_s", "/s"), "against the first", "peak GB"], rows, **facts)


def _same(model: str, file: str, folder: Path, steps: int, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    me = [sys.executable, __file__, "--side"]
    harness.last_json_line([*me, "adapter", model, file, str(folder / "adapter")])
    same = harness.last_json_line([*me, "ours", "chat", model, file, "fp32", str(steps), str(folder / "adapter")])
    gradient = harness.last_json_line([*me, "gradients", model, file, str(folder / "adapter")])
    theirs = runs["HF Trainer + PEFT"][0]["losses"]
    difference = max(abs(a - b) / a for a, b in zip(theirs, same["losses"]))
    reached = {name: [run["gflops"] for run in runs.get(f"Frostline {name}", [])] for name in ("fp32", "bf16")}
    rates = {name: round(_product_gflops(name)) for name, found in reached.items() if found}
    return {
        "gflops_of_a_product_of_2048": rates,
        "share_of_roofline": {name: f"{harness.median(reached[name]) / rate:.0%}" for name, rate in rates.items()},
        "losses_on_same_batches": f"peer {[round(x, 4) for x in theirs]}, Frostline {[round(x, 4) for x in same['losses']]}",
        "largest_relative_difference": f"{difference:.1e}",
        "first_gradients_differ": gradient["differences"],
    }


def _product_gflops(name: str, side: int = 2048) -> float:
    """Of a matrix product of ``side`` ³ by the faster of PyTorch's library and oneDNN with a packed weight, the median of many: what a
    step that is nothing but products would run at."""
    import torch

    from frostline.kernels.packed_product import PackedProduct, can_pack
    from frostline.plan.machine import usual_seconds

    a, b = (torch.randn(side, side).to({"fp32": torch.float32, "bf16": torch.bfloat16}[name]) for _ in range(2))
    packed = PackedProduct(b, dtype=b.dtype, rows=side)
    ways = [lambda: a @ b, *([lambda: packed.forward(a, None)] if can_pack(b, b.dtype) else [])]
    with torch.inference_mode():
        return 2e-9 * side**3 / min(usual_seconds(way, budget=3, most=300) for way in ways)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=["chat", "classify"])
    parser.add_argument("--hf", default=str(harness.ROOT / ".venv-hf" / "bin" / "python"), help="the Python of the peers' environment")
    parser.add_argument("--peers", type=Path, default=harness.ROOT.parent / "shared" / "peers")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--side", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        name, *words = options.side
        {"ours": ours, "adapter": adapter, "gradients": gradients}[name](*(int(w) if w.isdigit() else w for w in words))
        return
    for needed in (options.peers, Path(options.hf)):
        if not needed.exists():
            sys.exit(f"{needed} is missing: the peers' folder is given with --peers, their environment with --hf (make .venv-hf/.stamp)")
    with tempfile.TemporaryDirectory() as folder:
        harness.last_json_line(
            [options.hf, str(options.peers / "make_inputs.py"), str(Path(folder) / "inputs"), "--images", "10"], cwd=options.peers
        )
        for kind in options.kinds:
            compare(kind, options, Path(folder))


if __name__ == "__main__":
    main()
