"""VGG 11, 13, 16 and 19, with and without batch norm: 3×3 convolutions in five stages, each halved by a max-pool.

Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015; the number counts
the layers with weights, three of them in the original classifier. The body is ``features`` and ends in the last max-pool
(512 × 7 × 7 for images of 224 pixels); for fine-tuning a new ``head`` follows it, and :func:`build_vgg_top` gives the
network with its own ``classifier`` instead. Names are torchvision's, so its files load as they are. Three families of
files are read, each with the preprocessing it was trained with:

- torchvision and timm (.pth, .safetensors): RGB from 0 to 1, ImageNet's mean and deviation, a centre crop. timm writes the
  classifier as convolutions (pre_logits.fc1, fc2, head.fc), which are the same numbers in the same order.
- Keras (.h5): the original Caffe weights: BGR from 0 to 255, less the mean. keras.py converts the layout. Where Keras flattens,
  it does so in the order (row, column, channel) and PyTorch in (channel, row, column): the original classifier is permuted,
  and a new head just learns in PyTorch's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from frostline.data.preprocess import ImagePreprocess
from frostline.errors import ModelError
from frostline.models.cnn import preprocess as preprocess_from_zero
from frostline.models.head import ImageNetwork, blocks, build_head, head
from frostline.models.keras import vgg_from_keras
from frostline.models.weights import load_into, read_weights

__all__ = ["NAMES", "Family", "VGGTop", "blocks", "build_vgg", "build_vgg_top", "family_of", "head", "load_vgg", "preprocess", "read_vgg"]

STAGES = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
"""Convolutions in each stage; channels are width × 1, 2, 4, 8, 8."""
NAMES = (*STAGES, *(f"{name}_bn" for name in STAGES))
TIMM_TOP = {"pre_logits.fc1.": "classifier.0.", "pre_logits.fc2.": "classifier.3.", "head.fc.": "classifier.6."}

Family = Literal["torchvision", "keras", "zero"]
"""Whose weights: what the pixels have to look like depends on it. timm's are as torchvision's."""


class VGGTop(nn.Module):
    """The network with its original classifier: two hidden layers of 64 × width and dropout."""

    def __init__(self, features: nn.Sequential, channels: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(channels * 49, hidden),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(hidden, outputs),
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.avgpool(self.features(pixel_values)).flatten(1))


def build_vgg(
    name: str,
    *,
    outputs: int,
    head: Sequence[str] = (),
    pool: str | None = None,
    channels: int = 3,
    size: int = 224,
    width: int = 64,
) -> ImageNetwork:
    """Body and new head. ``width``: channels of the first stage; pretrained files have 64. Raises ModelError for an unknown name."""
    if size < 32:
        raise ModelError(f"{name}: images of {size!r} pixels are too small, it halves them five times and needs 32; set data.size=224")
    side = size // 32
    return ImageNetwork(_features(name, channels, width), build_head(head, (8 * width, side, side), outputs, pool))


def build_vgg_top(name: str, *, outputs: int = 1000, channels: int = 3, width: int = 64) -> VGGTop:
    """Body and the original classifier, for files that hold all of ImageNet's network."""
    return VGGTop(_features(name, channels, width), 8 * width, 64 * width, outputs)


def family_of(path: str | Path) -> Family:
    """Whose weights a file holds, told by its name alone: Keras writes .h5, torchvision and timm do not."""
    return "keras" if Path(path).suffix.lower() in (".h5", ".hdf5") else "torchvision"


def read_vgg(path: str | Path, name: str) -> tuple[dict[str, torch.Tensor], Family]:
    """The tensors of a torchvision, timm or Keras file under torchvision's names, and which family they are of."""
    if family_of(path) == "keras":
        return vgg_from_keras(Path(path), name), "keras"
    state: dict[str, torch.Tensor] = {}
    for key, value in read_weights(path).items():
        prefix = next((prefix for prefix in TIMM_TOP if key.startswith(prefix)), "")
        if value.ndim == 4 and prefix:  # a 7×7 or 1×1 convolution: (out, in, row, column) is PyTorch's flatten order already
            value = value.flatten(1)
        state[TIMM_TOP.get(prefix, "") + key[len(prefix) :]] = value
    return state, "torchvision"


def load_vgg(module: nn.Module, path: str | Path, name: str) -> Family:
    """Read a weight file into the body, and into the original classifier if the module has one; the family tells the preprocessing.

    Raises ModelError naming the first tensor that does not fit.
    """
    state, family = read_vgg(path, name)
    if isinstance(module, VGGTop):
        load_into(module, state, source=str(path))
    else:
        load_into(module, state, prefix_map={"classifier.": None}, allow_missing=["head."], source=str(path))
    return family


def preprocess(family: Family, size: int = 224, channels: int = 3) -> ImagePreprocess:
    """What the weights of this family were trained with; "zero": weights that are not pretrained."""
    if family == "keras":
        means = (103.939, 116.779, 123.68)  # blue, green, red: ImageNet's, in Caffe
        return ImagePreprocess(size=size, scale=1.0, mean=means, channels="bgr", interpolation="nearest")
    if family == "torchvision":
        return ImagePreprocess(size=size, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop=0.875)
    return preprocess_from_zero(size, channels)


def _features(name: str, channels: int, width: int) -> nn.Sequential:
    """The body, with torchvision's numbering: convolution, (batch norm,) ReLU, …, max-pool. ReLU is not in place, so a stored
    output of a layer stays what the layer gave."""
    if name not in NAMES:
        raise ModelError(f"model.name is {name!r}, expected one of {', '.join(NAMES)}")
    made: list[nn.Module] = []
    for stage, count in enumerate(STAGES[name.removesuffix("_bn")]):
        out = width * min(2**stage, 8)
        for _ in range(count):
            made.append(_convolution(channels, out))
            made += [nn.BatchNorm2d(out), nn.ReLU()] if name.endswith("_bn") else [nn.ReLU()]
            channels = out
        made.append(nn.MaxPool2d(2))
    return nn.Sequential(*made)


def _convolution(channels: int, out: int) -> nn.Conv2d:
    made = nn.Conv2d(channels, out, 3, padding=1)
    # He et al. 2015: with PyTorch's default, sixteen layers without norm let the signal die and nothing is learned.
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(made.bias)  # type: ignore[arg-type]
    return made
