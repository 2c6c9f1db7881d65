"""Importing the package and asking the command for help are quick, and import nothing heavy."""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "numpy", "pyarrow", "transformers", "tokenizers", "safetensors", "PIL", "sklearn", "scipy", "h5py", "rich")
SECONDS = 0.3
# A loaded or slow machine takes as many times longer for an empty program; there the limit grows with it.
TIMES_AN_EMPTY_PROGRAM = 10
TRIES = 5

IMPORT = "import sys, frostline\n"
HELP = """import sys
names, sys.argv[1:] = sys.argv[1:], ["--help"]
from frostline.cli import main
try:
    main()
except SystemExit:
    pass
sys.argv[1:] = names
"""
TRAINING = """import sys, tempfile
from pathlib import Path
sys.path.insert(0, "benchmarks")
import inputs
import frostline as fl
with tempfile.TemporaryDirectory() as folder:
    data = fl.prepare(inputs.digits_folder(Path(folder), 80, 16), size=32)
    for name, adapt, options in (("cnn", "full", {"width": 8, "depth": 1}), ("vgg16", "head", {})):
        fl.train(fl.plan(fl.load(name, data=data, **options), data, epochs=2, adapt=adapt, out=f"{folder}/{name}"), quiet=True)
"""
LISTING = "print(*[name for name in sys.argv[1:] if name in sys.modules])"


def python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def best(*arguments: str) -> float:
    """Seconds of the quickest of some tries; the others met what else the machine was doing."""
    seconds = []
    for _ in range(TRIES):
        start = time.perf_counter()
        python(*arguments)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@pytest.mark.parametrize("arguments", [("-c", "import frostline"), ("-m", "frostline", "--help")], ids=["import", "help"])
def test_it_starts_quickly(arguments: tuple[str, ...]) -> None:
    limit = max(SECONDS, TIMES_AN_EMPTY_PROGRAM * best("-c", "pass"))
    assert best(*arguments) < limit, f"python {' '.join(arguments)} took {best(*arguments):.2f} s, expected at most {limit:.2f} s"


@pytest.mark.parametrize("program", [IMPORT, HELP], ids=["import", "help"])
def test_nothing_heavy_is_imported(program: str) -> None:
    found = python("-c", program + LISTING, *HEAVY).splitlines()[-1]
    assert not found, f"imported too early: {found}; see what imports it with: python -X importtime -c 'import frostline'"


def test_training_does_not_import_the_compiler() -> None:
    """Where nothing is compiled, PyTorch's compiler would cost each run a second and 74 MB."""
    assert not python("-c", TRAINING + LISTING, "torch._dynamo", "torch._inductor", "sympy").strip()


def test_help_names_the_verbs() -> None:
    text = python("-m", "frostline", "--help")
    missing = [verb for verb in ("init", "check", "prepare", "plan", "train", "evaluate", "predict", "show", "info") if verb not in text]
    assert not missing, f"frostline --help does not name {', '.join(missing)}"
