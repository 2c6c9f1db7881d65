"""Whatever the format, the same RGB; whatever the damage, one DataError with its reason."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from frostline.data.image_sources import from_arrays
from frostline.data.images import decode_image, decode_with_size, image_format, read_block, read_pixels, to_rgb
from frostline.errors import DataError

MANY = 10**8


def smooth(height: int, width: int, channels: int = 3) -> np.ndarray:
    """A picture without noise, so that JPEG keeps it nearly."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, channels), dtype=np.uint8).squeeze())
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def decode(data: bytes, target: int | None = None) -> np.ndarray:
    pixels = decode_image(data, max_pixels=MANY, target=target)
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous and pixels.shape[2] == 3
    return pixels


RGB = smooth(30, 40)
GREY = smooth(30, 40, 1)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_are_equal(kind: str, options: dict[str, Any]) -> None:
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(RGB), kind, **options)), RGB)


def test_lossy_formats_are_near() -> None:
    for data in (encoded(Image.fromarray(RGB), "JPEG", quality=95), encoded(Image.fromarray(RGB), "WEBP", quality=95)):
        assert np.abs(decode(data).astype(int) - RGB).mean() < 4


def test_jpeg_equals_pillow() -> None:
    data = encoded(Image.fromarray(RGB), "JPEG")
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "JPEG"])
def test_grey_is_repeated(kind: str) -> None:
    pixels = decode(encoded(Image.fromarray(GREY), kind, **({"quality": 100} if kind == "JPEG" else {})))
    assert (pixels == pixels[..., :1]).all()
    assert np.abs(pixels[..., 0].astype(int) - GREY).max() <= (2 if kind == "JPEG" else 0)


def test_palette_and_one_bit() -> None:
    palette = Image.fromarray(RGB).quantize(16)
    for kind in ("PNG", "GIF", "BMP"):
        np.testing.assert_array_equal(decode(encoded(palette, kind)), np.asarray(palette.convert("RGB")))
    bits = Image.fromarray(GREY).convert("1")
    for kind in ("PNG", "BMP"):
        np.testing.assert_array_equal(decode(encoded(bits, kind))[..., 0], np.asarray(bits) * np.uint8(255))


def test_first_frame_of_animations() -> None:
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    np.testing.assert_array_equal(decode(encoded(frames[0], "WEBP", lossless=True, save_all=True, append_images=frames[1:])), RGB)
    palettes = [frame.quantize(16) for frame in frames]
    data = encoded(palettes[0], "GIF", save_all=True, append_images=palettes[1:])
    np.testing.assert_array_equal(decode(data), np.asarray(palettes[0].convert("RGB")))


def over_white(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_laid_over_white(kind: str) -> None:
    rgba = np.dstack([RGB, smooth(30, 40, 1)])
    data = encoded(Image.fromarray(rgba), kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    np.testing.assert_allclose(decode(data), over_white(rgba), atol=0.5001)
    la = Image.fromarray(np.dstack([GREY, rgba[..., 3]]), "LA")
    expected = over_white(np.dstack([GREY, GREY, GREY, rgba[..., 3]]))
    np.testing.assert_allclose(decode(encoded(la, "PNG")), expected, atol=0.5001)


def test_transparent_colours_become_white() -> None:
    palette = Image.fromarray(RGB).quantize(16)
    index = np.asarray(palette)
    expected = np.asarray(palette.convert("RGB")).copy()
    expected[index == 3] = 255
    for kind in ("PNG", "GIF"):
        np.testing.assert_array_equal(decode(encoded(palette, kind, transparency=3)), expected)
    shares = bytes([255, 0, 128] + [255] * 13)  # one alpha per palette entry
    rgba = np.dstack([np.asarray(palette.convert("RGB")), np.frombuffer(shares, np.uint8)[index]])
    np.testing.assert_allclose(decode(encoded(palette, "PNG", transparency=shares)), over_white(rgba), atol=0.5001)
    plain = RGB.copy()
    plain[5:9] = (1, 2, 3)
    pixels = decode(encoded(Image.fromarray(plain), "PNG", transparency=(1, 2, 3)))
    assert (pixels[5:9] == 255).all() and (pixels[10:] == plain[10:]).all()


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = GREY.astype(np.uint16) * 257
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(deep), "PNG"))[..., 0], GREY)
    ramp = np.arange(0, 65536, 13, dtype=np.uint16)[None]
    np.testing.assert_allclose(decode(encoded(Image.fromarray(ramp), "PNG"))[..., 0], ramp / 257, atol=0.5001)
    np.testing.assert_array_equal(decode(png16(RGB)), RGB)


def png16(rgb: np.ndarray) -> bytes:
    """RGB with 16 bits each, which Pillow cannot write."""
    rows = b"".join(b"\0" + (row.astype(np.uint16) * 257).astype(">u2").tobytes() for row in rgb)
    return png(rgb.shape[1], rgb.shape[0], rows, depth=16, colour=2)


def png(width: int, height: int, rows: bytes, depth: int = 8, colour: int = 0) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_cmyk_jpeg_equals_pillow() -> None:
    data = encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=95)
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert np.abs(decode(data).astype(int) - RGB).mean() < 4
    assert decode(encoded(Image.new("CMYK", (400, 300)), "JPEG"), target=100).shape == (150, 200, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "CMYK"])
def test_exif_orientation(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(RGB).convert("CMYK" if kind == "CMYK" else "RGB")
    data = encoded(stored, "JPEG" if kind == "CMYK" else kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    with Image.open(io.BytesIO(data)) as image:
        turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF's number → Image.Transpose (FLIP_LEFT_RIGHT = 0 …)
        turned = image if orientation == 1 else image.transpose(Image.Transpose(turn[orientation]))
        expected = np.asarray(turned.convert("RGB"))
    pixels, size = decode_with_size(data, max_pixels=MANY)
    np.testing.assert_array_equal(pixels, expected)
    assert size == pixels.shape[:2] == ((40, 30) if orientation >= 5 else (30, 40))


def test_damaged_exif_spoils_nothing() -> None:
    unknown = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0"  # orientation 99
    for block in (b"", b"II", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", unknown):
        data = encoded(Image.fromarray(RGB), "JPEG", exif=b"Exif\0\0" + block)
        assert decode(data).shape == (30, 40, 3)


def test_scaled_decoding_keeps_the_shorter_side() -> None:
    image = smooth(400, 600)
    data = encoded(Image.fromarray(image), "JPEG", quality=95)
    for target, expected in ((1, (50, 75)), (50, (50, 75)), (51, (100, 150)), (200, (200, 300)), (400, (400, 600)), (900, (400, 600))):
        pixels, size = decode_with_size(data, max_pixels=MANY, target=target)
        assert (pixels.shape[:2], size) == (expected, (400, 600))
    reference = np.asarray(Image.fromarray(image).resize((300, 200), Image.Resampling.BOX))
    assert np.abs(decode(data, target=200).astype(int) - reference).mean() < 2


def bomb(kind: str) -> bytes:
    """A small file whose header claims 60 000 × 60 000 pixels (WebP: its own limit, 16 383)."""
    side = 60_000
    if kind == "PNG":
        return png(side, side, b"\0" * 1000)
    if kind == "BMP":
        return b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + struct.pack("<IiiHH", 40, side, -side, 1, 24) + bytes(100)
    if kind == "GIF":
        return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + b",\0\0\0\0" + struct.pack("<HH", side, side) + bytes(100)
    if kind == "JPEG":
        data = bytearray(encoded(Image.fromarray(RGB), "JPEG"))
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
        return bytes(data)
    vp8x = b"VP8X" + struct.pack("<IB3x", 10, 0) + (side - 1).to_bytes(3, "little") * 2
    return b"RIFF" + struct.pack("<I", 4 + len(vp8x)) + b"WEBP" + vp8x


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "JPEG", "WebP"])
def test_bombs_are_refused_by_their_header(kind: str) -> None:
    with pytest.raises(DataError, match=r"60000 × 60000 = 3\.6e\+09 pixels, more than data.max_pixels=100000000"):
        decode_image(bomb(kind), max_pixels=MANY)


def test_pillows_own_limit_is_never_changed_and_never_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in ("PNG", "BMP", "JPEG"):
            assert decode(encoded(Image.fromarray(RGB), kind)).shape == (30, 40, 3)
        for kind in ("GIF", "WEBP"):
            with pytest.raises(DataError, match=r"40 × 30 pixels, more than PIL\.Image\.MAX_IMAGE_PIXELS=100"):
                decode(encoded(Image.fromarray(RGB), kind))
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "JPEG", "WEBP"])
def test_truncation_is_named(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    name = image_format(data)
    with pytest.raises(DataError, match=f"^truncated {name}$"):
        decode_image(data[: len(data) * 2 // 3], max_pixels=MANY)
    with pytest.raises(DataError, match=f"^(truncated|corrupt) {name}"):
        decode_image(data[:14], max_pixels=MANY)


def test_what_is_no_image(tmp_path: Path) -> None:
    foreign = [(data, "not an image") for data in (b"%!PS-Adobe-3.0 EPSF", b"hello", b"\x80\x04cos\nsystem")]
    for data, reason in ((b"", "empty file"), *foreign):
        with pytest.raises(DataError, match=f"^{reason}"):
            decode_image(data, max_pixels=MANY)
        (tmp_path / "x.jpg").write_bytes(data)
        with pytest.raises(DataError, match=f"^{reason}"):
            decode_image(str(tmp_path / "x.jpg"), max_pixels=MANY)
    for path, reason in ((str(tmp_path), "not a regular file"), (str(tmp_path / "none.png"), "No such file"), ("a\0b", "null")):
        with pytest.raises(DataError, match=reason):
            decode_image(path, max_pixels=MANY)
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(DataError, match=r"8589934592 bytes, more than an image of data.max_pixels=1000 takes"):
        decode_image(str(tmp_path / "huge.png"), max_pixels=1000)


def test_harmless_and_spoilt_jpegs() -> None:
    data = encoded(Image.fromarray(RGB), "JPEG", quality=95)
    padded = data[:-2] + bytes(20) + data[-2:]  # bytes too many before the last marker, as some cameras write
    np.testing.assert_array_equal(decode(padded), decode(data))
    spoilt = bytearray(data)
    spoilt[-200:-190] = b"\xff\xd9" * 5
    with pytest.raises(DataError, match=r"^corrupt JPEG \(premature end of data segment\)$"):
        decode(bytes(spoilt))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "JPEG", "WEBP"])
def test_random_damage_never_escapes(kind: str) -> None:
    rng = np.random.default_rng(1)
    data = np.frombuffer(encoded(Image.fromarray(RGB), kind), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(150):
            hurt = data.copy()
            hurt[rng.integers(0, len(hurt), rng.integers(1, 6))] = rng.integers(0, 256)
            try:
                assert decode_image(hurt.tobytes(), max_pixels=10_000).ndim == 3
            except DataError as error:
                assert str(error)


def test_rows_are_read_from_files_and_pixels(tmp_path: Path) -> None:
    path = tmp_path / "猫.png"
    Image.fromarray(RGB).save(path)
    table = pa.table({"path": [str(path), str(tmp_path / "gone.png")]})
    np.testing.assert_array_equal(read_pixels(table, 0, max_pixels=MANY), RGB)
    with pytest.raises(DataError, match=r"gone.png': cannot be read \(No such file or directory\). Restore the file, or prepare"):
        read_pixels(table, 1, max_pixels=MANY)
    rgba = np.dstack([RGB, GREY])
    for pixels, expected in ((RGB, RGB), (GREY, np.repeat(GREY[..., None], 3, 2)), (rgba, to_rgb(rgba))):
        stored = from_arrays(np.stack([pixels, pixels]), [0, 1]).table
        np.testing.assert_array_equal(read_pixels(stored, 1, max_pixels=MANY), expected)
    short = stored.set_column(stored.column_names.index("height"), "height", pa.array([3, 3]))
    with pytest.raises(DataError, match="row 1: 4800 bytes of pixels, expected 3 × 40 × 4"):
        read_pixels(short, 1, max_pixels=MANY)


def test_blocks_of_rows() -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 5, 6, 3), dtype=np.uint8)
    table = from_arrays(images, list(range(10))).table
    rows = np.array([7, 0, 7, 3])
    for variant in (table, pa.concat_tables([table[:4], table[4:]]), pa.concat_tables([table, table])[10:]):
        np.testing.assert_array_equal(read_block(variant, rows), images[rows])
    mixed = pa.concat_tables([table, from_arrays(images[:, :4], list(range(10))).table])
    assert read_block(mixed, np.array([0, 12])) is None
    assert read_block(pa.table({"path": ["x"]}), np.array([0])) is None
    with pytest.raises(DataError, match=r"2 channels, expected 1 \(grey\), 3 \(RGB\) or 4 \(RGBA\)"):
        to_rgb(np.zeros((3, 3, 2), np.uint8))
