"""``preprocessor_config.json`` of Hugging Face, read into an ImagePreprocess and written from one.

The processors differ in how they reach the final square: ``size: {height, width}`` squashes; ``size: {shortest_edge}`` with a
centre crop keeps the sides' ratio; ConvNeXt's ``crop_pct`` does the latter below 384 pixels and squashes from there on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from frostline.data.preprocess import ImagePreprocess
from frostline.errors import ModelError

_RESAMPLE: dict[int, Literal["nearest", "bilinear", "bicubic"]] = {0: "nearest", 2: "bilinear", 3: "bicubic"}
_KEEP_RATIO = 1 - 1e-6  # crop 1.0 means squashed; this crops nothing but keeps the ratio of the sides
_CONVNEXT_SQUASHES_FROM = 384


def read_image_preprocess(folder: Path) -> ImagePreprocess:
    """What the folder's processor does. Raises ModelError where it is missing or does what an ImagePreprocess cannot say."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        raise ModelError(
            f"{str(file)!r} is missing, expected the size and normalisation that the model was trained with. "
            "Copy it from where the model came from"
        )
    values = _processor_values(folder)
    size, crop = _size_and_crop(values, file)
    resample = values.get("resample", 2)
    if resample not in _RESAMPLE:
        raise ModelError(f"{str(file)!r}: resample {resample!r} is not supported, expected 0 (nearest), 2 (bilinear) or 3 (bicubic)")
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    if values.get("do_normalize", True) and values.get("image_mean") is not None:
        mean, std = _triple(values["image_mean"]), _triple(values["image_std"])
    return ImagePreprocess(
        size=size,
        scale=float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 1.0,
        mean=mean,
        std=std,
        interpolation=_RESAMPLE[resample],
        channels="bgr" if values.get("do_flip_channel_order") else "rgb",
        crop=crop,
    )


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


def _processor_values(folder: Path) -> dict[str, Any]:
    """The file's values, completed with the defaults of its processor's class."""
    from transformers import AutoImageProcessor

    from frostline.models.hf_module import quiet

    try:
        with quiet():
            return AutoImageProcessor.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True).to_dict()
    except Exception as error:  # processors check their values with errors of many types
        raise ModelError(
            f"{str(folder / 'preprocessor_config.json')!r} cannot be used: {error}. Copy it again from where the model came from"
        ) from error


def _size_and_crop(values: dict[str, Any], file: Path) -> tuple[int, float]:
    size, cropped = values.get("size") or {}, values.get("crop_size") or {}
    edge = size.get("shortest_edge")
    if "crop_pct" in values and edge:
        share = values["crop_pct"] or 1.0
        return edge, 1.0 if edge >= _CONVNEXT_SQUASHES_FROM else min(share, _KEEP_RATIO)
    if values.get("do_center_crop") and cropped:
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
