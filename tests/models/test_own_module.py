from __future__ import annotations

import pytest
import torch
from torch import nn

from frostline.errors import ModelError
from frostline.models.load import load
from frostline.models.own_module import CallByPosition, adopt
from tests.models import tiny
from tests.models.language import data_of, schema
from tests.models.tiny import text_data


def test_a_text_module_of_ones_own() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(50, 2)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return (self.embed(ids) * mask[..., None]).sum(1)

    preprocess = load("gru", data=text_data(), width=16, tokenizer="word").card.preprocess
    model = load(Net(), task=tiny.TEXTS, preprocess=preprocess)
    assert model.module(**tiny.text_inputs()).shape == (2, 2)


class Named(nn.Module):
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return pixel_values


class Three(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return a + b + c


class WithDefault(nn.Module):
    def forward(self, x: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
        return x * scale


def test_a_module_that_knows_the_names_is_taken_as_it_is() -> None:
    module = Named()
    assert adopt(module, tiny.IMAGES) is module
    wrapped = adopt(nn.Identity(), tiny.IMAGES)
    assert isinstance(wrapped, CallByPosition)
    assert adopt(wrapped, tiny.IMAGES) is wrapped


def test_a_default_of_the_modules_own_stays() -> None:
    inputs = tiny.text_inputs()
    assert torch.equal(adopt(WithDefault(), tiny.TEXTS)(**inputs), 2 * inputs["input_ids"])


def test_refusals() -> None:
    with pytest.raises(ModelError, match=r"module 'Three' takes \['a', 'b', 'c'\], expected forward\(input_ids, attention_mask\)"):
        adopt(Three(), tiny.TEXTS)
    with pytest.raises(ModelError, match=r"module got 'str', expected an instance of torch.nn.Module"):
        adopt("net", tiny.IMAGES)


def test_a_language_model_of_ones_own() -> None:
    class Writer(nn.Module):
        def __init__(self, vocabulary: int) -> None:
            super().__init__()
            self.embed = nn.Embedding(vocabulary, 4)
            self.lm_head = nn.Linear(4, vocabulary)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.lm_head(self.embed(input_ids))

    preprocess = load("gpt", data=data_of("chat"), width=16, depth=1, vocabulary=300).card.preprocess
    size = len(preprocess.tokenizer)  # type: ignore[union-attr]
    model = load(Writer(size), task=schema("chat"), preprocess=preprocess)
    assert (model.head, model.body, model.card.name) == ([], "", "custom")
    with pytest.raises(ModelError, match=rf"gives outputs of the shape \(1, 4, 9\), expected \(1, 4, {size}\)"):
        load(Writer(9), task=schema("chat"), preprocess=preprocess)
    with pytest.raises(ModelError, match=r"got preprocess None, expected a TextPreprocess with its tokenizer"):
        load(Writer(9), task=schema("chat"))
