"""What stands between a row and the network's input. It belongs to the model, is saved with it, and is the only one used.

An :class:`ImagePreprocess` or :class:`TextPreprocess` travels in the model's card, so training, evaluation and prediction
cannot disagree about size, normalisation or tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class ImagePreprocess:
    """RGB uint8 pixels to a float32 tensor (channels, size, size): resize, crop, ``(pixels * scale - mean) / std``."""

    size: int
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    """After scaling, in the order of ``channels``."""
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    channels: Literal["rgb", "bgr", "grey"] = "rgb"
    """Order in which the network wants them (Keras's VGG files: bgr)."""
    crop: float = 1.0
    """The image is resized so that the centre crop is this share of its shorter side; 1.0: squashed to the square, uncropped."""

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "image", **{name: getattr(self, name) for name in self.__dataclass_fields__}}


@dataclass(frozen=True, kw_only=True)
class TextPreprocess:
    """Text to token ids, by a Hugging Face fast tokenizer, cut to ``max_length`` tokens (special ones included)."""

    tokenizer: Any
    """A ``transformers.PreTrainedTokenizerFast``."""
    max_length: int = 256
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    """Names of the network's arguments; an encoder-decoder's have ``decoder_input_ids`` among them."""
    start: int | None = None
    """For an encoder-decoder: the id that a target begins with (``decoder_input_ids`` are it and the target without its last)."""
    prompt: str | None = None
    """For translation and summarisation: the request that the model was trained with (data.prompt), if one was given."""

    def to_dict(self) -> dict[str, Any]:
        some = {"start": self.start, "prompt": self.prompt}
        given = {name: value for name, value in some.items() if value is not None}
        return {"kind": "text", "max_length": self.max_length, "inputs": self.inputs, **given}


def with_prompt(preprocess: ImagePreprocess | TextPreprocess, prompt: str | None) -> ImagePreprocess | TextPreprocess:
    """The preprocessing of a model that is trained with this data.prompt; None: with the one that it has."""
    if prompt is None or isinstance(preprocess, ImagePreprocess):
        return preprocess
    return replace(preprocess, prompt=prompt)
