"""A Llama-like language model of 11 M numbers from zero, on the sources of Python's standard library, against a nanoGPT-style loop.

    python benchmarks/gpt_from_zero.py [--repeat 3] [--kilobytes 250] [--epochs 4] [--quick]

Frostline's side is its public verbs on a folder of files: a BPE vocabulary of 4 096 made from the training files, `gpt` at its usual
width, fp32. The other side is nanogpt_loop.py: the same architecture and sizes in plain PyTorch, begun with the same weights, on the
same stream of tokens, with the same batch, length, rate, schedule and number of steps. Frostline goes through the stream's blocks
in a new order each epoch, the loop takes random crops. Held out are whole files; their bits per byte are taken before the first step
(where they must agree, for the weights are the same) and after each epoch. Seconds are those of all steps and of the four validations,
on both sides; Frostline's whole run, from the plan to the saved model, stands below the table. Each side is a process of its own.

Sized for two cores at some 170 GFLOP/s: about 280 steps of 8 × 128 tokens, 66 MFLOP a token and as much again for what is no
matrix product, so some two to four minutes a side; ``--repeat 1`` runs each once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness

MODEL = {"name": "gpt", "vocabulary": 4096, "tokenizer": "bpe"}
TRAIN = {"batch": 8, "lr": 1e-3, "weight_decay": 0.1, "clip": 1.0}
LENGTH, WARM_UP, HELD_OUT = 128, 20, 0.1
LOOP = Path(__file__).with_name("nanogpt_loop.py")


def library_sources(out: Path, size: int) -> Path:
    """Copy modules of the standard library, chosen by chance, to ``out/train`` (about ``size`` bytes) and ``out/val`` (a tenth)."""
    files = sorted(path for path in Path(os.path.dirname(os.__file__)).glob("*.py") if not path.name.startswith("_"))
    random.Random(0).shuffle(files)
    for part, wanted in [("val", size * HELD_OUT), ("train", size)]:
        (out / part).mkdir(parents=True)
        taken = 0.0
        while taken < wanted and files:
            content = files.pop().read_text(encoding="utf-8", errors="replace")[: int(wanted - taken)]
            (out / part / f"{len(files):03}.py").write_text(content, encoding="utf-8")
            taken += len(content)
    return out


def _loaded(texts: str, width: int) -> tuple[Any, Any]:
    import frostline as fl

    data = fl.prepare(texts, task="causal-lm", max_length=LENGTH)
    return data, fl.load(data=data, width=width, **MODEL)


def tokens(texts: str, width: int, epochs: int, out: str) -> None:
    """What the loop reads: both streams, the sizes, the weights that Frostline begins with. Prints the steps of an epoch."""
    import numpy as np
    from safetensors.torch import save_file

    from frostline.data.encode import split_source
    from frostline.recipe import DataRecipe

    data, model = _loaded(texts, width)
    folder = Path(out)
    folder.mkdir()
    sources = {}
    for split, file in [("train", "train.bin"), ("validation", "val.bin")]:
        source = split_source(data.splits[split], data.schema, model.card.preprocess, recipe=DataRecipe(max_length=LENGTH), name=split)
        batch = source.encode(np.arange(source.rows), None)
        real = batch.inputs["attention_mask"].bool()
        stream = [*batch.inputs["input_ids"][real].tolist(), int(batch.labels[real][-1])]
        np.asarray(stream, np.uint16).tofile(folder / file)
        sources[split] = source
    config = model.module.config
    steps = -(-sources["train"].rows // TRAIN["batch"])
    values = {
        "width": config.hidden_size, "depth": config.num_hidden_layers, "heads": config.num_attention_heads,
        "key_heads": config.num_key_value_heads, "hidden": config.intermediate_size, "vocabulary": config.vocab_size,
        "eps": config.rms_norm_eps, "theta": config.rope_parameters["rope_theta"], "length": LENGTH, "warmup": WARM_UP, **TRAIN,
        "steps": epochs * steps, "eval_interval": steps, "val_bytes": int(sources["validation"].labels.sum()),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(values))
    weights = {name.removeprefix("model."): p.detach().contiguous() for name, p in model.module.named_parameters()}
    save_file(weights, folder / "initial.safetensors")
    print(json.dumps({"steps": steps}))


def ours(texts: str, width: int, epochs: int, out: str) -> None:
    """One run; prints one JSON line."""
    import frostline as fl
    from frostline.train.validate import validate

    data, model = _loaded(texts, width)
    start = time.perf_counter()
    plan = fl.plan(model, data, epochs=epochs, schedule="cosine", warmup=WARM_UP, out=out, **TRAIN)
    planned = time.perf_counter()
    before = validate(plan)["val_bits_per_byte"]
    looked = time.perf_counter() - planned
    run = fl.train(plan, quiet=True)
    whole = time.perf_counter() - start - looked
    print(json.dumps({
        "seconds": sum(epoch["seconds"] for epoch in run.history), "whole": whole, "predicted": plan.predicted.seconds,
        "tokens": epochs * int(plan.execution.sources["train"].lengths.sum()), "parameters": plan.parameters["all"],
        "curve": [before, *(epoch["val_bits_per_byte"] for epoch in run.history)],
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "decisions": [decision.what for decision in plan.decisions if decision.on],
    }))  # fmt: skip


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Run both sides and print the table."""
    width = 64 if options.quick else 384
    texts = str(library_sources(folder / "texts", 20_000 if options.quick else 1000 * options.kilobytes))
    me, settings = [sys.executable, __file__, "--side"], [texts, str(width), str(options.epochs)]
    steps = harness.last_json_line([*me, "tokens", *settings, str(folder / "loop")])["steps"]
    runs: dict[str, list[dict[str, Any]]] = {"nanoGPT-style loop": [], "Frostline": []}
    for index in range(1 if options.quick else options.repeat):
        runs["nanoGPT-style loop"].append(harness.last_json_line([sys.executable, str(LOOP), str(folder / "loop")]))
        runs["Frostline"].append(harness.last_json_line([*me, "ours", *settings, str(folder / f"run{index}")]))
    rates = {name: harness.median([run["tokens"] / run["seconds"] for run in found]) for name, found in runs.items()}
    rows = [
        [
            name, f"{rates[name]:.0f}", f"{rates[name] / rates['nanoGPT-style loop']:.2f} ×",
            f"{harness.median([run['seconds'] for run in found]):.1f}", f"{max(run['peak_rss_gb'] for run in found):.2f}",
            *(f"{value:.3f}" for value in found[0]["curve"]),
        ]
        for name, found in runs.items()
    ]  # fmt: skip
    at = [f"bits per byte at {index * steps}" for index in range(options.epochs + 1)]
    first, second = runs["nanoGPT-style loop"][0], runs["Frostline"][0]
    harness.publish(
        "gpt_from_zero", ["", "tokens/s", "against the first", "seconds", "peak GB", *at], rows,
        numbers=f"{second['parameters']:,}, the loop's {first['parameters']:,}", batch=f"{TRAIN['batch']} × {LENGTH} tokens",
        steps=steps * options.epochs, training_tokens=second["tokens"] // options.epochs, repeats=len(runs["Frostline"]),
        difference_before_the_first_step=f"{abs(first['curve'][0] / second['curve'][0] - 1):.1e}",
        frostline_whole_run_seconds=round(harness.median([run["whole"] for run in runs["Frostline"]]), 1),
        predicted_seconds=round(second["predicted"], 1), decisions=second["decisions"],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--kilobytes", type=int, default=250, help="of training text; the number of steps follows from it")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="a tiny model on 20 kB, to see that both sides work")
    parser.add_argument("--side", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        name, *words = options.side
        {"ours": ours, "tokens": tokens}[name](*(int(word) if word.isdigit() else word for word in words))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


if __name__ == "__main__":
    main()
