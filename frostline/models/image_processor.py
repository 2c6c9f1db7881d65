"""``preprocessor_config.json`` of Hugging Face, read into an ImagePreprocess and written from one.

The processors differ in how they reach the final square: ``size: {height, width}`` squashes; ``size: {shortest_edge}`` with a
centre crop keeps the sides' ratio; ConvNeXt's ``crop_pct`` does the latter below 384 pixels and squashes from there on. Other
classes have steps of their own (EfficientNet divides twice, LeViT resizes to 256/224 of what is written), so what was read is
not believed: the processor itself and frostline's encoder both take one picture, and have to agree.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from frostline.data.image_encoder import encode_images
from frostline.data.preprocess import ImagePreprocess
from frostline.errors import ModelError

_RESAMPLE: dict[int, Literal["nearest", "bilinear", "bicubic"]] = {0: "nearest", 2: "bilinear", 3: "bicubic"}
_KEEP_RATIO = 1 - 1e-6  # crop 1.0 means squashed; this crops nothing but keeps the ratio of the sides
_CONVNEXT_SQUASHES_FROM = 384
_LARGEST_SIDE = 4096  # of what is resized to; a configuration may claim anything, and the comparison takes memory for it
_TOLERANCE = 0.02  # mean difference, as a share of the values' standard deviation


def read_image_preprocess(folder: Path) -> ImagePreprocess:
    """What the folder's processor does. Raises ModelError where it is missing or does what an ImagePreprocess cannot say."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        raise ModelError(
            f"{str(file)!r} is missing, expected the size and normalisation that the model was trained with. "
            "Copy it from where the model came from"
        )
    processor = _load_processor(folder)
    values = processor.to_dict()
    _check_sides(values, file)
    size, crop = _size_and_crop(values, file)
    resample = values.get("resample", 2)
    if resample not in _RESAMPLE:
        raise ModelError(f"{str(file)!r}: resample {resample!r} is not supported, expected 0 (nearest), 2 (bilinear) or 3 (bicubic)")
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    # A class without the step has no key for it: to_dict() completes what the file leaves out where there is a default.
    if values.get("do_normalize") and values.get("image_mean") is not None:
        mean, std = _triple(values["image_mean"]), _triple(values["image_std"])
    preprocess = ImagePreprocess(
        size=size,
        scale=float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale") else 1.0,
        mean=mean,
        std=std,
        interpolation=_RESAMPLE[resample],
        channels="bgr" if values.get("do_flip_channel_order") else "rgb",
        crop=crop,
    )
    _compare(processor, preprocess, file)
    return preprocess


def image_processor_config(preprocess: ImagePreprocess) -> dict[str, Any]:
    """The same as ``transformers`` writes it, so that its AutoImageProcessor reads a saved folder."""
    square = {"height": preprocess.size, "width": preprocess.size}
    squashed = preprocess.crop == 1.0
    values: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor" if squashed else "BitImageProcessor",
        "do_resize": True,
        "size": square if squashed else {"shortest_edge": round(preprocess.size / preprocess.crop)},
        "resample": next(number for number, name in _RESAMPLE.items() if name == preprocess.interpolation),
        "do_rescale": True,
        "rescale_factor": preprocess.scale,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }
    return values if squashed else {**values, "do_center_crop": True, "crop_size": square}


def _load_processor(folder: Path) -> Any:
    """The processor that the file describes; its ``to_dict()`` is completed with the defaults of its class."""
    from transformers import AutoImageProcessor

    from frostline.models.hf_module import quiet

    try:
        with quiet():
            return AutoImageProcessor.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # processors check their values with errors of many types
        raise ModelError(
            f"{str(folder / 'preprocessor_config.json')!r} cannot be used: {error}. Copy it again from where the model came from"
        ) from error


def _check_sides(values: dict[str, Any], file: Path) -> None:
    """Before memory is taken for them."""
    for name in ("size", "crop_size", "pad_size"):
        given = values.get(name)
        sides = list(given.values()) if isinstance(given, dict) else [given]
        if any(isinstance(side, int | float) and not 1 <= side <= _LARGEST_SIDE for side in sides):
            raise ModelError(f"{str(file)!r}: {name} got {given!r}, expected 1 to {_LARGEST_SIDE} pixels. Copy it again")


def _compare(processor: Any, preprocess: ImagePreprocess, file: Path) -> None:
    """Raises ModelError unless the processor and frostline's encoder make the same of one picture."""
    from frostline.models.hf_module import quiet

    name = type(processor).__name__
    short = round(preprocess.size / preprocess.crop) if 0 < preprocess.crop <= 1 else 0
    if not preprocess.size <= short <= _LARGEST_SIDE:
        raise ModelError(f"{str(file)!r}: its {name!r} resizes to {short} pixels, expected at most {_LARGEST_SIDE}. Copy it again")
    picture = _picture(preprocess.size, short)
    own = encode_images([picture], preprocess, picture.size).numpy()
    try:
        with quiet():
            theirs = np.asarray(processor(images=Image.fromarray(picture), return_tensors="np")["pixel_values"])
    except Exception as error:  # processors fail on their own values with errors of many types
        raise ModelError(f"{str(file)!r}: its {name!r} fails on a picture: {error}. Copy it again") from error
    if theirs.shape != own.shape:
        what = f"makes the shape {theirs.shape!r} of a picture of {picture.shape[:2]!r} pixels, frostline {own.shape!r}"
    else:
        difference, spread = float(np.abs(theirs - own).mean()), float(own.std())
        # Where the margin is odd, transformers itself rounds half a pixel up or down, according to what it resizes with.
        allowed = _TOLERANCE + (2 / preprocess.size if (short - preprocess.size) % 2 else 0)
        if difference <= allowed * spread:
            return
        what = f"gives other values than frostline, mean difference {difference:.3g} (standard deviation {spread:.3g})"
    raise ModelError(
        f"{str(file)!r}: its {name!r} {what}: it has a step that frostline does not know. Expected what ViTImageProcessor, "
        "BitImageProcessor or ConvNextImageProcessor can do; choose a model with one of these"
    )


def _picture(size: int, short: int) -> np.ndarray:
    """Uint8, wider than high, another slope in each channel. Smooth: a shift or a scale shows, the rounding of a resize does not."""
    height = round(1.2 * short)
    width = height + 2 * round(0.15 * height)
    down, across = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)[None, :]
    channels = np.broadcast_arrays(across, down**2, (1 - across) * (0.5 + 0.5 * down))
    return np.rint(20 + 215 * np.stack(channels, axis=-1)).astype(np.uint8)


def _size_and_crop(values: dict[str, Any], file: Path) -> tuple[int, float]:
    size, cropped = values.get("size") or {}, values.get("crop_size") or {}
    sides = {name: pixels for part in (size, cropped) for name, pixels in part.items()}
    numbers = {**sides, "crop_pct": values.get("crop_pct") or 1.0}
    if wrong := next((name for name, value in numbers.items() if not isinstance(value, int | float) or value <= 0), None):
        raise ModelError(f"{str(file)!r}: {wrong} got {numbers[wrong]!r}, expected a number above 0. Copy the file again")
    edge = size.get("shortest_edge")
    if "crop_pct" in values and edge:
        share = values["crop_pct"] or 1.0
        # ConvNeXt cuts edge / crop_pct down to whole pixels, ImagePreprocess rounds: the share is that of the whole pixels.
        return edge, 1.0 if edge >= _CONVNEXT_SQUASHES_FROM else min(edge / max(int(edge / share), edge), _KEEP_RATIO)
    if values.get("do_center_crop") and cropped and cropped != size:  # the same: squashed, and nothing is left to crop
        height, width = cropped.get("height"), cropped.get("width")
        edge = edge or min(size.get("height", 0), size.get("width", 0))
        share = min(height / edge, _KEEP_RATIO) if edge else _KEEP_RATIO
    else:
        height, width, share = size.get("height"), size.get("width"), 1.0
    if not height or height != width:
        raise ModelError(
            f"{str(file)!r}: size {size!r} and crop_size {cropped!r} do not give a square image, expected equal height and width"
        )
    return int(height), share


def _triple(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in (values if isinstance(values, list | tuple) else [values] * 3))
