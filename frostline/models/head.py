"""The head: from the body's features to as many numbers as the task has outputs. New, and always learning.

Also :class:`ImageNetwork`, the plain pair of a body (``features``) and a head that vgg, cnn, mlp and layers are built as.

A head is a phrase list in the layer language (layers.py), followed by one linear layer to ``outputs``. Features of a body
for images still have positions, (channels, height, width); before the first layer that needs a vector they are

- flattened where the list says ``flatten`` — in PyTorch's order (channel, row, column). Keras flattens (row, column,
  channel); since a head is always new, the order of its inputs is free, and none is converted; or
- pooled over positions otherwise: ``mean`` (Lin et al., "Network in network", 2013), ``max``, or ``attention``, a learned
  weighting (Bahdanau et al. 2015, with one query): softmax over positions of a linear score, then the weighted sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from frostline.errors import ModelError
from frostline.models.layers import SPATIAL_WORDS, build_layers, parse_layers

POOLS = ("mean", "max", "attention")


class ImageNetwork(nn.Module):
    """``head(features(pixel_values))``: (rows, channels, size, size) → logits (rows, outputs)."""

    def __init__(self, features: nn.Sequential, head: nn.Sequential) -> None:
        super().__init__()
        self.features = features
        self.head = head

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(pixel_values))


class AttentionPool2d(nn.Module):
    """(rows, channels, height, width) → (rows, channels): positions weighted by a learned score."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score = nn.Linear(channels, 1, bias=False)
        nn.init.zeros_(self.score.weight)  # starts as the mean

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        positions = features.flatten(2).transpose(1, 2)  # rows, positions, channels
        weights = self.score(positions).softmax(dim=1)  # rows, positions, 1
        return (weights * positions).sum(dim=1)


def build_head(spec: Sequence[str], features: int | tuple[int, ...], outputs: int, pool: str | None = None) -> nn.Sequential:
    """Layers of ``spec``, pooling where it is needed, then the linear layer to ``outputs``. Raises ModelError naming the word.

    >>> [type(layer).__name__ for layer in build_head(["dropout 0.5"], (512, 7, 7), 2)]
    ['AdaptiveAvgPool2d', 'Flatten', 'Dropout', 'Linear']
    """
    if outputs < 1:
        raise ModelError(f"head: outputs is {outputs!r}, expected at least 1; the data has no classes")
    shape = (features,) if isinstance(features, int) else tuple(features)
    if len(shape) == 1:
        if pool is not None:
            raise ModelError(f"model.pool is {pool!r}, but the features are one vector already ({shape[0]} numbers); leave model.pool out")
        body, shape = build_layers(spec, shape)
        return nn.Sequential(*body, _output(shape, outputs))
    words = [layer.word for layer in parse_layers(spec)]
    if {"flatten", "globalpool"} & set(words):
        if pool is not None:
            raise ModelError(f"model.pool is {pool!r}, but the head already makes one vector: {list(spec)!r}; keep one of the two")
        body, shape = build_layers(spec, shape)
        return nn.Sequential(*body, _output(shape, outputs))
    border = max((i + 1 for i, word in enumerate(words) if word in SPATIAL_WORDS), default=0)
    before, shape = build_layers(spec[:border], shape)
    pooling = build_pool(pool or "mean", shape[0])
    after, shape = build_layers(spec[border:], shape[:1])
    return nn.Sequential(*before, *pooling, *after, _output(shape, outputs))


def build_by_hand(
    specs: Sequence[str], *, outputs: int, head: Sequence[str] = (), pool: str | None = None, channels: int = 3, size: int = 224
) -> ImageNetwork:
    """The network of `model.layers`, a head after it.

    >>> build_by_hand(["conv 8 3 relu", "pool 2"], outputs=3, channels=1, size=28)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 3])
    """
    features, shape = build_layers(specs, (channels, size, size))
    return ImageNetwork(features, build_head(head, shape, outputs, pool))


def blocks(module: nn.Module) -> list[str]:
    """Names of the body's blocks, from input to output: each part of ``features`` with weights that is not a norm.

    A norm belongs to the block before it: a block reaches from its own module to where the next block begins.
    """
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
    parts = module.get_submodule("features").named_children()
    return [f"features.{name}" for name, part in parts if not isinstance(part, norms) and any(True for _ in part.parameters())]


def head(module: nn.Module) -> list[str]:
    """Names of the modules that make up the head."""
    return [name for name, _ in module.named_children() if name in ("head", "classifier")]


def build_pool(kind: str, channels: int) -> list[nn.Module]:
    """Modules that turn (rows, channels, height, width) into (rows, channels)."""
    match kind:
        case "mean":
            return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        case "max":
            return [nn.AdaptiveMaxPool2d(1), nn.Flatten()]
        case "attention":
            return [AttentionPool2d(channels)]
    why = "it picks the first token, and an image has none; " if kind == "cls" else ""
    raise ModelError(f"model.pool is {kind!r}: {why}expected one of {', '.join(POOLS)} for images")


def _output(shape: tuple[int, ...], outputs: int) -> nn.Linear:
    assert len(shape) == 1, f"a head ends in a vector, got {shape}"
    return nn.Linear(math.prod(shape), outputs)
