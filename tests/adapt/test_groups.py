from __future__ import annotations

import pytest
from torch import nn

from frostline.adapt.apply import adapt
from frostline.adapt.freeze import freeze
from frostline.adapt.groups import default_lr, parameter_groups
from frostline.errors import ModelError
from frostline.recipe import AdaptRecipe, TrainRecipe


@pytest.mark.parametrize("decay", [1.0, 0.5])
@pytest.mark.parametrize("method", ["head", "last 2", "full", "lora", "gradual"])
def test_each_learning_parameter_stands_in_exactly_one_group(make_model, method, decay):
    model = adapt(make_model(), method)
    groups = parameter_groups(model, AdaptRecipe(lr_decay=decay), 1e-3, 0.1)
    placed = [id(p) for group in groups for p in group["params"]]
    learning = {id(p) for p in model.module.parameters() if p.requires_grad}
    assert len(placed) == len(set(placed)) and set(placed) == learning
    for group in groups:
        assert [id(model.module.get_parameter(name)) for name in group["names"]] == [id(p) for p in group["params"]]
    assert len({group["name"] for group in groups}) == len(groups)


def test_the_order_is_always_the_same(make_model):
    def names(model):
        return [(g["name"], g["names"]) for g in parameter_groups(model, AdaptRecipe(lr_decay=0.5), 1e-3, 0.1)]

    assert names(make_model()) == names(make_model())


def test_rates_by_depth(make_text_model):
    groups = parameter_groups(make_text_model(), AdaptRecipe(method="full", lr_decay=0.5), 0.8, 0.0)
    rates = {name: group["lr"] for group in groups for name in group["names"]}
    for part, rate in {"classifier": 0.8, "layers.2": 0.4, "layers.1": 0.2, "layers.0": 0.1, "embedding": 0.05, "final_norm": 0.4}.items():
        assert all(lr == pytest.approx(rate) for name, lr in rates.items() if name.startswith(part)), part
    assert [g["lr"] for g in groups] == sorted((g["lr"] for g in groups), reverse=True)
    assert groups[0]["name"] == "head: other" and groups[-1]["name"] == "before the blocks: other"


def test_no_decay_on_biases_and_norms(make_model):
    model = make_model()
    groups = parameter_groups(model, AdaptRecipe(), 1e-3, 0.1)
    spared = {name for group in groups if group["weight_decay"] == 0 for name in group["names"]}
    assert spared == {name for name, p in model.module.named_parameters() if p.dim() == 1}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}


def test_a_norm_over_several_dimensions_is_spared_too(make_image_model):
    model = make_image_model()
    model.module.norm = nn.LayerNorm((4, 6, 6))
    kinds = {name: g["kind"] for g in parameter_groups(model, AdaptRecipe(), 1e-3, 0.1) for name in g["names"]}
    assert kinds["norm.weight"] == kinds["norm.bias"] == "vector"


def test_kinds(make_text_model):
    kinds = {name: g["kind"] for g in parameter_groups(make_text_model(), AdaptRecipe(), 1e-3, 0.1) for name in g["names"]}
    assert {name for name, kind in kinds.items() if kind == "hidden"} == {
        f"layers.{n}.{part}.weight" for n in range(3) for part in ("up", "down")
    }
    assert {name for name, kind in kinds.items() if kind == "other"} == {"embedding.weight", "positions.weight", "classifier.weight"}


def test_what_stands_between_blocks_goes_with_the_block_before_it(make_text_model):
    model = make_text_model()
    module = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(5)))
    model.module, model.blocks, model.head = module, ["1", "3"], ["4"]
    rates = {name: g["lr"] for g in parameter_groups(model, AdaptRecipe(lr_decay=0.1), 1.0, 0.0) for name in g["names"]}
    assert rates == {f"{n}.weight": pytest.approx(rate) for n, rate in enumerate((1e-3, 1e-2, 1e-2, 1e-1, 1.0))}


def test_nothing_learns(make_text_model):
    model = make_text_model()
    freeze(model.module, lambda name: False)
    with pytest.raises(ModelError, match="got 'head', with which nothing in the model 'textnet' learns"):
        parameter_groups(model, AdaptRecipe(method="head"), 1e-3, 0.0)


def test_lora_plus_lets_b_learn_faster(make_text_model):
    model = adapt(make_text_model(), "lora", lora_plus=16.0)
    groups = parameter_groups(model, model.recipe.adapt, 1e-3, 0.1)
    rates = {name: group["lr"] for group in groups for name in group["names"]}
    assert {rate for name, rate in rates.items() if name.endswith("lora_B")} == {16e-3}
    assert {rate for name, rate in rates.items() if not name.endswith("lora_B")} == {1e-3}
    assert len({group["name"] for group in groups}) == len(groups)
    assert not any(name.endswith("B") for g in parameter_groups(model, AdaptRecipe(), 1e-3, 0.1) for name in [g["name"]])


def test_scales_do_not_decay(make_text_model):
    for method, options, leaf in (("ia3", {"targets": ["up"]}, "ia3_l"), ("lora", {"dora": True}, "lora_magnitude_vector")):
        model = adapt(make_text_model(), method, **options)
        decays = {name: g["weight_decay"] for g in parameter_groups(model, model.recipe.adapt, 1e-3, 0.1) for name in g["names"]}
        assert {decay for name, decay in decays.items() if name.endswith(leaf)} == {0.0}


def test_usual_rates_of_small_methods():
    for method, rate in (("ia3", 1e-3), ("prompt", 3e-2), ("prefix", 1e-2), ("full", 2e-5)):
        assert default_lr(TrainRecipe(), method, pretrained=True) == rate
