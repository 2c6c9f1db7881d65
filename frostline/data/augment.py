"""Random changes to a batch of training images, each a function of (seed, epoch, row) alone (law 2).

Everything geometric becomes ONE matrix per image and one bilinear warp per batch. With pixel coordinates (x, y, 1), the
matrix sends a point of the result to the point of the image where its colour is read:

    M = crop · centre · rotation(θ) · shift(x, y) · shear(s) · zoom(zx, zy) · centre⁻¹ · flip

    rotation = [[cos θ, -sin θ], [sin θ, cos θ]]    shear = [[1, -sin s], [0, cos s]]    zoom = diag(zx, zy)

with ``centre`` the move of the origin to (size/2 - 1/2). This is the order and the sign of Keras's ImageDataGenerator
(``apply_affine_transform``, its ``tx`` being our horizontal shift), recorded outputs of which are tests here. So a zoom
above 1 shows more (the image shrinks), a positive shift moves the image left or up, and angles, shear's too, are degrees.
Two things are not Keras's: its generator draws ``height_shift_range`` for the horizontal axis and ``width_shift_range`` for
the vertical one, while ours do what their names say; and a shift of one pixel and more is any real number, not a whole one.
Outside the image: ``nearest`` repeats the edge, ``reflect`` mirrors with the edge pixel doubled (as SciPy's "reflect"),
``constant`` is black, fading in over the last pixel.

Cutout: DeVries and Taylor 2017, arXiv:1708.04552. Mixup: Zhang et al. 2018, arXiv:1710.09412. CutMix: Yun et al. 2019,
arXiv:1905.04899. The two mixtures also depend on who else is in the batch, because the partner is one of them; nothing
else does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from frostline.data.randomness import generator, uniform
from frostline.recipe import AugmentRecipe

_PADDING = {"nearest": "border", "reflect": "reflection", "constant": "zeros"}


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The parameters of a batch's changes; each an array whose first dimension is the row, None where not asked for."""

    rotation: np.ndarray | None = None
    """Degrees."""
    shift_x: np.ndarray | None = None
    """Pixels."""
    shift_y: np.ndarray | None = None
    shear: np.ndarray | None = None
    """Degrees."""
    zoom: np.ndarray | None = None
    """(rows, 2): along x, along y."""
    flip_x: np.ndarray | None = None
    """Booleans: mirror left and right."""
    flip_y: np.ndarray | None = None
    crop: np.ndarray | None = None
    """(rows, 3): the share of each side that is kept, then the left and the top edge in pixels."""
    brightness: np.ndarray | None = None
    contrast: np.ndarray | None = None
    cutout: np.ndarray | None = None
    """(rows, 3): the square's side, then its centre's x and y, all in pixels."""


def augment(images: torch.Tensor, recipe: AugmentRecipe, seed: int, epoch: int, rows: np.ndarray) -> torch.Tensor:
    """Change float32 images (rows, channels, size, size) with values 0–255; all but the mixtures (see :func:`mix`)."""
    size = images.shape[-1]
    draws = draw(recipe, seed, epoch, rows, size)
    return adjust(warp(images, affine_matrices(draws, len(rows), size), recipe.fill), draws)


def draw(recipe: AugmentRecipe, seed: int, epoch: int, rows: np.ndarray, size: int) -> Draws:
    """Each change has its own generator, so that turning one on alters no other's draws."""

    def numbers(operation: str, columns: int = 1) -> np.ndarray | None:
        if not getattr(recipe, operation):
            return None
        drawn = uniform(seed, epoch, rows, operation, columns)
        return drawn[:, 0] if columns == 1 else drawn

    def around(centre: float, operation: str, columns: int = 1, unit: float = 1.0) -> np.ndarray | None:
        drawn, width = numbers(operation, columns), getattr(recipe, operation) * unit
        return None if drawn is None else centre + width * (2 * drawn - 1)

    flip_x, flip_y, crop, cutout = numbers("horizontal_flip"), numbers("vertical_flip"), numbers("crop", 3), numbers("cutout", 2)
    if crop is not None:
        kept = 1 - recipe.crop * crop[:, 0]
        crop = np.stack([kept, crop[:, 1] * (1 - kept) * size, crop[:, 2] * (1 - kept) * size], axis=1)
    if cutout is not None:
        side = np.full((len(rows), 1), round(recipe.cutout * size))
        cutout = np.concatenate([side, cutout * size], axis=1)
    return Draws(
        rotation=around(0, "rotation"),
        shift_x=around(0, "width_shift", unit=size if recipe.width_shift < 1 else 1),
        shift_y=around(0, "height_shift", unit=size if recipe.height_shift < 1 else 1),
        shear=around(0, "shear"),
        zoom=around(1, "zoom", 2),
        flip_x=None if flip_x is None else flip_x < 0.5,
        flip_y=None if flip_y is None else flip_y < 0.5,
        crop=crop,
        brightness=around(1, "brightness"),
        contrast=around(1, "contrast"),
        cutout=cutout,
    )


def affine_matrices(draws: Draws, rows: int, size: int) -> np.ndarray:
    """Float64 (rows, 3, 3), from the result's pixel coordinates (x, y, 1) to the image's."""
    centre, back, matrix = _identity(rows), _identity(rows), _identity(rows)
    centre[:, :2, 2], back[:, :2, 2] = size / 2 - 0.5, 0.5 - size / 2
    if draws.rotation is not None:
        cos, sin = np.cos(np.deg2rad(draws.rotation)), np.sin(np.deg2rad(draws.rotation))
        matrix[:, 0, 0], matrix[:, 0, 1], matrix[:, 1, 0], matrix[:, 1, 1] = cos, -sin, sin, cos
    if draws.shift_x is not None or draws.shift_y is not None:
        shift = _identity(rows)
        shift[:, 0, 2] = 0 if draws.shift_x is None else draws.shift_x
        shift[:, 1, 2] = 0 if draws.shift_y is None else draws.shift_y
        matrix = matrix @ shift
    if draws.shear is not None:
        shear = _identity(rows)
        shear[:, 0, 1], shear[:, 1, 1] = -np.sin(np.deg2rad(draws.shear)), np.cos(np.deg2rad(draws.shear))
        matrix = matrix @ shear
    if draws.zoom is not None:
        zoom = _identity(rows)
        zoom[:, 0, 0], zoom[:, 1, 1] = draws.zoom[:, 0], draws.zoom[:, 1]
        matrix = matrix @ zoom
    matrix = centre @ matrix @ back @ _flips(draws, rows, size)
    return matrix if draws.crop is None else _crops(draws.crop, rows) @ matrix


def warp(images: torch.Tensor, matrices: np.ndarray, fill: str) -> torch.Tensor:
    """Read images (rows, channels, height, width) through the matrices, bilinearly. Mere flips, and nothing, are exact."""
    height, width = images.shape[-2:]
    mirrored = np.stack([_mirrored(matrices, 0, width), _mirrored(matrices, 1, height)])  # 0 no, 1 yes, -1 neither
    if (mirrored == 0).all():
        return images
    result = torch.empty_like(images)
    for dims, chosen in (
        ((), (mirrored == [[0], [0]]).all(0)),
        ((-1,), (mirrored == [[1], [0]]).all(0)),
        ((-2,), (mirrored == [[0], [1]]).all(0)),
        ((-2, -1), (mirrored == [[1], [1]]).all(0)),
    ):
        if chosen.any():
            index = torch.from_numpy(np.flatnonzero(chosen))
            result[index] = images[index].flip(dims)
    moved = (mirrored == -1).any(0)
    if moved.any():
        index = torch.from_numpy(np.flatnonzero(moved))
        result[index] = _sample(images[index], matrices[moved], fill)
    return result


def adjust(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Brightness (a factor), contrast (a factor about the image's mean), cutout (a square in the image's mean colour)."""
    if draws.brightness is not None:
        images = (images * _per_row(draws.brightness)).clamp(0, 255)
    if draws.contrast is not None:
        mean = _means(images).mean(dim=1, keepdim=True)
        images = ((images - mean) * _per_row(draws.contrast) + mean).clamp(0, 255)
    if draws.cutout is not None:
        side, x, y = draws.cutout.T
        images = torch.where(_boxes(x, y, side, side, images), _means(images), images)
    return images


def mix(
    images: torch.Tensor, targets: torch.Tensor, recipe: AugmentRecipe, seed: int, epoch: int, rows: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixup and CutMix of images and float32 targets (rows, outputs); with both, each row tosses a coin.

    ``λ ~ Beta(α, α)`` is the share that a row keeps of itself. The partner is another row of the batch, so here a row's
    result depends on its batch.
    """
    if not (recipe.mixup or recipe.cutmix):
        return images, targets
    count, height, width = len(rows), *images.shape[-2:]
    coin, step = np.moveaxis(uniform(seed, epoch, rows, "mix", 2), 1, 0)
    partner = (np.arange(count) + 1 + np.floor(step * (count - 1)).astype(np.int64)) % count
    cut = coin < 0.5 if recipe.mixup and recipe.cutmix else np.full(count, bool(recipe.cutmix))
    blend, sides, centres = np.zeros(count), np.zeros(count), np.zeros((count, 2))
    for position, row in enumerate(rows):
        rng = generator(seed, epoch, int(row), "cutmix" if cut[position] else "mixup")
        alpha = recipe.cutmix if cut[position] else recipe.mixup
        kept = rng.beta(alpha, alpha)
        if cut[position]:
            sides[position], centres[position] = np.sqrt(1 - kept), rng.random(2)
        else:
            blend[position] = 1 - kept
    x, y = centres[:, 0] * width, centres[:, 1] * height
    inside = _boxes(x, y, np.round(sides * width), np.round(sides * height), images)  # (rows, 1, height, width)
    share = torch.where(inside, 1.0, _per_row(blend))
    taken = np.where(cut, inside.sum(dim=(1, 2, 3)).numpy() / (height * width), blend)  # what the cut box really covers
    weight = torch.from_numpy(taken.astype(np.float32))[:, None]
    other = torch.from_numpy(partner)
    return images * (1 - share) + images[other] * share, targets * (1 - weight) + targets[other] * weight


def _identity(rows: int) -> np.ndarray:
    return np.tile(np.eye(3), (rows, 1, 1))


def _flips(draws: Draws, rows: int, size: int) -> np.ndarray:
    """x → size - 1 - x, and likewise y, where the coin says so."""
    flip = _identity(rows)
    for axis, chosen in ((0, draws.flip_x), (1, draws.flip_y)):
        if chosen is not None:
            flip[:, axis, axis] = np.where(chosen, -1, 1)
            flip[:, axis, 2] = np.where(chosen, size - 1, 0)
    return flip


def _crops(crop: np.ndarray, rows: int) -> np.ndarray:
    """Pixel borders, not pixel centres, of the window are stretched over the square: hence the halves."""
    kept, left, top = crop.T
    matrix = _identity(rows)
    matrix[:, 0, 0] = matrix[:, 1, 1] = kept
    matrix[:, 0, 2] = left + kept / 2 - 0.5
    matrix[:, 1, 2] = top + kept / 2 - 0.5
    return matrix


def _mirrored(matrices: np.ndarray, axis: int, length: int) -> np.ndarray:
    """Per row: 0 where the matrix leaves this axis alone, 1 where it exactly mirrors it, -1 otherwise."""
    line = matrices[:, axis, :]
    alone, mirror = np.zeros(3), np.zeros(3)
    alone[axis], mirror[axis], mirror[2] = 1, -1, length - 1
    return np.where((line == alone).all(1), 0, np.where((line == mirror).all(1), 1, -1))


def _sample(images: torch.Tensor, matrices: np.ndarray, fill: str) -> torch.Tensor:
    """Torch's grid runs from -1 to 1 between the outer borders of the edge pixels (align_corners=False): x → (2x + 1)/width - 1.

    The grid is made by element-wise products and sums only: a matrix product may round differently in another batch size.
    """
    height, width = images.shape[-2:]
    x, y = np.arange(width)[None, None, :], np.arange(height)[None, :, None]
    grid = torch.empty(len(images), height, width, 2)
    for axis, length in ((0, width), (1, height)):
        a, b, c = (matrices[:, axis, column][:, None, None] for column in range(3))
        along = torch.from_numpy((2 / length * (a * x)).astype(np.float32))  # (rows, 1, width)
        down = torch.from_numpy((2 / length * (b * y + c) + (1 / length - 1)).astype(np.float32))  # (rows, height, 1)
        grid[..., axis] = along + down
    return torch.nn.functional.grid_sample(images, grid, mode="bilinear", padding_mode=_PADDING[fill], align_corners=False)


def _means(images: torch.Tensor) -> torch.Tensor:
    """(rows, channels, 1, 1), one row at a time: a reduction over the whole batch may add up in another order in another batch."""
    means = np.stack([image.mean(axis=(1, 2), dtype=np.float64) for image in images.numpy()])
    return torch.from_numpy(means.astype(np.float32))[:, :, None, None]


def _boxes(x: np.ndarray, y: np.ndarray, width: np.ndarray, height: np.ndarray, images: torch.Tensor) -> torch.Tensor:
    """Bool (rows, 1, height, width): the pixels of a box about (x, y), cut at the image's edge."""
    sides = []
    for centre, side, length in ((y, height, images.shape[-2]), (x, width, images.shape[-1])):
        start = np.round(centre - side / 2)[:, None]
        position = np.arange(length)[None, :]
        sides.append(torch.from_numpy((position >= start) & (position < start + side[:, None])))
    return (sides[0][:, :, None] & sides[1][:, None, :])[:, None]


def _per_row(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))[:, None, None, None]
