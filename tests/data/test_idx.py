"""IDX files: MNIST's layout is read, and a header that lies costs no memory."""

from __future__ import annotations

import gzip
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from frostline.data import idx
from frostline.data.idx import read_idx
from frostline.data.image_sources import from_idx
from frostline.data.images import read_block
from frostline.errors import DataError
from frostline.recipe import DataRecipe

RECIPE = DataRecipe()
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)


def idx_bytes(values: np.ndarray, shape: tuple[int, ...] | None = None) -> bytes:
    shape = values.shape if shape is None else shape
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + values.tobytes()


def write(folder: Path, name: str, content: bytes, packed: bool) -> Path:
    path = folder / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_mnists_layout(tmp_path: Path, packed: bool) -> None:
    for stem, count in (("train-", 6), ("t10k-", 2)):
        write(tmp_path, f"{stem}images-idx3-ubyte", idx_bytes(IMAGES[:count]), packed)
        write(tmp_path, f"{stem}labels-idx1-ubyte", idx_bytes(np.arange(count, dtype=np.uint8)), packed)
    raw = from_idx(tmp_path, RECIPE)
    assert raw.table["split"].to_pylist() == ["test"] * 2 + ["train"] * 6
    assert raw.table["label"].to_pylist() == ["0", "1", "0", "1", "2", "3", "4", "5"]
    np.testing.assert_array_equal(read_block(raw.table, np.arange(2, 8)), IMAGES[..., None])  # type: ignore[arg-type]
    assert raw.table["id"][0].as_py() == raw.table["id"][2].as_py()
    ending = ".gz" if packed else ""
    assert raw.table["origin"][1].as_py() == f"{tmp_path}/t10k-images-idx3-ubyte{ending}:1"
    for part in ("images-idx3", "labels-idx1"):
        single = from_idx(tmp_path / f"train-{part}-ubyte{ending}", RECIPE)
        assert single.table["split"].to_pylist() == ["train"] * 6


def test_names_with_dots_and_without_split(tmp_path: Path) -> None:
    write(tmp_path, "字-images.idx3-ubyte", idx_bytes(IMAGES), False)
    write(tmp_path, "字-labels.idx1-ubyte", idx_bytes(np.arange(6, dtype=np.uint8)), True)
    assert from_idx(tmp_path, RECIPE).table["split"].to_pylist() == [None] * 6


@pytest.mark.parametrize("packed", [False, True])
def test_a_header_of_terabytes_costs_nothing(tmp_path: Path, packed: bool) -> None:
    path = write(tmp_path, "train-images-idx3-ubyte", idx_bytes(IMAGES, (2**31, 1000, 1000)), packed)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"says \(2147483648, 1000, 1000\), 2147483648000000 values, but at most \d+ can be there"):
        read_idx(path, 3, 10**8)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_a_bomb_is_counted_in_flat_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "x-images-idx3-ubyte", idx_bytes(np.zeros(50_000_000, np.uint8), (50, 1000, 1001)), True)
    tracemalloc.start()
    with pytest.raises(DataError, match="its header says 50050000 values, but 50000000 are there"):
        read_idx(path, 3, 10**8)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    monkeypatch.setattr(idx, "_memory", lambda: 90_000_000)
    with pytest.raises(DataError, match="50050000 values, more than half of this machine's memory"):
        read_idx(path, 3, 10**8)
    with pytest.raises(DataError, match=r"images of \(1000, 1001\) pixels, more than data.max_pixels=1000"):
        read_idx(path, 3, 1000)


@pytest.mark.parametrize("packed", [False, True])
def test_damaged_files(tmp_path: Path, packed: bool) -> None:
    good = idx_bytes(IMAGES)
    for content, message in (
        (b"", r"begins with b'', expected b'\\x00\\x00\\x08\\x03'"),
        (b"\x80\x04cposix", "begins with"),
        (good[:9], "ends in its header"),
        (good[:-1], "120 values, but (at most )?119"),
        (good + b"x", "120 values, but (at least )?121 are there"),
        (idx_bytes(IMAGES[:0]), r"\(0, 5, 4\), 0 values"),
    ):
        path = write(tmp_path, "train-images-idx3-ubyte", content, packed)
        with pytest.raises(DataError, match=message):
            read_idx(path, 3, 10**8)


def test_damaged_gzip(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    packed = gzip.compress(idx_bytes(IMAGES))
    for content in (packed[:-30], b"not gzip at all", packed[:40] + b"\xff" * 20 + packed[60:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read as IDX"):
            read_idx(path, 3, 10**8)


def test_pairs_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no IDX images, expected files such as train-images-idx3-ubyte\.gz"):
        from_idx(tmp_path, RECIPE)
    write(tmp_path, "train-images-idx3-ubyte", idx_bytes(IMAGES), False)
    with pytest.raises(DataError, match=r"has no labels beside it, expected 'train-labels-idx1-ubyte' \(or with .gz\)"):
        from_idx(tmp_path, RECIPE)
    write(tmp_path, "train-labels-idx1-ubyte", idx_bytes(np.zeros(5, np.uint8)), False)
    with pytest.raises(DataError, match=r"has 6 images, but .* has 5 labels"):
        from_idx(tmp_path, RECIPE)
    with pytest.raises(DataError, match="holds no IDX images"):
        from_idx(tmp_path / "none", RECIPE)


def test_a_partner_that_leads_outside_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    outside = write(tmp_path, "labels", idx_bytes(np.arange(6, dtype=np.uint8)), False)
    images = write(tmp_path, "images", idx_bytes(IMAGES), False)
    (folder / "train-images-idx3-ubyte").symlink_to(images)
    (folder / "train-labels-idx1-ubyte").symlink_to(outside)
    given = folder / "train-images-idx3-ubyte"
    with pytest.raises(DataError, match=r"has no labels beside it, .* which is a link that leads outside the folder\. Put"):
        from_idx(given, RECIPE)
    (folder / "train-labels-idx1-ubyte").unlink()
    os.mkfifo(folder / "train-labels-idx1-ubyte")
    with pytest.raises(DataError, match=r"has no labels beside it, .* which is not a regular file"):
        from_idx(given, RECIPE)
    (folder / "train-labels-idx1-ubyte").unlink()
    write(folder, "train-labels-idx1-ubyte", outside.read_bytes(), False)
    assert from_idx(given, RECIPE).table.num_rows == 6  # the file that was named may be a link
    with pytest.raises(DataError, match=r"holds no IDX images"):
        from_idx(folder, RECIPE)
