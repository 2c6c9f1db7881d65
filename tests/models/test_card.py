from __future__ import annotations

import json
from pathlib import Path

import pytest

from frostline.data.preprocess import ImagePreprocess
from frostline.errors import ModelError
from frostline.models.card import card_from_dict, card_to_dict, load_tokenizer, read_json
from frostline.models.load import load
from tests.models import tiny


def test_there_and_back(tmp_path: Path) -> None:
    model = load("cnn", task=tiny.IMAGES, width=16)
    saved = card_from_dict(json.loads(json.dumps(card_to_dict(model, channels_last=True))), tmp_path)
    assert (saved.card, saved.blocks, saved.head, saved.channels_last) == (model.card, model.blocks, model.head, True)
    assert isinstance(saved.card.preprocess, ImagePreprocess)


@pytest.mark.parametrize("key", ["name", "arguments", "schema", "preprocess", "pretrained", "source", "blocks", "head", "channels_last"])
def test_every_key_is_needed_and_typed(key: str, tmp_path: Path) -> None:
    values = card_to_dict(load("mlp", task=tiny.IMAGES, width=16), channels_last=False)
    for value in (None, 7, ["x"] if key not in ("blocks", "head") else [3]):
        with pytest.raises(ModelError, match=rf"config.json: frostline.{key} got "):
            card_from_dict({**values, key: value}, tmp_path)
    del values[key]
    with pytest.raises(ModelError, match=rf"frostline.{key} got 'None', expected"):
        card_from_dict(values, tmp_path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config.json' cannot be read as JSON"):
        read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match=r"config.json' cannot be read as JSON"):
        read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"model_type": "frostline"}')
    with pytest.raises(ModelError, match=r"tokenizer of .* cannot be loaded: .* Copy tokenizer.json"):
        load_tokenizer(tmp_path)
