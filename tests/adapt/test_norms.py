from __future__ import annotations

import pytest
from torch import nn

from frostline.adapt.apply import adapt
from frostline.adapt.norms import is_norm
from frostline.errors import ModelError
from tests.adapt import tiny


def test_norms_and_the_head_learn(make_model):
    model = adapt(make_model(), "norms")
    for name, parameter in model.module.named_parameters():
        owner = model.module.get_submodule(name.rpartition(".")[0])
        assert parameter.requires_grad == (model.in_head(name) or isinstance(owner, nn.LayerNorm | nn.BatchNorm2d)), name


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_norms_of_architectures(kind):
    model = adapt(tiny.model(kind), "norms")
    learning = [name for name, parameter in model.module.named_parameters() if parameter.requires_grad and not model.in_head(name)]
    assert learning and all("norm" in name.lower() or ".ln_" in name for name in learning)
    assert is_norm(nn.RMSNorm(3)) and not is_norm(nn.Linear(3, 3))


def test_a_model_without_norms_is_refused(make_text_model):
    model = make_text_model()
    model.module.final_norm = nn.Identity()
    for layer in model.module.layers:
        layer.norm = nn.Identity()
    with pytest.raises(ModelError, match="got 'norms', but the body of the model 'textnet' has no norms"):
        adapt(model, "norms")
