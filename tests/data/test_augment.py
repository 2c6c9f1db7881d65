"""Augmentation: Keras's recorded results first, then independence of rows, then what must not change at all.

keras_augmentation.npz holds one image, parameters, and what Keras 3.15's ``ImageDataGenerator.apply_transform`` made of them
(interpolation_order=1, cval=0) with each fill mode.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from frostline.data.augment import Draws, adjust, affine_matrices, augment, draw, mix, warp
from frostline.data.randomness import generator
from frostline.recipe import AugmentRecipe

RECORDED = np.load(Path(__file__).with_name("keras_augmentation.npz"), allow_pickle=False)
CASES: list[dict[str, Any]] = json.loads(str(RECORDED["cases"]))
ALL = AugmentRecipe(
    shear=10, zoom=0.2, horizontal_flip=True, vertical_flip=True, rotation=20, width_shift=0.1, height_shift=2.0,
    crop=0.3, brightness=0.3, contrast=0.3, cutout=0.3,
)  # fmt: skip
ROWS = np.array([5, 0, 17, 3, 100_000, 8])


def pictures(rows: int = 6, size: int = 20, channels: int = 3) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (rows, channels, size, size)).astype(np.float32))


def draws_of(case: dict[str, Any]) -> Draws:
    def one(name: str, neutral: float) -> np.ndarray | None:
        return np.array([case[name]]) if case.get(name, neutral) != neutral else None

    return Draws(
        rotation=one("theta", 0),
        shift_x=one("tx", 0),
        shift_y=one("ty", 0),
        shear=one("shear", 0),
        zoom=np.array([[case["zx"], case["zy"]]]) if "zx" in case else None,
        flip_x=one("flip_horizontal", False),
        flip_y=one("flip_vertical", False),
    )


@pytest.mark.parametrize("fill", ["nearest", "reflect", "constant"])
@pytest.mark.parametrize("number", range(len(CASES)))
def test_equals_keras(number: int, fill: str) -> None:
    image = torch.from_numpy(RECORDED["image"].astype(np.float32)).permute(2, 0, 1)[None]
    size = image.shape[-1]
    matrices = affine_matrices(draws_of(CASES[number]), 1, size)
    ours = warp(image, matrices, fill)[0].permute(1, 2, 0).numpy()
    compared = np.ones((size, size), bool)
    if fill == "constant":  # SciPy ends at the edge pixel's centre, grid_sample fades out over the next pixel: leave that rim out
        y, x = np.mgrid[:size, :size]
        points = np.stack([x, y, np.ones_like(x)], axis=-1) @ matrices[0].T
        inside = (points[..., :2] >= 0) & (points[..., :2] <= size - 1)
        outside = (points[..., :2] <= -1) | (points[..., :2] >= size)
        compared = inside.all(-1) | outside.any(-1)
        assert compared.mean() > 0.8
    np.testing.assert_allclose(ours[compared], RECORDED[fill][number][compared], atol=0.255)  # 1e-3 of 255


def test_directions_are_what_the_names_say() -> None:
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 4, 4] = 255

    def place(**draws: np.ndarray) -> list[int]:
        moved = warp(image, affine_matrices(Draws(**draws), 1, 9), "constant")
        return (moved[0, 0] > 200).nonzero()[0].tolist()

    assert place(shift_x=np.array([2.0])) == [4, 2]
    assert place(shift_y=np.array([2.0])) == [2, 4]
    assert place(crop=np.array([[1.0, 0.0, 0.0]])) == [4, 4]
    recipe = AugmentRecipe(width_shift=0.25, height_shift=3.0)
    drawn = draw(recipe, 0, 0, np.arange(2000), 40)
    assert drawn.shift_x is not None and drawn.shift_y is not None
    assert 9.9 < np.abs(drawn.shift_x).max() <= 10 and 2.9 < np.abs(drawn.shift_y).max() <= 3


def test_draws_stay_in_their_ranges_and_fill_them() -> None:
    drawn = draw(ALL, 0, 0, np.arange(3000), 20)
    ranges = {"rotation": (-20, 20), "shear": (-10, 10), "zoom": (0.8, 1.2), "brightness": (0.7, 1.3), "contrast": (0.7, 1.3)}
    for name, (low, high) in ranges.items():
        values = getattr(drawn, name)
        assert low <= values.min() < low + 0.02 * (high - low) and high - 0.02 * (high - low) < values.max() <= high
    assert drawn.zoom is not None and drawn.flip_x is not None and drawn.flip_y is not None and drawn.crop is not None
    assert abs(np.corrcoef(drawn.zoom.T)[0, 1]) < 0.06  # the axes are independent
    assert 0.45 < drawn.flip_x.mean() < 0.55 and abs(np.corrcoef(drawn.flip_x, drawn.flip_y)[0, 1]) < 0.06
    kept, left, top = drawn.crop.T
    assert kept.min() >= 0.7
    for edge in (left, top):
        assert (edge >= 0).all() and (edge + kept * 20 <= 20 + 1e-9).all()


def test_one_change_does_not_alter_anothers_draws() -> None:
    alone, together = draw(AugmentRecipe(rotation=20), 3, 1, ROWS, 20), draw(replace(ALL, rotation=20), 3, 1, ROWS, 20)
    np.testing.assert_array_equal(alone.rotation, together.rotation)  # type: ignore[arg-type]
    assert together.zoom is not None and alone.zoom is None


@pytest.mark.parametrize("fill", ["nearest", "reflect", "constant"])
def test_a_row_does_not_depend_on_its_batch(fill: str) -> None:
    recipe, images = replace(ALL, fill=fill), pictures()
    together = augment(images, recipe, 3, 2, ROWS)
    order = np.array([4, 2, 0, 5, 1, 3])
    assert torch.equal(augment(images[order], recipe, 3, 2, ROWS[order]), together[order])
    for position in range(len(ROWS)):
        assert torch.equal(augment(images[[position]], recipe, 3, 2, ROWS[[position]])[0], together[position])
    assert not torch.equal(augment(images, recipe, 3, 3, ROWS), together)
    assert not torch.equal(augment(images, recipe, 4, 2, ROWS), together)


def test_nothing_asked_for_changes_nothing() -> None:
    images = pictures()
    assert torch.equal(augment(images, AugmentRecipe(), 0, 0, ROWS), images)
    neutral = Draws(
        rotation=np.zeros(6), shift_x=np.zeros(6), shift_y=np.zeros(6), shear=np.zeros(6), zoom=np.ones((6, 2)),
        flip_x=np.zeros(6, bool), flip_y=np.zeros(6, bool),
    )  # fmt: skip
    for fill in ("nearest", "reflect", "constant"):
        assert torch.equal(warp(images, affine_matrices(neutral, 6, 20), fill), images)


@pytest.mark.parametrize("size", [20, 21])
def test_flips_are_exact(size: int) -> None:
    images = pictures(4, size)
    flip_x, flip_y = np.array([True, True, False, False]), np.array([True, False, True, False])
    flipped = warp(images, affine_matrices(Draws(flip_x=flip_x, flip_y=flip_y), 4, size), "nearest")
    for row, dims in enumerate([(1, 2), (2,), (1,), ()]):
        assert torch.equal(flipped[row], images[row].flip(dims))
    result = augment(images, AugmentRecipe(horizontal_flip=True), 0, 0, np.arange(4))
    assert all(torch.equal(result[i], images[i]) or torch.equal(result[i], images[i].flip(-1)) for i in range(4))


def test_input_is_never_written() -> None:
    images = pictures()
    before = images.clone()
    augment(images, ALL, 0, 0, ROWS)
    mix(images, torch.eye(6), AugmentRecipe(mixup=1.0, cutmix=1.0), 0, 0, ROWS)
    assert torch.equal(images, before)


def test_crop_stretches_a_window_over_the_square() -> None:
    image = pictures(1, 20)
    window = warp(image, affine_matrices(Draws(crop=np.array([[0.5, 4.0, 6.0]])), 1, 20), "nearest")
    reference = torch.nn.functional.interpolate(image[:, :, 6:16, 4:14], size=(20, 20), mode="bilinear", align_corners=False)
    assert (window - reference)[..., 1:-1, 1:-1].abs().max() < 0.01  # at the rim the warp sees the pixels beyond the window


def test_the_other_changes_happen_within_the_crop() -> None:
    image, crop = pictures(1), np.array([[0.5, 2.0, 9.0]])
    window = warp(image, affine_matrices(Draws(crop=crop), 1, 20), "nearest")
    mirrored = warp(image, affine_matrices(Draws(crop=crop, flip_x=np.array([True])), 1, 20), "nearest")
    torch.testing.assert_close(mirrored, window.flip(-1), rtol=0, atol=0.01)
    turned = warp(image, affine_matrices(Draws(crop=crop, rotation=np.array([180.0])), 1, 20), "nearest")
    torch.testing.assert_close(turned, window.flip(-1, -2), rtol=0, atol=0.01)


def test_brightness_contrast_and_cutout() -> None:
    images = pictures(2)
    bright = adjust(images, Draws(brightness=np.array([1.5, 0.5])))
    assert torch.equal(bright[0], (images[0] * 1.5).clamp(0, 255)) and torch.equal(bright[1], images[1] * 0.5)
    flat = adjust(images, Draws(contrast=np.array([0.0, 1.0])))
    torch.testing.assert_close(flat[0], images[0].mean().expand_as(flat[0]))
    torch.testing.assert_close(flat[1], images[1])
    cut = adjust(images, Draws(cutout=np.array([[6, 10.0, 8.0], [6, 0.0, 20.0]])))
    changed = (cut != images).any(dim=1)
    assert changed[0, 5:11, 7:13].all() and changed[0].sum() == 36
    assert changed[1, 17:, :3].all() and changed[1].sum() == 9  # cut at the corner
    torch.testing.assert_close(cut[0, :, 6, 8], images[0].mean(dim=(1, 2)))


def test_mixup_mixes_pictures_and_labels_alike() -> None:
    images, targets = pictures(), torch.eye(6)
    mixed, soft = mix(images, targets, AugmentRecipe(mixup=0.4), 0, 0, ROWS)
    assert soft.dtype == torch.float32 and soft.shape == (6, 6)
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(6))
    torch.testing.assert_close(mixed, torch.einsum("rp,pchw->rchw", soft, images), rtol=1e-5, atol=1e-3)
    assert ((soft > 0).sum(dim=1) == 2).all()
    again = mix(images, targets, AugmentRecipe(mixup=0.4), 0, 0, ROWS)
    assert torch.equal(again[0], mixed) and torch.equal(again[1], soft)


def test_cutmix_labels_by_the_area_that_is_covered() -> None:
    images = torch.arange(6.0)[:, None, None, None].expand(6, 1, 20, 20)  # each picture is its own number
    mixed, soft = mix(images, torch.eye(6), AugmentRecipe(cutmix=1.0), 1, 0, ROWS)
    for row in range(6):
        areas = torch.bincount(mixed[row].long().flatten(), minlength=6) / 400
        torch.testing.assert_close(areas, soft[row])
    assert (soft.diagonal() < 1).any()


def test_cutmix_boxes_have_the_drawn_share() -> None:
    rows = np.arange(200)
    _, soft = mix(torch.zeros(200, 1, 64, 64), torch.eye(200), AugmentRecipe(cutmix=1.0), 0, 0, rows)
    wanted = np.array([1 - generator(0, 0, row, "cutmix").beta(1.0, 1.0) for row in range(200)])
    taken = 1 - soft.diagonal().numpy()
    assert (taken <= wanted + 0.02).all()  # less where the edge cuts the box
    assert (taken >= wanted / 4 - 0.02).all()  # a centre in the corner leaves a quarter
    assert (np.abs(taken - wanted) < 0.02).mean() > 0.1  # whole boxes


def test_mixtures_together_and_alone() -> None:
    recipe = AugmentRecipe(mixup=1.0, cutmix=1.0)
    images = torch.arange(64.0)[:, None, None, None].expand(64, 1, 8, 8)
    mixed, _ = mix(images, torch.eye(64), recipe, 0, 0, np.arange(64))
    whole = sum(picture.unique().numel() == 1 for picture in mixed)
    assert 20 < whole < 44  # about half are blended evenly, the others have a box
    single, soft = mix(pictures(1), torch.eye(3)[:1], AugmentRecipe(mixup=1.0), 0, 0, np.array([0]))
    torch.testing.assert_close(single, pictures(1))
    torch.testing.assert_close(soft, torch.eye(3)[:1])
    assert mix(images, torch.eye(64), AugmentRecipe(), 0, 0, np.arange(64))[0] is images
