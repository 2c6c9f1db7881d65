from __future__ import annotations

import pytest
import torch

from frostline.adapt.apply import adapt
from frostline.adapt.vera import inject
from frostline.errors import ModelError
from tests.adapt import tiny


def test_it_is_what_the_paper_writes(make_text_model):
    model = tiny.stir(adapt(make_text_model(), "vera", rank=5))
    layer, pair = model.module.layers[0].up, model.module.vera_projections
    assert pair.vera_A.shape == (5, 16) and pair.vera_B.shape == (16, 5)  # as large as the largest layer needs
    x = torch.randn(3, 8)
    hidden = layer.vera_lambda_d * (x @ pair.vera_A[:, :8].T)
    torch.testing.assert_close(layer(x), layer.base(x) + layer.vera_lambda_b * (hidden @ pair.vera_B.T))


def test_the_pair_is_there_once_and_frozen(make_text_model):
    model = adapt(make_text_model(), "vera")
    assert sum("vera_A" in name for name in model.module.state_dict()) == 1
    learning = [name for name, parameter in model.module.named_parameters() if parameter.requires_grad and not model.in_head(name)]
    assert len(learning) == 12 and all("vera_lambda" in name for name in learning)
    assert model.module.layers[0].up.vera_lambda_d.unique().tolist() == [pytest.approx(0.1)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"rank": 0}, "got 0, expected a whole number"), ({"seed": "x"}, "with the seed 'x'"), ({"targets": []}, "on 0 targets")],
)
def test_settings_of_files(make_text_model, changes, message):
    settings = {"method": "vera", "rank": 2, "dropout": 0.0, "targets": ["layers.0.up"], "seed": 0}
    with pytest.raises(ModelError, match=message):
        inject(make_text_model().module, {**settings, **changes})


def test_another_adapter_is_in_place(make_text_model):
    with pytest.raises(ModelError, match="got 'vera' with method 'vera', but the model 'textnet' already holds 'lora' with method 'lora'"):
        adapt(adapt(make_text_model(), "lora"), "vera")
    with pytest.raises(ModelError, match="got 'vera' with rank 8, but the model 'textnet' already holds 'vera' with rank 4"):
        adapt(adapt(make_text_model(), "vera", rank=4), "vera")
