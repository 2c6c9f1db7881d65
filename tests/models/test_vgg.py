"""VGG: torchvision's, timm's and Keras's files give the same network; references are computed without the module."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from frostline.errors import ModelError
from frostline.models.vgg import NAMES, STAGES, blocks, build_vgg, build_vgg_top, head, load_vgg, preprocess

WIDTH = 4
TORCHVISION_VGG16 = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
"""Where torchvision's vgg16 has its convolutions."""


def random_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """A file for ``module``: random numbers under its names, running variances positive."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, value in module.state_dict().items():
        made = torch.randn(value.shape, generator=generator) * 0.1
        state[name] = value.clone() if value.dtype == torch.int64 else made.abs() + 0.5 if name.endswith("running_var") else made
    return state


def by_hand(name: str, state: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """The body, straight from the numbers: torchvision counts convolution, (norm,) ReLU and pool as one each."""
    x, index = pixels, 0
    for count in STAGES[name.removesuffix("_bn")]:
        for _ in range(count):
            x = F.conv2d(x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1)
            index += 1
            if name.endswith("_bn"):
                mean, var, weight, bias = (state[f"features.{index}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
                x = F.batch_norm(x, mean, var, weight, bias)
                index += 1
            x = x.relu()
            index += 1
        x = F.max_pool2d(x, 2)
        index += 1
    return x


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", NAMES)
def test_torchvision_files(tmp_path: Path, name: str, suffix: str) -> None:
    state = random_state(build_vgg_top(name, outputs=10, width=WIDTH))
    path = tmp_path / f"w{suffix}"
    (torch.save if suffix == ".pth" else safetensors.torch.save_file)(state, path)
    module = build_vgg(name, outputs=2, head=["flatten", "dense 6 relu"], size=32, width=WIDTH)
    old_head = module.head[1].weight.clone()
    assert load_vgg(module, path, name) == "torchvision"
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.allclose(module.eval().features(pixels), by_hand(name, state, pixels), atol=1e-5)
    assert torch.equal(module.head[1].weight, old_head)
    assert module(pixel_values=pixels).shape == (2, 2)


def timm_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """torchvision's numbers as timm writes them: the classifier as a 7×7 and a 1×1 convolution."""
    renamed = {"classifier.0.": "pre_logits.fc1.", "classifier.3.": "pre_logits.fc2.", "classifier.6.": "head.fc."}
    out = {}
    for name, value in state.items():
        prefix = next((prefix for prefix in renamed if name.startswith(prefix)), "")
        if name == "classifier.0.weight":
            value = value.reshape(-1, 8 * WIDTH, 7, 7)
        elif name == "classifier.3.weight":
            value = value[:, :, None, None]
        out[renamed.get(prefix, "") + name[len(prefix) :]] = value.contiguous()
    return out


def test_timm_files_with_their_top(tmp_path: Path) -> None:
    module = build_vgg_top("vgg11", outputs=10, width=WIDTH).eval()
    state = random_state(module)
    files = timm_state(state)
    safetensors.torch.save_file(files, tmp_path / "timm.safetensors")
    assert load_vgg(module, tmp_path / "timm.safetensors", "vgg11") == "torchvision"
    pixels = torch.randn(2, 3, 224, 224)
    x = by_hand("vgg11", state, pixels)  # rows, 32, 7, 7
    x = F.conv2d(x, files["pre_logits.fc1.weight"], files["pre_logits.fc1.bias"]).relu()
    x = F.conv2d(x, files["pre_logits.fc2.weight"], files["pre_logits.fc2.bias"]).relu()
    x = x.mean((2, 3)) @ files["head.fc.weight"].T + files["head.fc.bias"]
    assert torch.allclose(module(pixel_values=pixels), x, atol=1e-4)
    body = build_vgg("vgg11", outputs=2, width=WIDTH)
    load_vgg(body, tmp_path / "timm.safetensors", "vgg11")
    assert torch.equal(body.features[0].weight, state["features.0.weight"])


def test_names_are_torchvisions() -> None:
    with torch.device("meta"):
        top, body = build_vgg_top("vgg16"), build_vgg("vgg16", outputs=2, head=["flatten"])
    assert blocks(body) == [f"features.{index}" for index in TORCHVISION_VGG16]
    shapes = {name: tuple(value.shape) for name, value in top.state_dict().items()}
    assert shapes["classifier.0.weight"] == (4096, 25088)
    assert shapes["classifier.3.weight"] == (4096, 4096)
    assert shapes["classifier.6.weight"] == (1000, 4096)
    assert sum(value.numel() for value in top.parameters()) == 138_357_544  # torchvision's count
    assert body.head[1].in_features == 25088
    assert (head(body), head(top)) == (["head"], ["classifier"])


def test_batch_norm_belongs_to_the_convolution_before_it() -> None:
    module = build_vgg("vgg11_bn", outputs=2, width=WIDTH, size=32)
    assert blocks(module) == [f"features.{index}" for index in (0, 4, 8, 11, 15, 18, 22, 25)]
    assert all(isinstance(module.get_submodule(name), nn.Conv2d) for name in blocks(module))


def test_outputs_of_layers_stay_what_they_were() -> None:
    """No layer writes into its input: what a hook stores is what the layer gave."""
    module, kept = build_vgg("vgg11_bn", outputs=2, width=WIDTH, size=32).eval(), []
    for layer in module.features:
        layer.register_forward_hook(lambda _, __, output: kept.append((output, output.clone())))
    module(torch.randn(1, 3, 32, 32))
    assert len(kept) == len(module.features)
    assert all(torch.equal(output, copy) for output, copy in kept)


def test_another_architecture_is_named(tmp_path: Path) -> None:
    torch.save(random_state(build_vgg_top("vgg19", width=WIDTH)), tmp_path / "w.pth")
    module = build_vgg("vgg16", outputs=2, width=WIDTH, size=32)
    with pytest.raises(
        ModelError, match=r"w.pth: for another architecture: 'features.\d+.weight' .*looks like vgg19: try model.name=vgg19"
    ):
        load_vgg(module, tmp_path / "w.pth", "vgg16")
    with pytest.raises(ModelError, match=r"'features.0.weight' has shape \(4, 3, 3, 3\) in the file, \(4, 1, 3, 3\) in the model"):
        load_vgg(build_vgg("vgg19", outputs=2, width=WIDTH, size=32, channels=1), tmp_path / "w.pth", "vgg19")


def test_refusals() -> None:
    with pytest.raises(ModelError, match=r"model.name is 'vgg15', expected one of vgg11, vgg13, vgg16"):
        build_vgg("vgg15", outputs=2)
    with pytest.raises(ModelError, match=r"vgg16: images of 28 pixels are too small"):
        build_vgg("vgg16", outputs=2, size=28)


def test_a_signal_reaches_the_end_from_zero() -> None:
    """With PyTorch's default start, vgg19's features hardly depend on the image, and nothing is learned."""
    torch.manual_seed(0)
    pixels, features = torch.randn(8, 3, 32, 32), build_vgg("vgg19", outputs=2, size=32, width=16).features
    ours = features(pixels).std(0).mean()
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    assert ours > 10 * features(pixels).std(0).mean()


def test_preprocess_of_each_family() -> None:
    keras, torchvision, zero = preprocess("keras"), preprocess("torchvision", 160), preprocess("zero", 32, 1)
    assert (keras.channels, keras.scale, keras.mean, keras.crop) == ("bgr", 1.0, (103.939, 116.779, 123.68), 1.0)
    assert (keras.std, keras.interpolation) == ((1.0, 1.0, 1.0), "nearest")
    assert (torchvision.size, torchvision.mean, torchvision.std) == (160, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (torchvision.crop, torchvision.interpolation, torchvision.channels) == (0.875, "bilinear", "rgb")
    assert (zero.mean, zero.channels) == ((0.5,), "grey")
