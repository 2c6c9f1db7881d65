"""Images and their labels: from folders, tables with a path column, IDX files, arrays and PyTorch datasets.

Every image *file* is decoded once while it is read (a JPEG at an eighth of its size, all of its bytes nevertheless), so what
is damaged is set aside now, with its reason, and not in the middle of an epoch. The id is a hash of the file's bytes, or of
an array's shape and pixels. Only files that really lie below the given folder are used: a path or a link that leads out of
it is set aside, and nothing is ever fetched.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from frostline.data.clean import WARNING
from frostline.data.columns import choose_column, refuse_same
from frostline.data.idx import idx_pairs, read_idx
from frostline.data.images import decode_with_size, pillow_to_rgb, read_image_file
from frostline.data.raw import Raw, SetAside
from frostline.data.split import refuse_lost
from frostline.data.tables import spell_column
from frostline.data.text_sources import SPLIT_FOLDERS, group_column
from frostline.errors import DataError
from frostline.recipe import DataRecipe

_TASK = "image-classification"
_ID_BYTES = 16
_PROGRESS_FROM = 500
_CHANNELS = (1, 3, 4)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:|file:")


@dataclass(frozen=True, kw_only=True)
class _Examined:
    id: str
    height: int
    width: int


# -- Files ------------------------------------------------------------------------------------------------------------


def from_folder(folder: str | Path, recipe: DataRecipe, *, progress: bool = True) -> Raw:
    """A folder per class (``root/class/**``), or that below split folders (``root/train/class/**``).

    The folder's name is the label; sub-folders belong to the class above them. Raises DataError where no image can be used.
    """
    root = Path(os.path.abspath(folder))
    if not root.is_dir():
        raise DataError(f"{str(folder)!r} is not a folder, expected one that holds a folder per class. Check the path")
    files, aside = _walk(root)
    parts = {path: path.relative_to(root).parts for path in files}
    splits = _has_splits(root, parts.values())
    level = 1 if splits else 0
    inside = [path for path in files if len(parts[path]) > level + 1]
    aside += [SetAside(origin=str(path), reason="not in a class folder") for path in files if len(parts[path]) <= level + 1]
    found = _examine([str(path) for path in inside], recipe, progress)
    good = [path for path in inside if isinstance(found[str(path)], _Examined)]
    aside += [SetAside(origin=path, reason=reason) for path, reason in found.items() if isinstance(reason, str)]
    if not good:
        first = f"; the first: {aside[0].origin!r}, {aside[0].reason}" if aside else ""
        raise DataError(
            f"{str(folder)!r} holds no image in a class folder ({len(aside)} files set aside{first}). "
            "Expected FOLDER/CLASS/picture.jpg, or FOLDER/train/CLASS/picture.jpg"
        )
    paths = [str(path) for path in good]
    table = _path_table(paths, paths, pa.array([parts[path][level] for path in good], pa.string()), found)
    if splits:
        named = {path: SPLIT_FOLDERS[parts[path][0].casefold()] for path in inside}
        given = [named[path] for path in good]
        refuse_lost([*map(str, inside)], [*named.values()], given, aside)
        table = table.append_column("split", pa.array(given, pa.string()))
    notes = ["layout: a folder per class" + (", below a folder per split" if splits else "")]
    empty = set() if splits else {path.name for path in root.iterdir() if path.is_dir()} - {parts[path][0] for path in good}
    if names := ", ".join(repr(name) for name in sorted(empty) if name[0] != "."):
        notes.append(f"{WARNING}no class, for no image in it can be used: {names}")
    return Raw(task=_TASK, table=table, set_aside=aside, notes=notes + _count_reasons(aside))


def from_table(table: pa.Table, origins: list[str], base: str | Path, recipe: DataRecipe, *, progress: bool = True) -> Raw:
    """Rows that name an image by its path below ``base``, the folder of the file that the rows come from."""
    where = origins[0].rpartition(":")[0] if origins else "table"
    image, image_notes = choose_column(table.column_names, "image", recipe.input_column, where)
    label, label_notes = choose_column(table.column_names, "label", recipe.label_column, where)
    refuse_same(image, label, where)
    root = Path(os.path.abspath(base))
    resolved = [_resolve(value, root) for value in table[image].to_pylist()]
    found = _examine(list(dict.fromkeys(str(path) for path in resolved if isinstance(path, Path))), recipe, progress)
    aside, rows = [], []
    for row, path in enumerate(resolved):
        outcome = found[str(path)] if isinstance(path, Path) else path
        if isinstance(outcome, str):
            aside.append(SetAside(origin=origins[row], reason=outcome))
        else:
            rows.append(row)
    if not rows:
        first = f", the first: {aside[0].origin}, {aside[0].reason}" if aside else ""
        raise DataError(
            f"{where}: no row of column {image!r} names an image that can be read ({len(aside)} set aside{first}). "
            "Write paths relative to the table's folder, or name the column with data.input_column=NAME"
        )
    labels = spell_column(table[label].to_pylist()).take(pa.array(rows))
    result = _path_table([str(resolved[row]) for row in rows], [origins[row] for row in rows], labels, found)
    if recipe.group_column is not None:
        result = result.append_column("group", group_column(table, recipe.group_column, where).take(pa.array(rows)))
    return Raw(task=_TASK, table=result, set_aside=aside, notes=[*image_notes, *label_notes, *_count_reasons(aside)])


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts ``cat.10`` after ``cat.9``.

    >>> sorted(["b10", "b9", "a"], key=natural_key)
    ['a', 'b9', 'b10']
    """
    pieces = re.split(r"([0-9]+)", name)
    return [(1, int(piece), piece) if index % 2 else (0, 0, piece) for index, piece in enumerate(pieces)]


def _walk(root: Path) -> tuple[list[Path], list[SetAside]]:
    """All files below ``root`` in natural order. Hidden names are skipped, links that lead out and linked folders set aside."""
    files: list[Path] = []
    aside: list[SetAside] = []
    real_root = Path(os.path.realpath(root))
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: natural_key(entry.name))
        except OSError as error:
            aside.append(SetAside(origin=str(folder), reason=f"cannot be read ({error.strerror})"))
            continue
        below = []
        for entry in entries:
            path = folder / entry.name
            if _is_hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                below.append(path)
            elif entry.is_symlink() and (reason := _link_fault(path, real_root)):
                aside.append(SetAside(origin=str(path), reason=reason))
            else:
                files.append(path)
        waiting += reversed(below)
    return files, aside


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in ("thumbs.db", "desktop.ini", "__macosx", "__pycache__")


def _link_fault(path: Path, real_root: Path) -> str | None:
    try:
        real = Path(os.path.realpath(path))
    except OSError as error:
        return f"a link that cannot be followed ({error.strerror})"
    if not real.is_relative_to(real_root):
        return "a link that leads outside the folder"
    if real.is_dir():
        return "a link to a folder, which is not followed"
    return None if real.exists() else "a link to nothing"


def _has_splits(root: Path, parts: Iterable[tuple[str, ...]]) -> bool:
    """Whether the folders below ``root`` are splits: one of them is for training and itself holds folders.

    A class that is called "train" holds pictures. Raises DataError where split folders and others stand side by side.
    """
    below = {part[0] for part in parts if len(part) > 1}
    deeper = {part[0] for part in parts if len(part) > 2}
    if not any(SPLIT_FOLDERS.get(name.casefold()) == "train" for name in deeper):
        return False
    strange = sorted(name for name in below if name.casefold() not in SPLIT_FOLDERS)
    if strange:
        raise DataError(
            f"{str(root)!r} holds split folders and, beside them, {', '.join(map(repr, strange))}, expected only "
            f"{', '.join(SPLIT_FOLDERS)} there. Move what is not a split elsewhere"
        )
    return True


def _resolve(value: Any, root: Path) -> Path | str:
    """The file that a row's path names, or why it is not used."""
    if not isinstance(value, str) or not value.strip():
        return "no path"
    if "\0" in value:
        return "a path with a NUL byte"
    if _URL.match(value):
        return "a URL; nothing is fetched"
    path = Path(os.path.normpath(root / value))
    if not path.is_relative_to(root):
        return f"{value!r} leads outside the folder {str(root)!r}"
    try:
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(os.path.realpath(root)):
            return f"{value!r} is a link that leads outside the folder {str(root)!r}"
        return path if real.exists() else f"{value!r}: no such file"
    except (OSError, ValueError) as error:
        return f"{value!r} cannot be looked up ({getattr(error, 'strerror', None) or error})"


def _examine(paths: list[str], recipe: DataRecipe, progress: bool) -> dict[str, _Examined | str]:
    """Each file's hash and size, or the reason why it cannot be used."""
    quiet = not (progress and len(paths) > _PROGRESS_FROM and sys.stderr.isatty())
    pool = ThreadPoolExecutor(recipe.workers or os.cpu_count() or 1, thread_name_prefix="frostline-images")
    try:
        results = pool.map(lambda path: _examine_one(path, recipe.max_pixels), paths)
        return dict(zip(paths, tqdm(results, "reading images", len(paths), unit="", file=sys.stderr, disable=quiet), strict=True))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _examine_one(path: str, max_pixels: int) -> _Examined | str:
    try:
        data = read_image_file(path, max_pixels)
        _, (height, width) = decode_with_size(data, max_pixels=max_pixels, target=1)
    except DataError as error:
        return str(error)
    return _Examined(id=hashlib.blake2b(data, digest_size=_ID_BYTES).hexdigest(), height=height, width=width)


def _path_table(paths: Sequence[str], origins: Sequence[str], labels: pa.Array, found: dict[str, _Examined | str]) -> pa.Table:
    examined = [result for path in paths if isinstance(result := found[path], _Examined)]
    return pa.table(
        {
            "id": pa.array([one.id for one in examined], pa.string()),
            "origin": pa.array(origins, pa.string()),
            "path": pa.array(paths, pa.string()),
            "image_height": pa.array([one.height for one in examined], pa.int32()),
            "image_width": pa.array([one.width for one in examined], pa.int32()),
            "label": labels,
        }
    )


def _count_reasons(aside: list[SetAside]) -> list[str]:
    foreign = sum(one.reason.startswith("not an image") for one in aside)
    return [f"{foreign} files are not images and were set aside"] if foreign else []


# -- IDX --------------------------------------------------------------------------------------------------------------


def from_idx(source: str | Path, recipe: DataRecipe) -> Raw:
    """IDX files as MNIST has them, packed with gzip or not: a folder of them, or one of a pair.

    ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte`` are the training split, ``t10k-…`` the test split.
    """
    pairs = idx_pairs(Path(source))
    parts = []
    for images_path, labels_path, split in pairs:
        images, labels = read_idx(images_path, 3, recipe.max_pixels), read_idx(labels_path, 1, recipe.max_pixels)
        if len(images) != len(labels):
            raise DataError(
                f"{str(images_path)!r} has {len(images)} images, but {str(labels_path)!r} has {len(labels)} labels. Download both again"
            )
        origins = [f"{images_path}:{row}" for row in range(len(images))]
        table = _pixel_table(images[..., None], origins, pa.array(labels).cast(pa.string()))
        parts.append(table.append_column("split", pa.array([split] * len(images), pa.string())))
    notes = ["layout: IDX, " + ", ".join(path.name for path, _, _ in pairs)]
    return Raw(task=_TASK, table=pa.concat_tables(parts), notes=notes)


# -- Arrays -----------------------------------------------------------------------------------------------------------


def from_arrays(images: Any, labels: Any, class_names: Sequence[str] | None = None) -> Raw:
    """Arrays in memory: numpy (rows, height, width[, channels]) or torch (rows[, channels], height, width).

    Values are uint8, or floats from 0 to 1. ``labels`` are class numbers or names, floats to be predicted, lists of names, or
    a 0/1 matrix (rows, classes); ``class_names`` names the numbers.
    """
    array = _as_bytes(images, rows=True)
    names = _label_column(labels, class_names)
    if len(array) != len(names):
        raise DataError(f"images and labels: {len(array)} images and {len(names)} labels, expected as many of the one as of the other")
    return Raw(task=_TASK, table=_pixel_table(array, [f"row {row}" for row in range(len(array))], names))


def from_torch_dataset(dataset: Any) -> Raw:
    """A ``torch.utils.data.Dataset`` of (image, label) pairs, read once in order; images are PIL, arrays or tensors.

    Its pixels are held in memory as they are; large photographs are better given as a folder. A ``classes`` list, as
    torchvision's datasets have one, names the classes.
    """
    images, labels, origins, aside = [], [], [], []
    for row in range(len(dataset)):
        try:
            image, label = dataset[row]
            pixels = pillow_to_rgb(_upright(image)) if isinstance(image, Image.Image) else _as_bytes(image, rows=False)
        except (OSError, DataError) as error:  # OSError: what Pillow raises inside a dataset on a damaged file
            aside.append(SetAside(origin=f"item {row}", reason=str(error)))
            continue
        images.append(pixels)
        labels.append(label.item() if isinstance(label, torch.Tensor | np.generic) and label.ndim == 0 else label)
        origins.append(f"item {row}")
    if not images:
        first = f"; the first: {aside[0].reason}" if aside else ""
        raise DataError(f"the dataset gave no image ({len(aside)} items set aside{first}), expected pairs (image, label)")
    while isinstance(dataset, torch.utils.data.Subset):
        dataset = dataset.dataset
    table = _pixel_table(images, origins, _label_column(labels, getattr(dataset, "classes", None)))
    return Raw(task=_TASK, table=table, set_aside=aside)


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says, as the same picture is when it is read from a file."""
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, KeyError, TypeError, struct.error):  # a damaged block; a wrong tag spoils no pixels
        return image


def _as_bytes(images: Any, rows: bool) -> np.ndarray:
    """Uint8 ([rows,] height, width, channels)."""
    tensor = isinstance(images, torch.Tensor)
    array = images.detach().cpu().float().numpy() if tensor and images.is_floating_point() else np.asarray(images)
    expected = "uint8, or floats from 0 to 1, of shape " + ("(rows, " if rows else "(") + "height, width[, channels])"
    plain = array.ndim == 2 + rows
    if not plain and array.ndim != 3 + rows:
        raise DataError(f"images: an array {array.dtype} {array.shape}, expected {expected}")
    if plain:
        array = array[..., None]
    elif array.shape[-3] in _CHANNELS and (tensor or array.shape[-1] not in _CHANNELS):
        array = np.moveaxis(array, -3, -1)
    if array.shape[-1] not in _CHANNELS or not array.size:
        raise DataError(f"images: an array of shape {array.shape}, expected 1, 3 or 4 channels and at least one pixel")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    low, high = array.min(), array.max()
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if np.issubdtype(array.dtype, np.floating) and low >= 0 and high <= 1:
        return np.rint(array * 255).astype(np.uint8)
    if np.issubdtype(array.dtype, np.integer) and low >= 0 and high <= 255:
        return array.astype(np.uint8)
    raise DataError(f"images: {array.dtype} values from {low} to {high}, expected {expected}. Divide them, as in images / images.max()")


def _label_column(labels: Any, class_names: Sequence[str] | None) -> pa.Array:
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu().numpy()
    values = [value.tolist() if isinstance(value, np.ndarray | np.generic | torch.Tensor) else value for value in labels]
    if all(isinstance(value, float) for value in values) and values:
        return pa.array(values, pa.float64())
    matrix = all(isinstance(value, list) and set(value) <= {0, 1} for value in values)

    def named(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [named(item) for item in ([i for i, on in enumerate(value) if on] if matrix else value)]
        if class_names is None or not isinstance(value, int):
            return value
        if not 0 <= value < len(class_names):
            raise DataError(f"labels: class {value!r}, but class_names has {len(class_names)} names, expected 0 to {len(class_names) - 1}")
        return class_names[value]

    return spell_column([named(value) for value in values])


def _pixel_table(images: Sequence[np.ndarray] | np.ndarray, origins: list[str], labels: pa.Array) -> pa.Table:
    """Images of one shape become Arrow's buffers without a copy; others are stored one by one."""
    shapes = np.array([image.shape for image in images], dtype=np.int32).reshape(-1, 3)
    sizes = {name: pa.array(shapes[:, axis]) for axis, name in enumerate(("height", "width", "channels"))}
    pixels = pa.chunked_array(list(_blocks(images)), pa.binary())
    ids, places = pa.array([_array_id(image) for image in images], pa.string()), pa.array(origins, pa.string())
    return pa.table({"id": ids, "origin": places, "pixels": pixels, **sizes, "label": labels})


def _blocks(images: Sequence[np.ndarray] | np.ndarray, most: int = 2**31 - 1) -> Iterator[pa.Array]:
    """Binary arrays below Arrow's limit of 2 GiB for each."""
    start = 0
    while start < len(images):
        stop, size = start + 1, images[start].size
        while stop < len(images) and size + images[stop].size <= most:
            size += images[stop].size
            stop += 1
        block = images[start:stop]
        values = np.ascontiguousarray(block) if isinstance(block, np.ndarray) else np.concatenate([image.reshape(-1) for image in block])
        offsets = np.cumsum([0, *(image.size for image in block)], dtype=np.int32)
        yield pa.Array.from_buffers(pa.binary(), stop - start, [None, pa.py_buffer(offsets), pa.py_buffer(values)])
        start = stop


def _array_id(image: np.ndarray) -> str:
    digest = hashlib.blake2b("x".join(map(str, image.shape)).encode(), digest_size=_ID_BYTES)
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()
