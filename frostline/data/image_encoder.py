"""Rows of images → the tensors that a network takes. Training, evaluation and prediction all come through here.

    decode → resize → crop → (augment, in training) → (pixels · scale - mean) / std

Resizing is Pillow's antialiased one: a filter as wide as the reduction (for ``nearest``: the plain choice of a pixel, which
is what Keras's ``load_img`` does). A JPEG that is to be reduced anyway is decoded at a fraction of its size, except for
``nearest``, where each chosen pixel counts. Augmentation sees values 0–255 before normalisation, as Keras's does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from frostline.data.augment import augment as augment_images
from frostline.data.augment import mix
from frostline.data.dataset import Schema, labels_tensor
from frostline.data.images import decode_image, read_block, read_pixels, to_rgb
from frostline.data.loader import Batch, Encode
from frostline.data.preprocess import ImagePreprocess
from frostline.errors import DataError
from frostline.recipe import AugmentRecipe

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def image_encoder(
    table: pa.Table,
    schema: Schema,
    preprocess: ImagePreprocess,
    *,
    max_pixels: int,
    augment: AugmentRecipe | None = None,
    seed: int = 0,
) -> Encode:
    """The function that makes the batches of one split; with ``augment``, its training epochs are augmented."""
    all_labels = labels_tensor(table, schema)

    def encode(rows: np.ndarray, epoch: int | None) -> Batch:
        images = _to_channels(_read_squares(table, rows, preprocess, max_pixels), preprocess.channels)
        index = torch.from_numpy(np.asarray(rows, dtype=np.int64))
        labels = all_labels[index]
        if epoch is not None and augment is not None and augment.random:
            images = augment_images(images, augment, seed, epoch % (augment.views or epoch + 1), rows)
            if augment.mixup or augment.cutmix:
                images, labels = mix(images, _soft(labels, schema), augment, seed, epoch, rows)
        inputs = {"pixel_values": _normalise(images, preprocess)}
        return Batch(inputs=inputs, labels=labels, rows=index)

    return encode


def encode_images(sources: Sequence[str | bytes | np.ndarray], preprocess: ImagePreprocess, max_pixels: int) -> torch.Tensor:
    """Files, their bytes, or uint8 arrays (height, width[, 1, 3 or 4]) → float32 (sources, channels, size, size), for prediction."""
    squares = np.empty((len(sources), preprocess.size, preprocess.size, 3), dtype=np.uint8)
    for index, source in enumerate(sources):
        where = repr(source) if isinstance(source, str) else f"image {index}"
        try:
            if isinstance(source, np.ndarray):
                pixels = to_rgb(_checked_array(source))
            else:
                pixels = decode_image(source, max_pixels=max_pixels, target=_decoded_side(preprocess))
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        squares[index] = fit(pixels, preprocess)
    return _normalise(_to_channels(squares, preprocess.channels), preprocess)


def fit(pixels: np.ndarray, preprocess: ImagePreprocess) -> np.ndarray:
    """Resize uint8 RGB of any size to the square that the network takes; see :class:`ImagePreprocess` for ``crop``."""
    size, (height, width) = preprocess.size, pixels.shape[:2]
    if preprocess.crop == 1.0:
        if (height, width) == (size, size):
            return pixels
        return np.asarray(Image.fromarray(pixels).resize((size, size), _FILTERS[preprocess.interpolation]))
    short, shorter = _shorter_side(preprocess), min(height, width)
    tall, wide = max(size, short * height // shorter), max(size, short * width // shorter)
    top, left = round((tall - size) / 2), round((wide - size) / 2)
    if (tall, wide) == (height, width):
        return pixels[top : top + size, left : left + size]
    # Resizing only what the crop keeps: the same pixels, and a picture 1 pixel high and 100 000 wide does not fill the memory.
    down, across = height / tall, width / wide
    box = (left * across, top * down, min((left + size) * across, width), min((top + size) * down, height))
    return np.asarray(Image.fromarray(pixels).resize((size, size), _FILTERS[preprocess.interpolation], box=box))


def _shorter_side(preprocess: ImagePreprocess) -> int:
    """What the shorter side is resized to before the centre crop."""
    return round(preprocess.size / preprocess.crop)


def _decoded_side(preprocess: ImagePreprocess) -> int | None:
    return None if preprocess.interpolation == "nearest" else _shorter_side(preprocess)


def _read_squares(table: pa.Table, rows: np.ndarray, preprocess: ImagePreprocess, max_pixels: int) -> np.ndarray:
    """Uint8 (rows, size, size, 3), or 1 channel where grey images meet a network for grey ones."""
    size, target = preprocess.size, _decoded_side(preprocess)
    block = read_block(table, rows)
    if block is None:
        images = [fit(read_pixels(table, int(row), max_pixels=max_pixels, target=target), preprocess) for row in rows]
        return np.stack(images) if images else np.empty((0, size, size, 3), dtype=np.uint8)
    if not (block.shape[-1] == 1 and preprocess.channels == "grey"):
        block = to_rgb(block)
    if block.shape[1:3] == (size, size) and preprocess.crop == 1.0:
        return block
    if block.shape[-1] == 1:
        return np.stack([fit(image[:, :, 0], preprocess) for image in block])[..., None]
    return np.stack([fit(image, preprocess) for image in block])


def _to_channels(block: np.ndarray, channels: str) -> torch.Tensor:
    """Uint8 (rows, size, size, 1 or 3) → float32 (rows, channels, size, size) with values 0–255, in the network's order."""
    if channels == "grey" and block.shape[-1] == 3:
        # ITU-R 601-2 luma in Pillow's whole numbers, so that it equals convert("L"); r = g = b stays what it is.
        luma = block.astype(np.uint32) @ np.array([19595, 38470, 7471], dtype=np.uint32)
        block = ((luma + 0x8000) >> 16).astype(np.uint8)[..., None]
    if channels == "bgr":
        block = block[..., ::-1]
    return torch.from_numpy(np.ascontiguousarray(block.transpose(0, 3, 1, 2), dtype=np.float32))


def _normalise(images: torch.Tensor, preprocess: ImagePreprocess) -> torch.Tensor:
    """``(pixels · scale - mean) / std``. Never in place: an augmentation that changed nothing hands its input back."""
    channels = images.shape[1]
    mean, std = (torch.tensor(values[:channels])[:, None, None] for values in (preprocess.mean, preprocess.std))
    return (images * preprocess.scale - mean) / std


def _soft(labels: torch.Tensor, schema: Schema) -> torch.Tensor:
    """Labels that can be mixed: float32 (rows, outputs)."""
    if schema.target != "class":
        return labels
    return torch.nn.functional.one_hot(labels, len(schema.labels)).to(torch.float32)


def _checked_array(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or not array.size:
        expected = "uint8 (height, width), (height, width, 1), (height, width, 3) or (height, width, 4)"
        raise DataError(f"an array {array.dtype} {array.shape}, expected {expected}")
    return np.ascontiguousarray(array[..., None] if array.ndim == 2 else array)
