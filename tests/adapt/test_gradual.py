from __future__ import annotations

import pytest

from frostline.adapt.apply import adapt
from frostline.adapt.freeze import frozen_names
from frostline.adapt.gradual import thaw
from frostline.errors import ModelError
from frostline.recipe import AdaptRecipe


def thawed(model) -> int:
    return sum(all(p.requires_grad for p in model.module.get_submodule(block).parameters()) for block in model.blocks)


@pytest.mark.parametrize("every", [1, 2])
def test_one_block_thaws_at_a_time_and_then_the_rest(make_model, every):
    recipe = AdaptRecipe(method="gradual", every=every)
    model = adapt(make_model(), recipe)
    seen, changes = [], []
    for epoch in range(6 * every):
        changes.append(thaw(model, recipe, epoch))
        seen.append(thawed(model) + (frozen_names(model.module) == []))
    assert seen == [min(epoch // every, 4) for epoch in range(6 * every)]
    assert changes == [epoch % every == 0 and 0 < epoch <= 4 * every for epoch in range(6 * every)]


def test_what_learns_is_a_function_of_the_epoch(make_model):
    recipe = AdaptRecipe(method="gradual")
    walked, resumed = adapt(make_model(), recipe), adapt(make_model(), recipe)
    for epoch in range(3):
        thaw(walked, recipe, epoch)
    assert thaw(resumed, recipe, 2)
    assert frozen_names(walked.module) == frozen_names(resumed.module)
    assert [part.training for part in walked.module.modules()] == [part.training for part in resumed.module.modules()]


def test_a_thawed_block_trains_again(make_image_model):
    recipe = AdaptRecipe(method="gradual")
    model = adapt(make_image_model(), recipe)
    thaw(model, recipe, 1)
    model.module.train()
    assert model.module.blocks[2][1].training and model.module.blocks[2][3].training and not model.module.blocks[1][1].training


def test_refusals(make_text_model):
    with pytest.raises(ModelError, match=r"adapt\.every: got 0, expected a number of epochs from 1 on\. Use: adapt\.every=1"):
        adapt(make_text_model(), "gradual", every=0)
    model = make_text_model()
    model.head = []
    with pytest.raises(ModelError, match="got 'gradual', but no head is marked in the model 'textnet'"):
        adapt(model, "gradual")
    model = make_text_model()
    model.blocks = []
    with pytest.raises(ModelError, match="no blocks are known in the model 'textnet'"):
        adapt(model, "gradual")
