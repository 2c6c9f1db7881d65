from __future__ import annotations

import copy

import pytest

from frostline.adapt.apply import _METHODS, adapt
from frostline.adapt.ia3 import inject
from frostline.adapt.rebuild import _METHODS as REBUILT
from frostline.adapt.settings import STRUCTURAL, in_place, install, note, refuse_another
from frostline.errors import ModelError
from frostline.recipe import AdaptRecipe
from tests.adapt import tiny


def test_every_method_that_changes_the_network_can_be_built_again():
    assert set(STRUCTURAL) == set(REBUILT) <= set(_METHODS)


def test_another_adapter_is_refused(make_text_model):
    model = make_text_model()
    assert in_place(model) is None
    refuse_another(model, {"method": "ia3"})
    note(model, {"method": "ia3", "targets": ["a"], "seed": 1})
    refuse_another(model, {"method": "ia3", "targets": ["a"], "seed": 2})
    with pytest.raises(ModelError, match=r"got 'ia3' with targets \['b'\], but the model 'textnet' already holds 'ia3' with targets"):
        refuse_another(model, {"method": "ia3", "targets": ["b"]})


def test_a_base_in_few_bits_is_no_adapter(make_text_model):
    model = make_text_model()
    note(model, {"method": "head", "base": "int8", "quantized": []})
    assert in_place(model) is None


@pytest.mark.parametrize("method", ["lora", "vera", "ia3", "adapter", "prompt", "prefix"])
def test_no_adapter_goes_on_top_of_another(method):
    for first in ("prefix", "lora", "ia3"):
        model = adapt(tiny.model("llama"), first)
        settings = copy.deepcopy(model.card.arguments["adapt"])
        if method != first:
            with pytest.raises(ModelError, match="Load the model anew"):
                adapt(model, method)
        assert model.card.arguments["adapt"] == settings


def test_installed_once_it_learns_with_the_head():
    model = tiny.model("bert")
    settings = adapt(tiny.model("bert"), "ia3").card.arguments["adapt"]
    for _ in range(2):
        install(model, AdaptRecipe(method="ia3"), inject, settings)
    learning = {name for name, parameter in model.module.named_parameters() if parameter.requires_grad}
    assert {name.rpartition(".")[2] for name in learning} == {"ia3_l", "weight", "bias"} and in_place(model) == settings
    assert sum(name.endswith("ia3_l") for name in learning) == len(settings["targets"])
