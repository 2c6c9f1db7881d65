"""Small real inputs that every test may use, and a cache folder that no test shares with the user."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests import small


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Stores and calibrations of a test stay its own; the calibration is a fixed one, so that no test measures. No test finds a GPU."""
    from frostline import device
    from frostline.plan import machine

    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(machine, "_measure", lambda: MACHINE)
    monkeypatch.setattr(device, "accelerator", lambda: None)
    return


def _machine():
    from frostline.plan.machine import Machine

    return Machine(
        name="test", cores=2, fp32_gflops=100.0, bf16_gflops=50.0, memory_gb_per_s=10.0, disk_write_gb_per_s=1.0, disk_read_gb_per_s=2.0,
        disk_sync_seconds=0.001,
    )  # fmt: skip


MACHINE = _machine()


@pytest.fixture(scope="session")
def digit_arrays():
    """scikit-learn's handwritten digits: uint8 (rows, 8, 8) and their labels, 300 rows."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images[:300] * 15.9).astype(np.uint8), digits.target[:300]


@pytest.fixture
def digits(digit_arrays):
    """The digits as a prepared Dataset."""
    import frostline as fl

    return fl.prepare(digit_arrays, seed=0)


@pytest.fixture
def texts():
    """A tiny text dataset that a small network can learn: the label is in the words."""
    import frostline as fl

    words = {
        "好": ["味道 很好", "非常 满意", "the food is good", "really great service"],
        "坏": ["太 难吃", "很 失望", "the food is bad", "awful slow service"],
    }
    rows = [
        (f"{text} number {i}" + " and so on" * (i % 7), label)
        for label, options in words.items()
        for i in range(40)
        for text in [options[i % 4]]
    ]
    return fl.prepare(rows, task="text-classification", seed=0)


class Done(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run ``frostline WORDS`` in this process."""
    from frostline.cli import main

    def run(*words: object) -> Done:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def digit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits 0, 1 and 2 as 60 PNG files, in a folder per class with Chinese names. Not to be changed."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits, root = load_digits(), tmp_path_factory.mktemp("数据") / "数字"
    for number, name in enumerate("零一二"):
        (root / name).mkdir(parents=True)
        for row in np.flatnonzero(digits.target == number)[:20]:
            Image.fromarray((digits.images[row] * 15.9).astype(np.uint8)).save(root / name / f"{row}.png")
    return root


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of 80 texts, its name and its columns Chinese. Not to be changed."""
    path = tmp_path_factory.mktemp("评论") / "评论.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("文本", "标签"), *small.review_rows()])
    return path


@pytest.fixture(scope="session")
def image_run(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a finished run on the digits. Not to be changed, but for its report."""
    yield from _trained(tmp_path_factory.mktemp("runs") / "图像", digit_folder, small.IMAGE_OPTIONS)


@pytest.fixture(scope="session")
def text_run(reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a finished run on the reviews. Not to be changed, but for its report."""
    yield from _trained(tmp_path_factory.mktemp("runs") / "文本", reviews, small.TEXT_OPTIONS)


def _trained(out: Path, data: Path, options: list[str]) -> Iterator[Path]:
    from frostline import device
    from frostline.cli import main
    from frostline.plan import machine

    with pytest.MonkeyPatch.context() as patch:  # made before a test's own cache is
        patch.setenv("FROSTLINE_CACHE", str(out.parent / "cache"))
        patch.setattr(machine, "_measure", lambda: MACHINE)
        patch.setattr(device, "accelerator", lambda: None)
        assert main(["train", str(data), *options, "--out", str(out), "--quiet"]) == 0
    yield out


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, bytes]]:
    """``snapshot(folder)``: every file below it with its content."""
    return lambda folder: {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
