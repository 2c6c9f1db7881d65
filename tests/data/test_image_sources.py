"""Image sources: what is found, what is set aside and why, and that nothing outside the folder is ever used."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from frostline.data.image_sources import from_arrays, from_folder, from_table, from_torch_dataset
from frostline.data.images import decode_image, read_block, read_pixels
from frostline.data.raw import Raw
from frostline.errors import DataError
from frostline.recipe import DataRecipe

RECIPE = DataRecipe(workers=2)
MANY = 10**8


def save(path: Path, seed: int = 0, size: tuple[int, int] = (12, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


def reasons(raw: Raw) -> dict[str, str]:
    return {os.path.basename(one.origin): one.reason for one in raw.set_aside}


def test_a_folder_per_class(tmp_path: Path) -> None:
    save(tmp_path / "猫" / "图10.png", 1)
    save(tmp_path / "猫" / "图9.jpg", 2, (40, 30))
    save(tmp_path / "狗" / "deep" / "deeper" / "x.bmp", 3)
    save(tmp_path / "狗" / "copy.bmp", 3)
    raw = from_folder(tmp_path, RECIPE)
    rows = raw.table.to_pylist()
    names = [Path(row["path"]).name for row in rows]
    assert names == ["copy.bmp", "x.bmp", "图9.jpg", "图10.png"]  # 9 before 10
    assert [row["label"] for row in rows] == ["狗", "狗", "猫", "猫"]
    assert rows[0]["id"] == rows[1]["id"] != rows[2]["id"] and rows[0]["origin"] == rows[0]["path"]
    assert (rows[2]["image_height"], rows[2]["image_width"]) == (40, 30)
    assert raw.table.schema.field("image_height").type == pa.int32()
    assert raw.task == "image-classification" and raw.set_aside == [] and raw.notes == ["layout: a folder per class"]
    assert raw.table.column_names == ["id", "origin", "path", "image_height", "image_width", "label"]
    assert from_folder(tmp_path, DataRecipe(workers=1)).table.equals(raw.table)


def test_a_class_folder_without_images_is_noted(tmp_path: Path) -> None:
    save(tmp_path / "猫" / "a.png")
    save(tmp_path / "狗" / "b.png", 1)
    (tmp_path / "鸟").mkdir(), (tmp_path / ".cache").mkdir()
    (warning,) = [note for note in from_folder(tmp_path, RECIPE).notes if note.startswith("warning: ")]
    assert "no image in it can be used: '鸟'" in warning


def test_split_folders(tmp_path: Path) -> None:
    for number, split in enumerate(["train", "Val", "test"]):
        save(tmp_path / split / "a" / "1.png", number)
        save(tmp_path / split / "b" / "2.png", number + 10)
    raw = from_folder(tmp_path, RECIPE)
    found = {(row["split"], row["label"]) for row in raw.table.to_pylist()}
    assert found == {(split, label) for split in ("train", "validation", "test") for label in "ab"}
    save(tmp_path / "extra" / "a" / "1.png")
    with pytest.raises(DataError, match="holds split folders and, beside them, 'extra', expected only train"):
        from_folder(tmp_path, RECIPE)


def test_a_split_of_broken_images_is_named(tmp_path: Path) -> None:
    for name in ("猫", "狗"):
        save(tmp_path / "train" / name / "1.png")
    (tmp_path / "test" / "猫").mkdir(parents=True)
    (tmp_path / "test" / "猫" / "2.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"no row of the test split can be used \(the first set aside: .*2\.png: "):
        from_folder(tmp_path, RECIPE)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    save(tmp_path / "train" / "1.png")
    save(tmp_path / "plane" / "1.png", 1)
    raw = from_folder(tmp_path, RECIPE)
    assert raw.table["label"].to_pylist() == ["plane", "train"] and "split" not in raw.table.column_names


def test_what_cannot_be_used_is_set_aside(tmp_path: Path) -> None:
    save(tmp_path / "a" / "good.png")
    whole = save(tmp_path / "b" / "whole.jpg", 1, (64, 64)).read_bytes()
    (tmp_path / "b" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b" / "empty.png").write_bytes(b"")
    (tmp_path / "b" / "notes.txt").write_text("hello")
    (tmp_path / "b" / "fake.jpg").write_bytes(b"\x80\x04\x95cposix\nsystem")
    save(tmp_path / "b" / "large.png", 2, (200, 200))
    save(tmp_path / "loose.png")
    os.mkfifo(tmp_path / "b" / "pipe.png")
    for hidden in (".git/x.png", "a/.DS_Store", "a/Thumbs.db", "__MACOSX/a/good.png", "a/._good.png"):
        (tmp_path / hidden).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / hidden).write_bytes(b"junk")
    raw = from_folder(tmp_path, DataRecipe(workers=2, max_pixels=10_000))
    assert sorted(Path(path).name for path in raw.table["path"].to_pylist()) == ["good.png", "whole.jpg"]
    found = reasons(raw)
    assert found.pop("large.png").startswith("200 × 200 = 4e+04 pixels, more than data.max_pixels=10000")
    assert found.pop("notes.txt").startswith("not an image") and found.pop("fake.jpg").startswith("not an image")
    assert found == {
        "cut.jpg": "truncated JPEG",
        "empty.png": "empty file",
        "loose.png": "not in a class folder",
        "pipe.png": "not a regular file",
    }
    assert "2 files are not images and were set aside" in raw.notes


def test_links_do_not_lead_out(tmp_path: Path) -> None:
    root = tmp_path / "root"
    inside = save(root / "a" / "1.png")
    outside = save(tmp_path / "outside" / "secret.png", 1)
    (root / "b").mkdir()
    (root / "b" / "out.png").symlink_to(outside)
    (root / "b" / "up.png").symlink_to("../../outside/secret.png")
    (root / "b" / "in.png").symlink_to(inside)
    (root / "b" / "nothing.png").symlink_to(root / "missing.png")
    (root / "c").symlink_to(outside.parent, target_is_directory=True)
    (root / "b" / "loop").symlink_to(root, target_is_directory=True)
    raw = from_folder(root, RECIPE)
    assert [Path(path).name for path in raw.table["path"].to_pylist()] == ["1.png", "in.png"]
    leads = "a link that leads outside the folder"
    assert reasons(raw) == {
        "out.png": leads,
        "up.png": leads,
        "c": leads,
        "nothing.png": "a link to nothing",
        "loop": "a link to a folder, which is not followed",
    }


def test_folders_without_images_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none' is not a folder, expected one that holds a folder per class"):
        from_folder(tmp_path / "none", RECIPE)
    with pytest.raises(DataError, match=r"holds no image in a class folder \(0 files set aside\). Expected FOLDER/CLASS"):
        from_folder(tmp_path, RECIPE)
    save(tmp_path / "loose.png")
    with pytest.raises(DataError, match=r"1 files set aside; the first: '.*loose.png', not in a class folder"):
        from_folder(tmp_path, RECIPE)


def table_of(paths: list[Any], **more: list[Any]) -> tuple[pa.Table, list[str]]:
    columns = {"path": pa.array(paths, pa.string()), "label": ["x"] * len(paths), **more}
    return pa.table(columns), [f"rows.csv:{row + 2}" for row in range(len(paths))]


def test_a_table_of_paths(tmp_path: Path) -> None:
    save(tmp_path / "图" / "一.png", 1)
    save(tmp_path / "b.png", 2)
    table, origins = table_of(["图/一.png", "./图/../b.png", str(tmp_path / "b.png")], label=["猫", "狗", "狗"], who=["p", "q", "q"])
    raw = from_table(table, origins, tmp_path, DataRecipe(group_column="who"))
    rows = raw.table.to_pylist()
    assert [row["path"] for row in rows] == [str(tmp_path / "图" / "一.png"), str(tmp_path / "b.png"), str(tmp_path / "b.png")]
    assert [(row["label"], row["origin"], row["group"]) for row in rows] == [
        ("猫", "rows.csv:2", "p"),
        ("狗", "rows.csv:3", "q"),
        ("狗", "rows.csv:4", "q"),
    ]
    assert rows[1]["id"] == rows[2]["id"] != rows[0]["id"]
    assert any("image path column: 'path' (guessed" in note for note in raw.notes)
    other = table.rename_columns(["where", "kind", "who"])
    given = from_table(other, origins, tmp_path, DataRecipe(input_column="where", label_column="kind"))
    assert given.table.num_rows == 3 and given.notes == []
    with pytest.raises(DataError, match=r"rows\.csv: no column looks like the image path; the columns are: 'where', 'kind', 'who'"):
        from_table(other, origins, tmp_path, RECIPE)


def test_hostile_paths_are_set_aside(tmp_path: Path) -> None:
    base = tmp_path / "base"
    save(base / "good.png")
    secret = save(tmp_path / "secret.png", 1)
    save(tmp_path / "base2" / "near.png", 2)
    (base / "link.png").symlink_to(secret)
    (base / "way").symlink_to(tmp_path, target_is_directory=True)
    (base / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    hostile = {
        "../secret.png": "leads outside the folder",
        "a/../../secret.png": "leads outside the folder",
        str(secret): "leads outside the folder",
        "../base2/near.png": "leads outside the folder",
        "/etc/passwd": "leads outside the folder",
        "link.png": "is a link that leads outside the folder",
        "way/secret.png": "is a link that leads outside the folder",
        "good.png\0.jpg": "a path with a NUL byte",
        "http://example.org/x.png": "a URL; nothing is fetched",
        "FILE:///etc/passwd": "a URL; nothing is fetched",
        "data:image/png;base64,AAAA": "a URL; nothing is fetched",
        "gone.png": "'gone.png': no such file",
        "x" * 5000: "cannot be",
        "broken.png": "truncated PNG",
        ".": "not a regular file",
        "~/x.png": "no such file",
        "  ": "no path",
    }
    table, origins = table_of(["good.png", *hostile, None])
    raw = from_table(table, origins, base, RECIPE)
    assert raw.table["path"].to_pylist() == [str(base / "good.png")]
    assert [one.origin for one in raw.set_aside] == origins[1:]
    for one, expected in zip(raw.set_aside, [*hostile.values(), "no path"], strict=True):
        assert expected in one.reason, one
    with pytest.raises(DataError, match=r"no row of column 'path' names an image that can be read \(1 set aside, the first: rows.csv:2"):
        from_table(*table_of(["../secret.png"]), base, RECIPE)


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "variant",
    [
        lambda x: x,
        lambda x: x.astype(np.int64),
        lambda x: x.astype(np.float32) / 255,
        lambda x: x.astype(np.float64) / 255,
        lambda x: torch.from_numpy(x),
        lambda x: torch.from_numpy(x).permute(0, 3, 1, 2),
        lambda x: torch.from_numpy(x).permute(0, 3, 1, 2) / 255,
        lambda x: x.transpose(0, 3, 1, 2),
        lambda x: list(x),
    ],
)
def test_arrays_of_every_kind_are_the_same(variant: Callable[[np.ndarray], Any]) -> None:
    raw = from_arrays(variant(IMAGES), [0, 1, 2, 1, 0], ["甲", "乙", "丙"])
    np.testing.assert_array_equal(read_block(raw.table, np.arange(5)), IMAGES)
    assert raw.table["label"].to_pylist() == ["甲", "乙", "丙", "乙", "甲"]
    assert raw.table["id"].to_pylist() == from_arrays(IMAGES, [0] * 5).table["id"].to_pylist()
    assert raw.table.schema.field("pixels").type == pa.binary()
    assert raw.table["origin"].to_pylist()[4] == "row 4"


def test_grey_arrays_and_ids() -> None:
    raw = from_arrays(np.stack([IMAGES[0, ..., 0], IMAGES[1, ..., 0], IMAGES[0, ..., 0]]), np.array([3, 4, 3]))
    assert raw.table["channels"].to_pylist() == [1, 1, 1] and raw.table["label"].to_pylist() == ["3", "4", "3"]
    ids = raw.table["id"].to_pylist()
    assert ids[0] == ids[2] != ids[1]
    turned = from_arrays(IMAGES[:1, ..., 0].reshape(1, 7, 6), [3]).table["id"].to_pylist()
    assert turned[0] != ids[0]  # the same bytes in another shape
    chars = from_arrays(IMAGES[..., 0] > 100, ["a"] * 5)
    assert set(np.unique(read_block(chars.table, np.arange(5)))) == {0, 255}  # type: ignore[arg-type]


def test_labels_of_every_kind() -> None:
    def labels(values: Any, names: list[str] | None = None) -> list[Any]:
        return from_arrays(IMAGES[: len(values)], values, names).table["label"].to_pylist()

    assert labels(torch.tensor([1, 0])) == ["1", "0"]
    assert labels([0.5, 1.0]) == [0.5, 1.0]
    assert labels(np.array([[1, 0, 1], [0, 0, 0]]), ["a", "b", "c"]) == [["a", "c"], []]
    assert labels([["x", "y"], ["z"]]) == [["x", "y"], ["z"]]
    with pytest.raises(DataError, match="labels: class 3, but class_names has 2 names, expected 0 to 1"):
        labels([0, 3], ["a", "b"])


def test_arrays_that_cannot_be_images() -> None:
    for images, message in (
        (IMAGES.astype(np.float32), r"float32 values from 0.0 to 255.0, expected uint8, or floats from 0 to 1.* Divide them"),
        (np.full((2, 3, 3), np.nan), "float64 values from nan to nan"),
        (IMAGES.astype(np.int32) - 1, "int32 values from -1 to 254"),
        (np.zeros((2, 5, 5, 2), np.uint8), r"shape \(2, 5, 5, 2\), expected 1, 3 or 4 channels"),
        (np.zeros(7, np.uint8), r"an array uint8 \(7,\), expected uint8, or floats from 0 to 1, of shape \(rows, height, width"),
        (np.zeros((2, 0, 5), np.uint8), "at least one pixel"),
    ):
        with pytest.raises(DataError, match=message):
            from_arrays(images, [0, 1])
    with pytest.raises(DataError, match="5 images and 2 labels"):
        from_arrays(IMAGES, [0, 1])


class Pairs(torch.utils.data.Dataset):  # type: ignore[type-arg]
    classes = ("猫", "狗")

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        item, label = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item, label


def test_torch_datasets(tmp_path: Path) -> None:
    pil = Image.fromarray(IMAGES[0])
    chw = torch.from_numpy(IMAGES[1]).permute(2, 0, 1) / 255
    broken = OSError("image file is truncated")
    items = [(pil, 0), (broken, 0), (chw, torch.tensor(1)), (pil.convert("LA"), np.int64(1)), (IMAGES[2, :3], 0)]
    raw = from_torch_dataset(torch.utils.data.Subset(Pairs([*items, (pil, 1)]), range(5)))
    assert raw.table["label"].to_pylist() == ["猫", "狗", "狗", "猫"]
    assert raw.table["origin"].to_pylist() == ["item 0", "item 2", "item 3", "item 4"]
    assert [(one.origin, one.reason) for one in raw.set_aside] == [("item 1", "image file is truncated")]
    for row, expected in ((0, IMAGES[0]), (1, IMAGES[1]), (3, IMAGES[2, :3])):
        np.testing.assert_array_equal(read_pixels(raw.table, row, max_pixels=MANY), expected)
    assert raw.table["id"].to_pylist()[0] == from_arrays(IMAGES[:1], [0]).table["id"].to_pylist()[0]
    with pytest.raises(DataError, match=r"the dataset gave no image \(1 items set aside; the first: broken\)"):
        from_torch_dataset(Pairs([(OSError("broken"), 0)]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_torch_datasets_picture_is_upright_as_a_files_is(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path, exif=exif)

    class Pictures(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, row):
            return Image.open(path), 0

    table = from_torch_dataset(Pictures()).table
    expected = decode_image(str(path), max_pixels=1000)
    assert (table["height"][0].as_py(), table["width"][0].as_py()) == expected.shape[:2] == ((6, 4) if orientation >= 5 else (4, 6))
    assert table["pixels"][0].as_py() == expected.tobytes()
