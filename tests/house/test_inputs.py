"""The inputs of the demo and the benchmarks: real, the same every time, and refused with a command where they cannot be had."""

from __future__ import annotations

import collections
import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def inputs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("frostline_inputs", ROOT / "benchmarks" / "inputs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_digits_are_readable_pictures_of_every_class(inputs: ModuleType, tmp_path: Path) -> None:
    folder = inputs.digits_folder(tmp_path, count=50, size=64)
    files = sorted(folder.glob("*/*.jpg"))
    assert len(files) == 50 and {file.parent.name for file in files} == set("0123456789")
    pixels = np.asarray(Image.open(next((folder / "0").iterdir())).convert("L"), dtype=float)
    assert pixels.shape == (64, 64)
    assert pixels[:4].mean() > 200 > pixels[24:40].mean() > pixels.min()  # dark ink in the middle of light paper


def test_digits_made_again_leave_nothing_of_a_larger_set(inputs: ModuleType, tmp_path: Path) -> None:
    inputs.digits_folder(tmp_path, count=40, size=16)
    folder = inputs.digits_folder(tmp_path, count=20, size=16)
    assert len(list(folder.glob("*/*.jpg"))) == 20


def test_docstrings_have_one_label_each_and_are_the_same_every_time(inputs: ModuleType, tmp_path: Path) -> None:
    path = inputs.docstrings(tmp_path / "first", classes=4, cap=30)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    counts = collections.Counter(row["label"] for row in rows)
    assert len(counts) == 4 and set(counts.values()) == {30}
    assert len({row["text"] for row in rows}) == len(rows)
    assert all(len(row["text"]) >= 30 and "\n" not in row["text"] for row in rows)
    assert set(counts) <= sys.stdlib_module_names
    assert inputs.docstrings(tmp_path / "second", classes=4, cap=30).read_bytes() == path.read_bytes()


def test_chinese_reviews(inputs: ModuleType, tmp_path: Path) -> None:
    try:
        path = inputs.chinese_reviews(tmp_path)
    except inputs.InputUnavailable as error:
        pytest.skip(str(error))
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["文本", "标签"]
    counts = collections.Counter(label for _, label in rows)
    assert set(counts) == {"正面", "负面"} and min(counts.values()) > 15_000
    assert all(text for text, _ in rows)


def test_a_missing_package_is_named_with_its_command(inputs: ModuleType) -> None:
    with pytest.raises(inputs.InputUnavailable, match="pip install --no-deps no-such-package-anywhere"):
        inputs.package_folder("no-such-package-anywhere")


def test_an_unknown_input_is_refused(inputs: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        inputs.main([str(tmp_path), "digit"])
    assert "unknown input 'digit', expected one of fashion-mnist, digits" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_fashion_mnist_has_its_four_files(inputs: ModuleType) -> None:
    try:
        folder = inputs.fashion_mnist()
    except inputs.InputUnavailable as error:
        pytest.skip(str(error))
    assert {file.name for file in folder.iterdir()} >= set(inputs._FASHION_MNIST_FILES)
