"""Small pictures inside the page: a JPEG of at most 128 pixels a side, as a data URL."""

from __future__ import annotations

import base64
import io
import os

from PIL import Image

from frostline.data.images import decode_image
from frostline.errors import DataError

_SIDE = 128


def thumbnail(path: str, max_pixels: int = 100_000_000) -> str | None:
    """``data:image/jpeg;base64,…`` of an image file; None where there is no such file any more, or it cannot be decoded."""
    if not os.path.isfile(path):
        return None
    try:
        image = Image.fromarray(decode_image(path, max_pixels=max_pixels, target=_SIDE))
    except DataError:
        return None
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
