"""One image file, bytes or stored pixels → RGB uint8 (height, width, 3), the same whatever the file's format.

JPEG goes through libjpeg-turbo (simplejpeg), which can decode straight to a fraction of the size: an inverse DCT of fewer
coefficients, m/8 of each side. CMYK JPEG and the other formats go through Pillow's codecs. What differs between formats is
settled here: transparency is laid over white, 16-bit grey is divided by 257 (Pillow's own conversion would clip it), a GIF
gives its first frame, and EXIF's orientation turns the picture upright (the tag 0x0112 of "Exif", JEITA CP-3451, 4.6.4).

Decisions. The size is read from the header and held against ``max_pixels`` before a pixel is decoded. The codecs' classes
are called directly instead of through ``Image.open``: only the five formats of this list ever run, and Pillow's global
bomb limit with its warnings, which belongs to the user's process, is never changed and seldom met (the codecs for GIF and
WebP ask it by themselves, so there it holds as a second limit). Damage raises a :class:`DataError` whose text is a short
reason; the caller knows where the file stands.
"""

from __future__ import annotations

import io
import os
import stat
import struct

import numpy as np
import pyarrow as pa
import simplejpeg
from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from frostline.errors import DataError

_CODECS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}
_BYTES_PER_PIXEL = 8  # the widest pixel of these formats, 16-bit RGBA, uncompressed
_METADATA_BYTES = 64 << 20


def decode_image(source: str | bytes, *, max_pixels: int, target: int | None = None) -> np.ndarray:
    """Decode a file or its bytes to upright RGB, uint8 (height, width, 3).

    With ``target``, a JPEG comes at the smallest scale whose shorter side is still at least ``target`` pixels.
    Raises DataError with a short reason.
    """
    return decode_with_size(source, max_pixels=max_pixels, target=target)[0]


def decode_with_size(source: str | bytes, *, max_pixels: int, target: int | None = None) -> tuple[np.ndarray, tuple[int, int]]:
    """Like :func:`decode_image`, and beside it the (height, width) of the upright image at full scale."""
    data = source if isinstance(source, bytes) else read_image_file(source, max_pixels)
    if not data:
        raise DataError("empty file")
    kind = image_format(data)
    if kind is None:
        raise DataError(f"not an image ({', '.join(_CODECS)})")
    try:
        width, height, exif = _header(kind, data)
    except (struct.error, IndexError) as error:
        raise DataError(f"truncated {kind}") from error
    _check_size(width, height, max_pixels)
    if kind in ("GIF", "WebP") and Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise DataError(f"{width} × {height} pixels, more than PIL.Image.MAX_IMAGE_PIXELS={Image.MAX_IMAGE_PIXELS}")
    try:
        pixels = _decode_jpeg(data, target) if kind == "JPEG" else None
        if pixels is None:
            pixels, exif = _decode_with_pillow(kind, data, max_pixels, target)
    except DataError:
        raise
    except Exception as error:  # codecs raise whatever hostile bytes lead them to
        raise DataError(_reason(kind, data, error)) from error
    orientation = _orientation(exif)
    return _upright(pixels, orientation), (width, height) if orientation >= 5 else (height, width)


def read_image_file(path: str, max_pixels: int) -> bytes:
    """The bytes of a regular file that begins like an image and is not larger than ``max_pixels`` can explain."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise DataError("not a regular file")
        if status.st_size > max_pixels * _BYTES_PER_PIXEL + _METADATA_BYTES:
            raise DataError(f"{status.st_size} bytes, more than an image of data.max_pixels={max_pixels} takes")
        with open(path, "rb") as file:
            head = file.read(16)
            # A folder may hold gigabytes of other things: those are not read further than this.
            return head + file.read() if not head or image_format(head) else head
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise DataError(f"cannot be read ({getattr(error, 'strerror', None) or error})") from error


def image_format(head: bytes) -> str | None:
    """The format that a file's first bytes announce: JPEG, PNG, WebP, BMP, GIF, or None.

    >>> image_format(b"GIF89a")
    'GIF'
    """
    if head.startswith(b"\xff\xd8"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WebP"
    return "BMP" if head.startswith(b"BM") else None


def read_pixels(table: pa.Table, row: int, *, max_pixels: int, target: int | None = None) -> np.ndarray:
    """The RGB image of one row of a Dataset's table, from its ``path`` or its ``pixels``. An error names the file or row."""
    if "pixels" in table.column_names:
        height, width, channels = (table[name][row].as_py() for name in ("height", "width", "channels"))
        values = np.frombuffer(table["pixels"][row].as_buffer(), dtype=np.uint8)
        if values.size != height * width * channels:
            raise DataError(f"row {row}: {values.size} bytes of pixels, expected {height} × {width} × {channels}. Prepare the data again")
        return to_rgb(values.reshape(height, width, channels))
    path = table["path"][row].as_py()
    try:
        return decode_image(path, max_pixels=max_pixels, target=target)
    except DataError as error:
        raise DataError(f"{path!r}: {error}. Restore the file, or prepare the data again") from error


def read_block(table: pa.Table, rows: np.ndarray) -> np.ndarray | None:
    """Stored pixels of many rows at once, uint8 (rows, height, width, channels); None where shapes differ or rows are files."""
    if "pixels" not in table.column_names or not len(rows):
        return None
    part = table.select(["pixels", "height", "width", "channels"]).take(pa.array(rows))
    shapes = np.stack([part[name].to_numpy() for name in ("height", "width", "channels")], axis=1)
    if (shapes != shapes[0]).any():
        return None
    buffers = [chunk.cast(pa.large_binary()) for chunk in part["pixels"].chunks]
    values = np.concatenate([_bytes_of(chunk) for chunk in buffers])
    shape = (len(rows), *(int(side) for side in shapes[0]))
    return values.reshape(shape) if values.size == np.prod(shape) else None


def to_rgb(pixels: np.ndarray) -> np.ndarray:
    """Uint8 pixels (…, height, width, 1, 3 or 4) as RGB: grey is repeated, transparency is laid over white."""
    channels = pixels.shape[-1]
    if channels == 1:
        return np.repeat(pixels, 3, axis=-1)
    if channels == 4:
        alpha = pixels[..., 3:].astype(np.uint16)  # 255 · 255 + 127 still fits
        return ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    if channels == 3:
        return pixels
    raise DataError(f"{channels} channels, expected 1 (grey), 3 (RGB) or 4 (RGBA)")


def pillow_to_rgb(image: Image.Image) -> np.ndarray:
    """Any Pillow image as uint8 (height, width, 3)."""
    transparent = image.info.get("transparency")
    if image.mode.startswith("I"):  # 16-bit grey: "I;16", "I;16B", in places "I"
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        grey = ((values + 128) // 257).astype(np.uint8)
        if isinstance(transparent, int):
            grey[values == transparent] = 255
        return to_rgb(grey[..., None])
    if isinstance(transparent, tuple) and max(transparent) > 255:  # of a 16-bit RGB file, which Pillow reads as its high bytes
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    if transparent is not None or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        return to_rgb(np.array(image.convert("RGBA")))
    if image.mode == "F":  # its values have no known range
        raise DataError("Pillow mode 'F' (floats), expected whole numbers. Convert the image to mode 'RGB' or 'L'")
    return np.array(image.convert("RGB"))


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise DataError(f"{width} × {height} pixels: there is nothing in it")
    if width * height > max_pixels:
        raise DataError(f"{width} × {height} = {width * height:.2g} pixels, more than data.max_pixels={max_pixels}")


def _header(kind: str, data: bytes) -> tuple[int, int, bytes]:
    """(width, height, EXIF) from the first bytes; EXIF only of a JPEG (Pillow finds it elsewhere)."""
    if kind == "JPEG":
        return _jpeg_header(data)
    if kind == "PNG":
        return (*struct.unpack_from(">II", data, 16), b"")
    if kind == "GIF":
        return (*_gif_size(data), b"")
    if kind == "BMP":
        old = struct.unpack_from("<I", data, 14)[0] == 12
        width, height = struct.unpack_from("<HH" if old else "<ii", data, 18)
        return width, abs(height), b""  # a negative height: rows from the top
    return (*_webp_size(data), b"")


def _gif_size(data: bytes) -> tuple[int, int]:
    """The canvas, or the first frame where that reaches beyond it. Bytes between blocks are skipped, as Pillow does."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)  # behind the colour table
    while data[position] not in (0x2C, 0x3B):
        if data[position] == 0x21:  # an extension: its sub-blocks, each with its length before it, up to an empty one
            position += 2
            while data[position]:
                position += 1 + data[position]
        position += 1
    if data[position] == 0x3B:
        return width, height
    left, top, wide, tall = struct.unpack_from("<4H", data, position + 1)
    return max(width, left + wide), max(height, top + tall)


def _webp_size(data: bytes) -> tuple[int, int]:
    """Of the three WebP headers: extended, lossless (14 bits each, packed), lossy (RFC 9649)."""
    if data[12:16] == b"VP8X":
        low_width, high_width, low_height, high_height = struct.unpack_from("<HBHB", data, 24)
        return 1 + low_width + (high_width << 16), 1 + low_height + (high_height << 16)
    if data[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _jpeg_header(data: bytes) -> tuple[int, int, bytes]:
    """Walk the segments up to the frame header (SOF0…SOF15), keeping the EXIF segment."""
    position, exif = 2, b""
    while True:
        if data[position] != 0xFF:  # padding between segments, which decoders skip
            position += 1
            continue
        marker = data[position + 1]
        if marker == 0xFF or marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # fill bytes and markers without a length
            position += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, position + 5)
            return width, height, exif
        if marker in (0xD9, 0xDA):
            raise DataError("corrupt JPEG (no frame header before the pixels)")
        if marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
            exif = exif or data[position + 10 : position + 2 + length]
        position += 2 + max(length, 2)


def _decode_jpeg(data: bytes, target: int | None) -> np.ndarray | None:
    """Through simplejpeg; None where Pillow has to do it."""
    side = target or 0
    try:
        if simplejpeg.decode_jpeg_header(data, strict=False)[2] in ("CMYK", "YCCK"):
            return None
        return simplejpeg.decode_jpeg(data, "RGB", min_height=side, min_width=side)
    except ValueError as error:
        reason = str(error)
        if "Premature end of JPEG file" in reason:
            raise DataError("truncated JPEG") from error
        # Bytes too many before a marker are harmless and frequent in the wild; other damage has spoilt pixels.
        if reason.startswith("Corrupt JPEG data") and "extraneous bytes" not in reason:
            raise DataError(f"corrupt JPEG ({reason.removeprefix('Corrupt JPEG data: ')})") from error
        return None


def _decode_with_pillow(kind: str, data: bytes, max_pixels: int, target: int | None) -> tuple[np.ndarray, bytes]:
    """(pixels, EXIF)."""
    with _CODECS[kind](io.BytesIO(data)) as image:
        _check_size(*image.size, max_pixels)  # Pillow may see another header than we did
        if target is not None and kind == "JPEG":
            image.draft(None, (target, target))
        image.load()
        exif = image.info.get("exif", b"")
        return pillow_to_rgb(image), exif if isinstance(exif, bytes) else b""


def _reason(kind: str, data: bytes, error: Exception) -> str:
    text = str(error) or type(error).__name__
    short = kind == "WebP" and len(data) < 8 + struct.unpack_from("<I", data, 4)[0]
    if short or isinstance(error, EOFError) or any(word in text.lower() for word in ("truncated", "unexpected end", "not enough")):
        return f"truncated {kind}"
    return f"corrupt {kind} ({text})"


def _orientation(exif: bytes) -> int:
    """EXIF's orientation, 1 to 8; 1 where it is absent or the block is damaged (a wrong tag spoils no pixels)."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", tiff, entry)
            if tag == 0x0112:
                (value,) = struct.unpack_from(order + ("I" if kind == 4 else "H"), tiff, entry + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the turn that the camera noted: 2, 4 mirrors, 3, 6, 8 turns, 5, 7 mirrors along a diagonal."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    across = {2, 3, 6, 7}
    down = {3, 4, 7, 8}
    return np.ascontiguousarray(pixels[:: -1 if orientation in down else 1, :: -1 if orientation in across else 1])


def _bytes_of(column: pa.LargeBinaryArray) -> np.ndarray:
    """The values of a binary array, one after the other, without copying."""
    _, offset_buffer, values = column.buffers()
    offsets = np.frombuffer(offset_buffer, dtype=np.int64)[column.offset : column.offset + len(column) + 1]
    return np.frombuffer(values, dtype=np.uint8)[offsets[0] : offsets[-1]] if values is not None else np.empty(0, np.uint8)
