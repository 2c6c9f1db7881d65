"""Hostile data and saved folders: refused or set aside with a reason, nothing executed, nothing outside read, memory flat."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from frostline.data.dataset import Dataset, load_dataset
from frostline.data.prepare import prepare

WRAPPINGS = ("protocol 0", "protocol 2", "protocol 4", "protocol 5", "zip", "legacy")


def picture(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return path


def class_folders(folder: Path, rows: int = 8) -> Path:
    for row in range(rows):
        picture(folder / "cat" / f"{row}.png", row)
        picture(folder / "dog" / f"{row}.png", 100 + row)
    return folder


def read(trap: Any, path: Path, **options: Any) -> Any:
    return trap.spring(prepare, str(path), progress=False, **options)


def names(dataset: Any) -> set[str]:
    """The names of all files that are used."""
    assert isinstance(dataset, Dataset), dataset
    return {Path(path).name for table in dataset.splits.values() for path in table["path"].to_pylist()}


GOOD = {f"{row}.png" for row in range(8)}


# -- Pickles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize(
    "name",
    [
        *("x.csv", "x.tsv", "x.json", "x.jsonl", "x.ndjson", "x.parquet", "x.arrow", "x.feather", "x.txt", "x.npy", "x.npz", "x.pkl"),
        *("x.jpg", "x.yaml", "train-images-idx3-ubyte", "train-images-idx3-ubyte.gz", "x"),
    ],
)
def test_pickle_bombs_for_a_table(trap: Any, name: str, wrapping: str) -> None:
    path = trap.folder / name
    path.write_bytes(trap.pickles()[wrapping])
    (trap.folder / "train-labels-idx1-ubyte").write_bytes(trap.pickles()[wrapping])
    trap.refused(prepare, str(path), progress=False)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_pickle_bombs_among_pictures(trap: Any, wrapping: str) -> None:
    bombs = ["bomb.jpg", "bomb.png", "bomb.gif", "bomb.webp", "bomb.bmp", "bomb.npy", "bomb.pkl", "bomb.pth"]
    folder = class_folders(trap.folder / "data")
    for name in bombs:
        (folder / "cat" / name).write_bytes(trap.pickles()[wrapping])
    dataset = read(trap, folder)
    assert names(dataset) == GOOD
    assert sum(group["count"] for group in dataset.report.set_aside) == len(bombs)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_pickle_bombs_for_an_array_of_objects(trap: Any, wrapping: str) -> None:
    """A .npy whose header says that its items are pickled."""
    path = trap.folder / "x.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (1,)})
        file.write(trap.pickles()[wrapping])
    trap.refused(prepare, str(path), progress=False)


# -- Sizes ------------------------------------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1 << 20), 9)) + chunk(b"IEND", b"")


LARGE_PICTURES = {
    "bomb.png": png_header(100_000, 100_000),
    "endless.png": png_header(2**31 - 1, 2**31 - 1),
    "bomb.gif": b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0x80, 0, 0) + bytes(6) + b"\x2c" + bytes(20) + b"\x3b",
    "bomb.bmp": b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "bomb.jpg": b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01\xff\xda\x00\x0c\x03" + bytes(64),
    "bomb.webp": b"RIFF\xff\xff\xff\x7fWEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\xff\xff\xff\xff",
}


def test_pictures_of_terabytes_are_set_aside(trap: Any) -> None:
    folder = class_folders(trap.folder / "data")
    for name, content in LARGE_PICTURES.items():
        (folder / "dog" / name).write_bytes(content)
    dataset = read(trap, folder)
    assert names(dataset) == GOOD
    assert sum(group["count"] for group in dataset.report.set_aside) == len(LARGE_PICTURES)
    assert any("max_pixels" in group["reason"] for group in dataset.report.set_aside)


IDX_HEADERS = {
    "terabytes": struct.pack(">4BIII", 0, 0, 8, 3, 1 << 20, 1 << 12, 1 << 12),
    "beyond 64 bits": struct.pack(">4BIII", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1),
    "one row too many": struct.pack(">4BIII", 0, 0, 8, 3, 3, 4, 4) + bytes(32),
    "other types": struct.pack(">4BIII", 0, 0, 14, 3, 1, 4, 4) + bytes(128),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("content", IDX_HEADERS.values(), ids=IDX_HEADERS)
def test_idx_files_that_lie(trap: Any, content: bytes, packed: bool) -> None:
    name = "train-images-idx3-ubyte" + (".gz" if packed else "")
    (trap.folder / name).write_bytes(gzip.compress(content) if packed else content)
    (trap.folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 2) + bytes(2))
    assert "idx3" in trap.refused(prepare, str(trap.folder), progress=False)


def test_an_idx_file_that_unpacks_without_end(trap: Any) -> None:
    with gzip.open(trap.folder / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(struct.pack(">4BIII", 0, 0, 8, 3, 2, 4, 4))
        for _ in range(300):
            file.write(bytes(1 << 20))
    (trap.folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 2) + bytes(2))
    assert "idx3" in trap.refused(prepare, str(trap.folder), progress=False)


JSON = {"deep": '{"text": ' + "[" * 200_000, "digits": '{"text": ' + "9" * 100_000 + "}", "a deep list": "[" * 200_000}


@pytest.mark.parametrize("text", JSON.values(), ids=JSON)
@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_json_that_is_too_deep(trap: Any, name: str, text: str) -> None:
    (trap.folder / name).write_text(text, encoding="utf-8")
    trap.refused(prepare, str(trap.folder / name), progress=False)


# -- Places -----------------------------------------------------------------------------------------------------------

FOREIGN_PATHS = (
    "../outside/picture.png",
    "cat/../../outside/picture.png",
    "{outside}/picture.png",
    "cat/nul\0.png",
    "http://127.0.0.1:9/x.png",
    "file://{outside}/picture.png",
    "data:image/png;base64,AAAA",
    "~/x.png",
    "link.png",
    "linked/picture.png",
)


def test_paths_in_a_table_stay_below_its_folder(trap: Any) -> None:
    folder = class_folders(trap.folder / "data")
    picture(trap.outside / "picture.png", 7)  # a good one, so that only its place speaks against it
    (folder / "link.png").symlink_to(trap.outside / "picture.png")
    (folder / "linked").symlink_to(trap.outside)
    rows = [{"path": f"{name}/{row}.png", "label": name} for name in ("cat", "dog") for row in range(8)]
    foreign = [{"path": path.format(outside=trap.outside), "label": "cat"} for path in FOREIGN_PATHS]
    table = folder / "metadata.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows + foreign), encoding="utf-8")
    dataset = prepare(str(table), task="image-classification", progress=False)
    assert names(dataset) == GOOD and len(dataset) == 16
    assert sum(group["count"] for group in dataset.report.set_aside) == len(FOREIGN_PATHS)


@pytest.mark.parametrize("kind", ["file", "folder", "loop", "nothing", "device"])
def test_links_in_a_folder_of_pictures(trap: Any, kind: str) -> None:
    folder = class_folders(trap.folder / "data")
    targets = {"file": trap.outside / "secret.txt", "folder": trap.outside, "loop": folder, "nothing": folder / "no"}
    target = targets.get(kind, Path("/dev/zero"))
    (folder / "cat" / "link.png").symlink_to(target)
    (folder / "link").symlink_to(target)
    dataset = read(trap, folder)
    assert names(dataset) == GOOD and len(dataset) == 16
    assert dataset.schema.labels == ("cat", "dog")


def test_links_in_a_folder_of_texts(trap: Any) -> None:
    for name in ("pos", "neg"):
        (trap.folder / name).mkdir()
        for row in range(8):
            (trap.folder / name / f"{row}.txt").write_text(f"a {name} text, number {row}", encoding="utf-8")
    (trap.folder / "pos" / "link.txt").symlink_to(trap.outside / "secret.txt")
    (trap.folder / "linked").symlink_to(trap.outside)
    dataset = read(trap, trap.folder)
    texts = [text for table in dataset.splits.values() for text in table["text"].to_pylist()]
    assert len(texts) == 16 and "secret" not in texts


def test_a_pipe_does_not_hang_the_reader(trap: Any) -> None:
    import os

    folder = class_folders(trap.folder / "data")
    os.mkfifo(folder / "cat" / "pipe.png")
    assert len(read(trap, folder)) == 16


def test_labels_and_names_are_only_text(trap: Any) -> None:
    """Class names that look like paths, code or markup change nothing but the class list."""
    labels = ["../../outside/x", "/etc/passwd", "$(touch x)", "<script>alert(1)</script>", "{{7*7}}", "类\u202e别"]
    rows = [{"text": f"row {row} of {name}", "label": name} for name in labels for row in range(10)]
    path = trap.folder / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    dataset = read(trap, path)
    assert sorted(dataset.schema.labels) == sorted(labels)
    trap.spring(dataset.save, trap.folder / "saved")
    assert trap.spring(load_dataset, trap.folder / "saved").schema.labels == dataset.schema.labels


# -- Prepared folders -------------------------------------------------------------------------------------------------


@pytest.fixture
def prepared(trap: Any) -> Path:
    """A saved Dataset."""
    rows = [(f"text {row} {name}", name) for name in ("pos", "neg") for row in range(10)]
    prepare(rows, progress=False).save(trap.folder / "saved")
    return trap.folder / "saved"


def change(folder: Path, **values: Any) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


@pytest.mark.parametrize("splits", [["../../outside/x"], ["/etc/passwd"], ["evil"], ["train\0"], [7], "train", {"x": 1}, None, [["x"]]])
def test_splits_of_a_prepared_folder(trap: Any, prepared: Path, splits: Any) -> None:
    change(prepared, splits=splits)
    trap.refused(load_dataset, prepared)


@pytest.mark.parametrize(
    "schema",
    [
        {"task": "os.system", "labels": ["a", "b"]},
        {"task": "text-classification", "labels": 7},
        {"task": "text-classification", "labels": ["neg", "pos"], "__class__": "os.system"},
        {"task": "text-classification", "target": "evil", "labels": ["a", "b"]},
        {"task": "text-classification", "labels": []},
        {"task": "text-classification", "labels": ["only one"]},
        [],
    ],
)
def test_schema_of_a_prepared_folder(trap: Any, prepared: Path, schema: Any) -> None:
    change(prepared, schema=schema)
    trap.refused(load_dataset, prepared)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("name", ["dataset.json", "train.arrow"])
def test_pickle_bombs_in_a_prepared_folder(trap: Any, prepared: Path, name: str, wrapping: str) -> None:
    (prepared / name).write_bytes(trap.pickles()[wrapping])
    trap.refused(load_dataset, prepared)


def test_tables_of_a_prepared_folder_have_the_columns_and_labels_of_its_schema(trap: Any, prepared: Path) -> None:
    table = load_dataset(prepared).splits["train"]
    good = pa.table(table.to_pydict(), schema=table.schema)  # in memory: the file is written over
    place, rows = good.column_names.index("label"), good.num_rows
    for bad in (
        good.drop_columns(["label"]),
        good.drop_columns(["text"]),
        good.set_column(place, "label", pa.array([99] * rows, pa.int32())),
        good.set_column(place, "label", pa.array([-1] * rows, pa.int32())),
        good.set_column(place, "label", pa.array(["pos"] * rows)),
    ):
        with pa.OSFile(str(prepared / "train.arrow"), "wb") as sink, pa.ipc.new_file(sink, bad.schema) as writer:
            writer.write_table(bad)
        assert "train.arrow" in trap.refused(load_dataset, prepared)


def test_an_offset_that_points_outside_its_buffer(trap: Any, prepared: Path) -> None:
    """Arrow itself would read whatever lies there in memory."""
    path = prepared / "train.arrow"
    lengths = [len(text) for text in load_dataset(prepared).splits["train"]["text"].to_pylist()]
    offsets = np.cumsum([0, *lengths]).astype("<i4").tobytes()
    content = path.read_bytes()
    assert content.count(offsets) == 1
    path.write_bytes(content.replace(offsets, offsets[:-4] + struct.pack("<i", 0x7FFFFFF0)))
    trap.refused(load_dataset, prepared)
