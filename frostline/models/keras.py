"""From Keras: VGG's .h5 weights into PyTorch's layout, and a Keras 3 model that runs on PyTorch as a plain module.

Keras stores a convolution as (row, column, in, out) and a dense layer as (in, out); PyTorch wants (out, in, row, column) and
(out, in). Keras flattens a feature map in the order (row, column, channel), PyTorch in (channel, row, column), so the inputs
of the first dense layer (fc1) are permuted as well. Nothing else differs: both correlate, and a 3×3 "same" convolution of
stride 1 pads symmetrically in both.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from frostline.errors import ModelError
from frostline.models.weights import read_keras_h5

TOP = {"fc1": "classifier.0", "fc2": "classifier.3", "predictions": "classifier.6"}


def vgg_from_keras(path: str | Path, name: str) -> dict[str, torch.Tensor]:
    """The tensors of ``vgg16_weights_tf_dim_ordering_tf_kernels[_notop].h5`` and its kin under torchvision's names.

    ``name``: vgg16, vgg19, …; Keras has no batch-norm variant. Raises ModelError where the layers are another network's.
    """
    layers = {layer: weights for layer, weights in read_keras_h5(path) if weights}
    found = sorted((int(match[1]), int(match[2])) for layer in layers if (match := re.fullmatch(r"block(\d)_conv(\d)", layer)))
    number = re.fullmatch(r"vgg(\d+)", name)
    if number is None or int(number[1]) != len(found) + 3:
        raise ModelError(_other_network(path, name, list(layers), len(found)))
    state: dict[str, torch.Tensor] = {}
    channels = 0
    for index, (block, convolution) in enumerate(found):
        kernel, bias = _kernel_and_bias(path, f"block{block}_conv{convolution}", layers, ndim=4)
        # Before it: every earlier convolution with its ReLU, and one max-pool for each earlier block.
        target = f"features.{2 * index + block - 1}"
        state[f"{target}.weight"] = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
        state[f"{target}.bias"] = bias
        channels = kernel.shape[3]
    for layer, target in TOP.items():
        if layer in layers:
            kernel, bias = _kernel_and_bias(path, layer, layers, ndim=2)
            state[f"{target}.weight"] = torch.from_numpy(_dense(kernel, channels if layer == "fc1" else 0))
            state[f"{target}.bias"] = bias
    return state


def _kernel_and_bias(path: str | Path, layer: str, layers: dict[str, dict[str, np.ndarray]], ndim: int) -> tuple[np.ndarray, torch.Tensor]:
    """By their number of dimensions: the names of the two changed from version to version (_W_1:0, kernel:0, kernel)."""
    arrays = [array.astype(np.float32) for array in layers[layer].values()]
    shapes = [array.shape for array in arrays]
    if sorted(array.ndim for array in arrays) != [1, ndim]:
        raise ModelError(f"{path}: layer {layer!r} holds arrays of shapes {shapes!r}, expected a kernel of {ndim} dimensions and a bias")
    bias, kernel = sorted(arrays, key=lambda array: array.ndim)
    if kernel.shape[-1] != bias.shape[0]:
        raise ModelError(f"{path}: layer {layer!r} holds arrays of shapes {shapes!r}, the last of the kernel's has to be the bias's")
    return kernel, torch.from_numpy(bias)


def _dense(kernel: np.ndarray, channels: int) -> np.ndarray:
    """(in, out) → (out, in); with ``channels``, the inputs from (row, column, channel) to (channel, row, column)."""
    if channels:
        side = round((kernel.shape[0] / channels) ** 0.5)
        if side * side * channels != kernel.shape[0]:
            raise ModelError(f"weights: fc1 takes {kernel.shape[0]} inputs, expected a square times {channels} channels")
        kernel = kernel.reshape(side, side, channels, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
    return np.ascontiguousarray(kernel.T)


def _other_network(path: str | Path, name: str, layers: list[str], convolutions: int) -> str:
    if convolutions + 3 in (16, 19):
        what = f"looks like vgg{convolutions + 3}, try model.name=vgg{convolutions + 3}"
        return f"{path}: {convolutions} convolutions do not make {name!r}; the file {what}"
    return f"{path}: its first layers are {layers[:4]!r}, expected Keras's VGG: block1_conv1, block1_conv2, …"


class KerasModule(nn.Module):
    """A Keras model behind PyTorch's conventions: (rows, channels, height, width) in, logits out, ``train()`` and ``eval()`` obeyed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        # Keras does not read PyTorch's training flag: dropout and batch norm follow the argument alone.
        return self.model(pixel_values.permute(0, 2, 3, 1), training=self.training and self.model.training)


def from_keras_model(model: Any) -> KerasModule:
    """Wrap a Keras 3 image model (channels last) that runs on PyTorch. Raises ModelError with the fix for another back end.

    Keras calls its layers without PyTorch's hooks, so the model is one block: it can learn whole, or be frozen whole.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model is a {type(model).__module__}.{type(model).__name__}, which is not a PyTorch module: Keras runs on another back end. "
            "Set KERAS_BACKEND=torch before Keras is imported, for example: KERAS_BACKEND=torch python train.py"
        )
    last = (getattr(model, "layers", None) or [None])[-1]
    activation = getattr(getattr(last, "activation", None), "__name__", "linear")
    if activation in ("softmax", "sigmoid"):
        raise ModelError(
            f"model ends in {activation!r} (layer {getattr(last, 'name', '?')!r}), expected logits, since the loss applies it itself. "
            "Make the last layer without activation: keras.layers.Dense(classes)"
        )
    return KerasModule(model)
