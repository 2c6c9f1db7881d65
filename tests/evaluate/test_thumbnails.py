"""Thumbnails: small JPEGs of what decodes, None for the rest."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from frostline.evaluate.thumbnails import thumbnail


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "图片.webp"])
def test_at_most_128_pixels_a_side(tmp_path, name):
    Image.fromarray(np.full((500, 250, 3), (200, 30, 60), dtype=np.uint8)).save(tmp_path / name)
    kind, _, content = thumbnail(str(tmp_path / name)).partition(",")
    assert kind == "data:image/jpeg;base64"
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert image.format == "JPEG" and image.size == (64, 128)
    assert np.abs(np.asarray(image).mean(axis=(0, 1)) - (200, 30, 60)).max() < 6


def test_none_for_what_is_too_large(tmp_path):
    Image.fromarray(np.zeros((20, 20, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    assert thumbnail(str(tmp_path / "a.png"), 400) is not None
    assert thumbnail(str(tmp_path / "a.png"), 399) is None


def test_none_for_what_is_no_image(tmp_path):
    (tmp_path / "text.jpg").write_text("这家店很好")
    assert thumbnail(str(tmp_path / "text.jpg")) is None
    assert thumbnail(str(tmp_path / "absent.jpg")) is None
    assert thumbnail(str(tmp_path)) is None
    assert thumbnail("a\0b") is None
