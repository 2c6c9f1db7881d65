from __future__ import annotations

import json
from pathlib import Path

import pytest

from frostline.data.preprocess import ImagePreprocess, with_prompt
from frostline.errors import ModelError
from frostline.models.card import card_from_dict, card_to_dict, load_tokenizer, read_json
from frostline.models.load import load
from tests.models import tiny
from tests.models.language import folder_of, schema


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


def test_cards_without_an_output_layer_are_read(tmp_path: Path) -> None:
    values = card_to_dict(load("mlp", task=tiny.IMAGES, width=16), channels_last=False)
    assert (values.pop("body"), values.pop("output")) == ("", "")
    saved = card_from_dict(values, tmp_path)
    assert (saved.body, saved.output) == ("", "")
    with pytest.raises(ModelError, match=r"frostline.output got '3', expected str"):
        card_from_dict({**values, "output": 3}, tmp_path)


def test_what_a_target_begins_with(tmp_path: Path) -> None:
    folder = folder_of("bart", tmp_path / "hf")
    model = load(folder, task=schema("translation"))
    values = json.loads(json.dumps(card_to_dict(model, channels_last=False)))
    assert card_from_dict(values, folder).card.preprocess.to_dict() == model.card.preprocess.to_dict()
    for start in (-1, "2", 10**9):
        with pytest.raises(ModelError, match=r"frostline.preprocess.start got"):
            card_from_dict({**values, "preprocess": {**values["preprocess"], "start": start}}, folder)


def test_what_is_asked_of_a_decoder(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path / "hf")
    model = load(folder, task=schema("translation"))
    values = json.loads(json.dumps(card_to_dict(model, channels_last=False)))
    assert "prompt" not in values["preprocess"], "cards of before are read as they were"
    assert card_from_dict(values, folder).card.preprocess.prompt is None  # type: ignore[union-attr]
    model.card.preprocess = with_prompt(model.card.preprocess, "译：{source}")
    values = json.loads(json.dumps(card_to_dict(model, channels_last=False)))
    assert card_from_dict(values, folder).card.preprocess.prompt == "译：{source}"  # type: ignore[union-attr]
    for prompt in ("译", 3, None):
        with pytest.raises(ModelError, match=r"frostline.preprocess.prompt got"):
            card_from_dict({**values, "preprocess": {**values["preprocess"], "prompt": prompt}}, folder)
