"""The encoder equals a plain Pillow reference, and its batches do not depend on how rows are grouped."""

from __future__ import annotations

import dataclasses
import io
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from frostline.data.dataset import Schema
from frostline.data.image_encoder import encode_images, fit, image_encoder
from frostline.data.image_sources import from_arrays
from frostline.data.preprocess import ImagePreprocess
from frostline.errors import DataError
from frostline.recipe import AugmentRecipe

MANY = 10**8
SCHEMA = Schema(task="image-classification", labels=("a", "b", "c"))
IMAGENET = ImagePreprocess(size=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SIZES = [(40, 60), (100, 32), (32, 32), (20, 24), (64, 64)]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.asarray(Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def table(tmp_path: Path) -> pa.Table:
    paths = []
    for number, (height, width) in enumerate(SIZES):
        paths.append(str(tmp_path / f"图{number}.png"))
        Image.fromarray(picture(height, width, number)).save(paths[-1])
    return pa.table({"path": paths, "label": pa.array([0, 1, 2, 0, 1], pa.int32())})


def grey_table(rows: int) -> pa.Table:
    images = np.random.default_rng(0).integers(0, 256, (rows, 28, 28), dtype=np.uint8)
    stored = from_arrays(images, np.zeros(rows, int)).table
    return stored.set_column(stored.column_names.index("label"), "label", pa.array(np.arange(rows) % 3, pa.int32()))


@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic"])
def test_squashed_like_pillow(table: pa.Table, name: str) -> None:
    preprocess = ImagePreprocess(size=32, mean=IMAGENET.mean, std=IMAGENET.std, interpolation=name)  # type: ignore[arg-type]
    batch = image_encoder(table, SCHEMA, preprocess, max_pixels=MANY)(np.arange(5), None)
    filters = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    for row, path in enumerate(table["path"].to_pylist()):
        pixels = np.asarray(Image.open(path).resize((32, 32), filters[name]), dtype=np.float32)
        expected = ((pixels / 255 - IMAGENET.mean) / IMAGENET.std).transpose(2, 0, 1)
        np.testing.assert_allclose(batch.inputs["pixel_values"][row], expected, atol=1e-5)
    assert batch.inputs["pixel_values"].dtype == torch.float32
    assert batch.labels.tolist() == [0, 1, 2, 0, 1] and batch.labels.dtype == torch.int64
    assert batch.rows.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("crop", [0.875, 0.5])
@pytest.mark.parametrize(("height", "width"), [*SIZES, (37, 32), (33, 51)])
def test_centre_crop_equals_resize_then_crop(height: int, width: int, crop: float) -> None:
    pixels = picture(height, width)
    short = round(32 / crop)
    tall, wide = short * height // min(height, width), short * width // min(height, width)
    resized = Image.fromarray(pixels).resize((wide, tall), Image.Resampling.BILINEAR)
    top, left = round((tall - 32) / 2), round((wide - 32) / 2)
    expected = np.asarray(resized)[top : top + 32, left : left + 32].astype(int)
    assert np.abs(fit(pixels, ImagePreprocess(size=32, crop=crop)) - expected).max() <= 1


def test_a_thin_picture_does_not_fill_the_memory() -> None:
    assert fit(np.zeros((1, 3_000_000, 3), np.uint8), ImagePreprocess(size=32, crop=0.875)).shape == (32, 32, 3)


def test_an_image_of_the_right_size_is_not_touched() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    encoded = encode_images([pixels], ImagePreprocess(size=32, scale=1.0), MANY)
    np.testing.assert_array_equal(encoded[0].numpy().transpose(1, 2, 0), pixels)


def test_channel_orders() -> None:
    pixels = picture(32, 32)
    bgr = ImagePreprocess(size=32, scale=1.0, mean=(103.939, 116.779, 123.68), channels="bgr")
    expected = pixels[..., ::-1].astype(np.float32) - np.array([103.939, 116.779, 123.68], np.float32)
    np.testing.assert_allclose(encode_images([pixels], bgr, MANY)[0].permute(1, 2, 0), expected, atol=1e-4)
    grey = ImagePreprocess(size=32, scale=1.0, channels="grey")
    np.testing.assert_array_equal(encode_images([pixels], grey, MANY)[0, 0], np.asarray(Image.fromarray(pixels).convert("L")))


def test_grey_arrays_stay_as_they_are() -> None:
    table = grey_table(6)
    stored = np.frombuffer(table["pixels"].combine_chunks().buffers()[2], np.uint8).reshape(6, 28, 28)
    rows = np.array([4, 0])
    grey = image_encoder(table, SCHEMA, ImagePreprocess(size=28, scale=1.0, channels="grey"), max_pixels=MANY)(rows, None)
    np.testing.assert_array_equal(grey.inputs["pixel_values"][:, 0], stored[rows])
    rgb = image_encoder(table, SCHEMA, ImagePreprocess(size=28, scale=1.0), max_pixels=MANY)(rows, None)
    np.testing.assert_array_equal(rgb.inputs["pixel_values"], np.repeat(stored[rows][:, None], 3, 1))
    larger = image_encoder(table, SCHEMA, ImagePreprocess(size=32, scale=1.0, channels="grey"), max_pixels=MANY)(rows, None)
    expected = np.asarray(Image.fromarray(stored[4]).resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(larger.inputs["pixel_values"][0, 0], expected)


def test_jpeg_is_scaled_while_decoding_but_not_for_nearest() -> None:
    sink = io.BytesIO()
    Image.fromarray(picture(256, 320)).save(sink, "JPEG", quality=95)
    full = Image.open(io.BytesIO(sink.getvalue()))
    for name, tolerance in (("nearest", 0.0), ("bilinear", 3.0)):
        preprocess = ImagePreprocess(size=32, scale=1.0, interpolation=name)  # type: ignore[arg-type]
        encoded = encode_images([sink.getvalue()], preprocess, MANY)[0].permute(1, 2, 0).numpy()
        kind = Image.Resampling.NEAREST if name == "nearest" else Image.Resampling.BILINEAR
        assert np.abs(encoded - np.asarray(full.resize((32, 32), kind)).astype(int)).mean() <= tolerance


def test_training_rows_do_not_depend_on_the_batch(table: pa.Table) -> None:
    recipe = AugmentRecipe(shear=0.2, zoom=0.2, horizontal_flip=True, contrast=0.2)
    encode = image_encoder(table, SCHEMA, IMAGENET, max_pixels=MANY, augment=recipe, seed=5)
    together = encode(np.arange(5), 3).inputs["pixel_values"]
    for rows in ([3], [4, 0], [2, 1, 3]):
        assert torch.equal(encode(np.array(rows), 3).inputs["pixel_values"], together[rows])
    assert not torch.equal(encode(np.arange(5), 4).inputs["pixel_values"], together)
    plain = image_encoder(table, SCHEMA, IMAGENET, max_pixels=MANY)(np.arange(5), 3).inputs["pixel_values"]
    assert torch.equal(encode(np.arange(5), None).inputs["pixel_values"], plain)
    still = image_encoder(table, SCHEMA, IMAGENET, max_pixels=MANY, augment=AugmentRecipe(rescale=1 / 255, fill="reflect"))
    assert torch.equal(still(np.arange(5), 3).inputs["pixel_values"], plain)


def test_views_are_taken_in_turn(table: pa.Table) -> None:
    recipe = AugmentRecipe(rotation=20.0, horizontal_flip=True)
    anew, in_turn = (
        image_encoder(table, SCHEMA, IMAGENET, max_pixels=MANY, augment=dataclasses.replace(recipe, views=views), seed=5)
        for views in (None, 3)
    )
    for epoch in range(7):
        assert torch.equal(in_turn(np.arange(5), epoch).inputs["pixel_values"], anew(np.arange(5), epoch % 3).inputs["pixel_values"])
    assert not torch.equal(anew(np.arange(5), 3).inputs["pixel_values"], anew(np.arange(5), 0).inputs["pixel_values"])


def test_labels_of_each_target(table: pa.Table) -> None:
    column = table.column_names.index("label")
    several = table.set_column(column, "label", pa.array([[0, 2], [], [1], [2], [0]], pa.list_(pa.int32())))
    schema = Schema(task="image-classification", target="multi-label", labels=("a", "b", "c"))
    batch = image_encoder(several, schema, IMAGENET, max_pixels=MANY)(np.array([1, 0]), None)
    assert batch.labels.tolist() == [[0, 0, 0], [1, 0, 1]] and batch.labels.dtype == torch.float32
    numbers = table.set_column(column, "label", pa.array([0.5, 1.5, 2.5, 3.5, 4.5]))
    batch = image_encoder(numbers, Schema(task="image-classification", target="number"), IMAGENET, max_pixels=MANY)(np.array([2]), None)
    assert batch.labels.tolist() == [[2.5]] and batch.labels.dtype == torch.float32
    mixing = image_encoder(table, SCHEMA, IMAGENET, max_pixels=MANY, augment=AugmentRecipe(mixup=0.4))
    soft = mixing(np.arange(5), 0).labels
    assert soft.shape == (5, 3) and soft.dtype == torch.float32
    torch.testing.assert_close(soft.sum(1), torch.ones(5))
    assert mixing(np.arange(5), None).labels.dtype == torch.int64


def test_prediction_equals_evaluation(table: pa.Table) -> None:
    paths = table["path"].to_pylist()
    expected = image_encoder(table, SCHEMA, IMAGENET, max_pixels=MANY)(np.arange(5), None).inputs["pixel_values"]
    assert torch.equal(encode_images(paths, IMAGENET, MANY), expected)
    assert torch.equal(encode_images([Path(path).read_bytes() for path in paths], IMAGENET, MANY), expected)
    assert torch.equal(encode_images([np.asarray(Image.open(path)) for path in paths], IMAGENET, MANY), expected)
    assert encode_images([], IMAGENET, MANY).shape == (0, 3, 32, 32)


def test_bad_inputs_are_named(tmp_path: Path) -> None:
    (tmp_path / "坏.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"坏\.jpg': empty file"):
        encode_images([str(tmp_path / "坏.jpg")], IMAGENET, MANY)
    with pytest.raises(DataError, match=r"image 1: an array float64 \(3, 3, 3\), expected uint8 \(height, width\)"):
        encode_images([np.zeros((4, 4), np.uint8), np.zeros((3, 3, 3))], IMAGENET, MANY)
    with pytest.raises(DataError, match=r"image 0: 2 channels, expected 1 \(grey\)"):
        encode_images([np.zeros((4, 4, 2), np.uint8)], IMAGENET, MANY)


def test_small_arrays_are_fast() -> None:
    table = grey_table(6000)
    recipe = AugmentRecipe(zoom=0.1, horizontal_flip=True)
    encode = image_encoder(table, SCHEMA, ImagePreprocess(size=28, channels="grey"), max_pixels=MANY, augment=recipe)
    encode(np.arange(64), 0)
    start = time.thread_time()  # of this thread alone, whatever else the machine does
    for first in range(0, 6000, 64):
        encode(np.arange(first, min(first + 64, 6000)), 0)
    assert time.thread_time() - start < 2.0  # a tenth of 60 000 images; about 0.3 s on one core
