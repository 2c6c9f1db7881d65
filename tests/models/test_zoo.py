from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from frostline.data.dataset import Dataset
from frostline.data.preprocess import ImagePreprocess
from frostline.data.report import DataReport
from frostline.errors import ModelError
from frostline.models.load import load
from tests.models import tiny
from tests.models.tiny import image_data, text_data


def test_the_vocabulary_comes_from_the_training_rows_alone() -> None:
    model = load("gru", data=text_data(max_length=9), tokenizer="word", width=16)
    assert set(model.card.preprocess.tokenizer.get_vocab()) == {"[PAD]", "[UNK]", "[CLS]", "好", "难", "看", "good", "bad"}
    assert model.card.arguments["vocabulary"] == 8
    assert model.card.preprocess.max_length == 9
    with pytest.raises(ModelError, match=r"model 'gru' got data None, .* fl.load\('gru', data=data\)"):
        load("gru", task=tiny.TEXTS)


def test_weights_of_a_file(tmp_path: Path) -> None:
    one = load("vgg11", task=tiny.IMAGES, size=32, seed=1)
    assert not one.card.pretrained
    features = {name: value for name, value in one.module.state_dict().items() if name.startswith("features.")}
    save_file(features, tmp_path / "vgg.safetensors")
    two = load("vgg11", task=tiny.IMAGES, size=32, seed=2, weights=tmp_path / "vgg.safetensors", head=["flatten", "dense 8 relu"])
    assert two.card.pretrained
    assert all(torch.equal(two.module.state_dict()[name], value) for name, value in features.items())
    assert two.card.preprocess.mean == (0.485, 0.456, 0.406)
    whole = load("mlp", task=tiny.IMAGES, size=32, width=16, seed=1)
    save_file(whole.module.state_dict(), tmp_path / "mlp.safetensors")
    again = load("mlp", task=tiny.IMAGES, size=32, width=16, seed=2, weights=str(tmp_path / "mlp.safetensors"))
    assert torch.equal(again.module.state_dict()["head.0.weight"], whole.module.state_dict()["head.0.weight"])


def test_size_and_channels_are_looked_up(tmp_path: Path) -> None:
    model = load("cnn", data=image_data(tmp_path, 40, "L"), width=16)
    assert (model.card.arguments["size"], model.card.arguments["channels"]) == (40, 1)
    assert model.card.preprocess.channels == "grey"
    assert model.module.eval()(**tiny.image_inputs(40, 1)).shape == (2, 3)
    colour = load("transformer", data=image_data(tmp_path, 46), width=16)
    assert (colour.card.preprocess.size, colour.card.preprocess.channels) == (40, "rgb")
    pixels = pa.table({"pixels": [b"0" * 784], "height": [28], "width": [28], "channels": [1], "label": [0]})
    grey = Dataset(schema=tiny.IMAGES, splits={"train": pixels}, report=DataReport(), recipe={"size": None})
    assert load("mlp", data=grey, width=16).card.preprocess == ImagePreprocess(size=28, mean=(0.5,), std=(0.5,), channels="grey")
