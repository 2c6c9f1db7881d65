"""Keras's layout: files written here as Keras writes them, outputs computed from the (row, column, in, out) kernels in numpy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from frostline.errors import ModelError
from frostline.models.keras import from_keras_model, vgg_from_keras
from frostline.models.vgg import STAGES, build_vgg, build_vgg_top, load_vgg

WIDTH = 2
WEIGHT_NAMES = {"keras 1": ("{}_W_1:0", "{}_b_1:0"), "keras 2": ("{0}/kernel:0", "{0}/bias:0"), "keras 3": ("{0}/kernel", "{0}/bias")}


def keras_layers(name: str, top: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every layer of Keras's VGG, in its order, with its kernel's shape (() where it has none)."""
    channels = 3
    yield "input_1", ()
    for block, count in enumerate(STAGES[name], start=1):
        out = WIDTH * min(2 ** (block - 1), 8)
        for convolution in range(1, count + 1):
            yield f"block{block}_conv{convolution}", (3, 3, channels, out)
            channels = out
        yield f"block{block}_pool", ()
    if top:
        yield "flatten", ()
        yield "fc1", (7 * 7 * channels, 64 * WIDTH)
        yield "fc2", (64 * WIDTH, 64 * WIDTH)
        yield "predictions", (64 * WIDTH, 5)


def write_keras(path: Path, name: str, *, top: bool = False, style: str = "keras 2") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    random, made = np.random.default_rng(0), {}
    layers = list(keras_layers(name, top))
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.encode() for layer, _ in layers]
        for layer, shape in layers:
            group = file.create_group(layer)
            names = [pattern.format(layer) for pattern in WEIGHT_NAMES[style]] if shape else []
            group.attrs["weight_names"] = [name.encode() for name in names]
            if shape:
                scale = np.sqrt(2 / np.prod(shape[:-1]))
                made[layer] = (
                    (scale * random.standard_normal(shape)).astype(np.float32),
                    random.standard_normal(shape[-1]).astype(np.float32),
                )
                for weight, array in zip(names, made[layer], strict=True):
                    group.create_dataset(weight, data=array)
    return made


def keras_body(weights: dict[str, tuple[np.ndarray, np.ndarray]], images: np.ndarray) -> np.ndarray:
    """Keras's VGG on (rows, height, width, channels), in numpy: convolutions as sums over the nine shifts of a padded image."""
    x, block = images, "1"
    for layer, (kernel, bias) in weights.items():
        if not layer.startswith("block"):
            continue
        if layer[5] != block:
            x, block = halve(x), layer[5]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        height, width = x.shape[1:3]
        x = sum(padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3)) + bias
        x = np.maximum(x, 0)
    return halve(x)


def halve(x: np.ndarray) -> np.ndarray:
    rows, height, width, channels = x.shape
    return x.reshape(rows, height // 2, 2, width // 2, 2, channels).max((2, 4))


@pytest.mark.parametrize("style", list(WEIGHT_NAMES))
@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_notop_gives_kerass_features(tmp_path: Path, name: str, style: str) -> None:
    weights = write_keras(tmp_path / "权重_notop.h5", name, style=style)
    module = build_vgg(name, outputs=2, head=["flatten"], size=64, width=WIDTH).eval()
    assert load_vgg(module, tmp_path / "权重_notop.h5", name) == "keras"
    images = np.random.default_rng(1).standard_normal((2, 64, 64, 3)).astype(np.float32)
    expected = keras_body(weights, images)
    assert np.abs(expected).max() > 0.1
    found = module.features(torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-3, atol=1e-4)


def test_top_gives_kerass_logits(tmp_path: Path) -> None:
    """The first dense layer's inputs are permuted: Keras flattens (row, column, channel)."""
    weights = write_keras(tmp_path / "w.h5", "vgg16", top=True)
    module = build_vgg_top("vgg16", outputs=5, width=WIDTH).eval()
    load_vgg(module, tmp_path / "w.h5", "vgg16")
    images = np.random.default_rng(1).standard_normal((1, 224, 224, 3)).astype(np.float32)
    x = keras_body(weights, images).reshape(1, -1)
    for layer in ("fc1", "fc2"):
        x = np.maximum(x @ weights[layer][0] + weights[layer][1], 0)
    expected = x @ weights["predictions"][0] + weights["predictions"][1]
    found = module(pixel_values=torch.from_numpy(images).permute(0, 3, 1, 2))
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-3, atol=1e-3)
    body = build_vgg("vgg16", outputs=2, size=64, width=WIDTH)  # the top of the file is left out where the module has none
    load_vgg(body, tmp_path / "w.h5", "vgg16")
    assert torch.equal(body.features[0].weight, module.features[0].weight)


def test_another_network_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.h5"
    write_keras(path, "vgg19")
    with pytest.raises(ModelError, match=r"16 convolutions do not make 'vgg16'; the file looks like vgg19, try model.name=vgg19"):
        vgg_from_keras(path, "vgg16")
    with pytest.raises(ModelError, match=r"do not make 'vgg19_bn'"):
        vgg_from_keras(path, "vgg19_bn")
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"conv1_conv"]
        file.create_group("conv1_conv").attrs["weight_names"] = [b"k"]
        file["conv1_conv"]["k"] = np.zeros((7, 7, 3, 64), np.float32)
    with pytest.raises(ModelError, match=r"its first layers are \['conv1_conv'\], expected Keras's VGG"):
        vgg_from_keras(path, "vgg16")


def test_a_layer_without_its_bias(tmp_path: Path) -> None:
    path = tmp_path / "w.h5"
    write_keras(path, "vgg16")
    with h5py.File(path, "a") as file:
        file["block3_conv2"].attrs["weight_names"] = [b"block3_conv2/kernel:0"]
    with pytest.raises(ModelError, match=r"layer 'block3_conv2' holds arrays of shapes .*expected a kernel of 4 dimensions and a bias"):
        vgg_from_keras(path, "vgg16")


class KerasLike(nn.Module):
    """Stands in for a Keras 3 model on PyTorch: channels last, and the ``training`` argument alone decides."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(3, 2)
        self.seen: list[tuple[tuple[int, ...], bool]] = []

    def forward(self, images: torch.Tensor, training: bool = False) -> torch.Tensor:
        self.seen.append((tuple(images.shape), training))
        return self.dense(images.mean((1, 2)))


def test_a_keras_model_is_wrapped() -> None:
    model = KerasLike()
    module = from_keras_model(model)
    pixels = torch.randn(4, 3, 5, 6)
    assert torch.allclose(module(pixel_values=pixels), model.dense(pixels.mean((2, 3))), atol=1e-6)
    module.eval()(pixels)
    module.train()
    model.eval()  # frozen inside a module that learns
    module(pixels)
    assert model.seen == [((4, 5, 6, 3), True), ((4, 5, 6, 3), False), ((4, 5, 6, 3), False)]


def test_a_keras_model_on_another_back_end_or_with_probabilities() -> None:
    with pytest.raises(ModelError, match=r"KERAS_BACKEND=torch"):
        from_keras_model(object())

    def softmax() -> None: ...

    model = KerasLike()
    model.layers = [type("Dense", (), {"activation": staticmethod(softmax), "name": "predictions"})()]
    with pytest.raises(ModelError, match=r"ends in 'softmax' \(layer 'predictions'\), expected logits"):
        from_keras_model(model)
