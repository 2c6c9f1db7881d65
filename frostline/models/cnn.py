"""`cnn`: a small convolutional network from zero, for images from 28 pixels on, made for two processor cores.

Each block is [convolution 3×3, batch norm, ReLU] twice and a max-pool: the design of VGG (Simonyan and Zisserman 2014)
with batch norm (Ioffe and Szegedy 2015). Channels start at width / 8 and double from block to block, so the first block,
whose feature maps are the largest, is the cheapest per pixel. Global average pooling, dropout and the head follow.
Images of 112 pixels and more are first reduced by the stride of the first convolution, to 56–111 pixels a side, so the
cost hardly grows with the size of the image.

For small images depth 3 pays: at 3/4 of the width it costs no more than depth 2, and each position sees twice as far.
"""

from __future__ import annotations

from torch import nn

from frostline.data.preprocess import ImagePreprocess
from frostline.errors import ModelError
from frostline.models.head import ImageNetwork, blocks, build_head, head
from frostline.models.net import Net

__all__ = ["blocks", "build_cnn", "head", "preprocess"]

SMALLEST = 28


def build_cnn(net: Net, *, channels: int = 3, size: int = 28) -> ImageNetwork:
    """For images of ``channels`` × ``size`` × ``size``. Raises ModelError where they are too small for the depth."""
    if size < SMALLEST:
        raise ModelError(f"cnn: images of {size!r} pixels are too small, expected at least {SMALLEST}; set data.size={SMALLEST}")
    stride = max(1, size // 56)
    side = -(-size // stride)
    if side >> net.depth < 1:
        raise ModelError(
            f"cnn: model.depth is {net.depth!r}, but images of {size!r} pixels can be halved only {side.bit_length() - 1} times"
        )
    made: list[nn.Module] = []
    inputs, out = channels, max(4, net.width // 8)
    for index in range(net.depth):
        made.append(_block(inputs, out, stride if index == 0 else 1))
        inputs, out = out, 2 * out
    left = (inputs, side >> net.depth, side >> net.depth)
    return ImageNetwork(nn.Sequential(*made), build_head([f"dropout {net.dropout}", *net.head], left, net.outputs, net.pool))


def preprocess(size: int, channels: int = 3) -> ImagePreprocess:
    """For image networks from zero: pixels from -1 to 1, grey where the network takes one channel."""
    half = (0.5,) * channels
    return ImagePreprocess(size=size, mean=half, std=half, channels="grey" if channels == 1 else "rgb")


def _block(channels: int, out: int, stride: int) -> nn.Sequential:
    # Kernel 2 stride + 1, so that no pixel is skipped; a bias before batch norm would be undone by it.
    return nn.Sequential(
        nn.Conv2d(channels, out, 2 * stride + 1, stride, stride, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
        nn.Conv2d(out, out, 3, padding=1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
