"""What `make demo` shows: two pretrained models tuned on real data, from raw files to a prediction, by the command line alone.

Pictures: scikit-learn's handwritten digits, a folder of JPEG files per class, with EfficientNet-Lite0. Text: the docstrings of
Python's standard library, a JSONL file, with MiniLM; the model learns to say which module a docstring belongs to. Everything
comes from packages and is written below demo/. Each command is printed before it runs, so that it can be typed again.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import inputs  # noqa: E402  (a script beside the package, found through the line above)

DEMO = Path("demo")
SENTENCE = "Open a URL, follow its redirects, and return the status code and headers of the response."


def show(path: Path) -> str:
    """A path as someone who stands in the repository would type it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def frostline(*arguments: str) -> None:
    """Echo and run one command; the demo ends where a command fails."""
    print(f"\n$ frostline {shlex.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "frostline", *arguments], cwd=ROOT)
    if done.returncode:
        sys.exit(f"demo: the command above failed with exit code {done.returncode}")


def make_inputs() -> Path:
    """Write the pictures and the texts anew, and return the folder of the text model."""
    folder = ROOT / DEMO
    try:
        digits, texts = inputs.digits_folder(folder), inputs.docstrings(folder)
        model = inputs.minilm()
    except inputs.InputUnavailable as error:
        sys.exit(f"demo: {error}")
    print(f"Real inputs: {show(digits)} ({sum(1 for _ in digits.glob('*/*.jpg'))} pictures of digits)")
    print(f"             {show(texts)} ({texts.read_text(encoding='utf-8').count(chr(10))} docstrings of the standard library)")
    return model


def new_run(name: str) -> Path:
    """Where a run is to be written; one of an earlier demo is removed."""
    shutil.rmtree(ROOT / DEMO / name, ignore_errors=True)
    return DEMO / name


def pictures() -> Path:
    """Head tuning: the frozen network runs over each picture once, then only a linear layer learns."""
    run = new_run("run-digits")
    frostline(
        *("train", str(DEMO / "digits"), "--model", "efficientnet-lite0", "--adapt", "head"),
        *("--out", str(run), "train.epochs=15", "train.lr=3e-3"),
    )
    frostline("evaluate", str(run))
    frostline("predict", str(run), str(min((DEMO / "digits" / "7").glob("*.jpg"))))
    return run


def texts(model: Path) -> Path:
    """The last block and the head learn; the five blocks before them are frozen, and their outputs are stored once."""
    run = new_run("run-docstrings")
    frostline(
        *("train", str(DEMO / "docstrings.jsonl"), "--model", show(model), "--adapt", "last 1"),
        *("--out", str(run), "data.max_length=64", "train.epochs=5", "train.lr=3e-4"),
    )
    frostline("evaluate", str(run))
    frostline("predict", str(run), "--text", SENTENCE)
    return run


def main() -> None:
    start = time.monotonic()
    model = make_inputs()
    runs = [pictures(), texts(model)]
    print(f"\nDone in {time.monotonic() - start:.0f} s. Open the reports in a browser:")
    for run in runs:
        print(f"  {run / 'report.html'}")


if __name__ == "__main__":
    main()
