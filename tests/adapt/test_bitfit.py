from __future__ import annotations

import pytest

from frostline.adapt.apply import adapt
from frostline.errors import ModelError
from tests.adapt import tiny


def test_biases_and_the_head_learn(make_model):
    model = adapt(make_model(), "bitfit")
    for name, parameter in model.module.named_parameters():
        assert parameter.requires_grad == (model.in_head(name) or name.endswith(".bias")), name


def test_biases_under_other_names(make_text_model):
    from torch import nn

    model = make_text_model()
    model.module.layers[0].extra = nn.ModuleList([nn.GRU(8, 4), nn.MultiheadAttention(8, 2)])
    adapt(model, "bitfit")
    learning = {name.rpartition(".")[2] for name, parameter in model.module.layers[0].extra.named_parameters() if parameter.requires_grad}
    assert learning == {"bias_ih_l0", "bias_hh_l0", "in_proj_bias", "bias"}


def test_a_model_without_biases_is_refused():
    with pytest.raises(ModelError, match="got 'bitfit', but the body of the model 'llama' has no biases"):
        adapt(tiny.model("llama"), "bitfit")
