"""The small convolutional network from zero."""

from __future__ import annotations

import pytest
import torch

from frostline.errors import ModelError
from frostline.models.cnn import blocks, build_cnn, head, preprocess
from frostline.models.net import Net


@pytest.mark.parametrize(("size", "channels", "depth"), [(28, 1, 2), (28, 3, 4), (32, 3, 3), (65, 3, 2), (224, 3, 3)])
@pytest.mark.parametrize("layers", [(), ("flatten", "dense 16 relu")])
def test_sizes(size: int, channels: int, depth: int, layers: tuple[str, ...]) -> None:
    module = build_cnn(Net(outputs=5, width=32, depth=depth, head=layers), channels=channels, size=size)
    assert module(pixel_values=torch.randn(2, channels, size, size)).shape == (2, 5)
    assert blocks(module) == [f"features.{i}" for i in range(depth)]
    assert head(module) == ["head"]


def test_channels_start_at_an_eighth_of_the_width_and_double() -> None:
    module = build_cnn(Net(outputs=2, width=256, depth=3), channels=1, size=28)
    assert [block[3].out_channels for block in module.features] == [32, 64, 128]


def test_a_large_image_is_reduced_by_the_first_convolution() -> None:
    module = build_cnn(Net(outputs=2, width=32), channels=3, size=224)
    assert module.features[0][0](torch.zeros(1, 3, 224, 224)).shape[-1] == 56


def test_it_learns() -> None:
    """Vertical against horizontal stripes, of any phase: no pixel alone tells them apart."""
    torch.manual_seed(0)
    module = build_cnn(Net(outputs=2, width=32, depth=2), channels=1, size=28)
    labels = torch.arange(32) % 2
    waves = torch.sin(torch.arange(28) * 0.9 + torch.rand(32, 1) * 6.28)
    pixels = torch.where(labels[:, None, None] == 0, waves[:, None, :], waves[:, :, None]).expand(32, 28, 28)[:, None]
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(15):
        loss = torch.nn.functional.cross_entropy(module(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (module(pixels).argmax(1) == labels).all()


def test_refusals() -> None:
    with pytest.raises(ModelError, match=r"images of 20 pixels are too small, expected at least 28"):
        build_cnn(Net(outputs=2), size=20)
    with pytest.raises(ModelError, match=r"model.depth is 5, but images of 28 pixels can be halved only 4 times"):
        build_cnn(Net(outputs=2, depth=5), size=28)


def test_preprocess() -> None:
    grey, colour = preprocess(28, 1), preprocess(32)
    assert (grey.channels, grey.mean, grey.std, grey.size) == ("grey", (0.5,), (0.5,), 28)
    assert (colour.channels, colour.mean, colour.crop) == ("rgb", (0.5, 0.5, 0.5), 1.0)
