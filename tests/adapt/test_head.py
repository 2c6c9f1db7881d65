from __future__ import annotations

import pytest

from frostline.adapt.apply import adapt
from frostline.errors import ModelError


def test_only_the_head_learns(make_model):
    model = adapt(make_model(), "head")
    assert [name for name, p in model.module.named_parameters() if p.requires_grad] == [
        f"{model.head[0]}{end}" for end in ENDS[model.card.name]
    ]


ENDS = {"convnet": (".2.weight", ".2.bias"), "textnet": (".weight", ".bias")}


def test_dropout_is_on_in_the_head_and_off_in_the_body(make_image_model):
    module = adapt(make_image_model(), "head").module
    module.train()
    assert module.head[1].training and not any(block[3].training for block in module.blocks)


def test_a_model_without_a_head_is_refused(make_model):
    model = make_model()
    model.head = []
    with pytest.raises(ModelError, match=r"got 'head', but the model '(convnet|textnet)' has no part .* Use: adapt=full"):
        adapt(model, "head")
