from __future__ import annotations

import pytest

from frostline.adapt.apply import adapt
from frostline.adapt.targets import (
    is_convolution,
    is_linear,
    known_targets,
    match,
    matches,
    near,
    read_dropout,
    read_targets,
    read_whole,
    saved_modules,
)
from frostline.errors import ModelError
from frostline.recipe import AdaptRecipe
from tests.adapt import tiny


def test_names_ends_of_names_and_globs():
    assert matches("a.b.q", "q") and matches("a.b.q", "b.q") and matches("a.b.q", "a.*.q") and matches("q", "q")
    assert not matches("a.b.eq", "q") and not matches("a.q.b", "q")


def test_what_is_wrapped_counts_as_what_it_wraps(make_text_model):
    plain = known_targets(make_text_model(), AdaptRecipe(), is_linear)
    wrapped = known_targets(adapt(make_text_model(), "lora"), AdaptRecipe(), is_linear)
    assert list(wrapped) == list(plain) == [f"layers.{n}.{part}" for n in range(3) for part in ("up", "down")]


def test_the_output_layer_has_to_be_named():
    model = tiny.model("llama")
    assert "lm_head" not in match(model, AdaptRecipe(), is_linear, "linear layer")
    assert "lm_head" not in match(model, AdaptRecipe(targets=["all-linear"]), is_linear, "linear layer")
    assert match(model, AdaptRecipe(targets=["lm_head"]), is_linear, "linear layer") == ["lm_head"]


def test_modules_that_learn_whole_are_no_targets(make_text_model):
    recipe = AdaptRecipe(modules_to_save=["layers.1"])
    assert all(not name.startswith("layers.1.") for name in match(make_text_model(), recipe, is_linear, "linear layer"))
    assert saved_modules(make_text_model(), recipe) == ["classifier", "layers.1"]


def test_kinds(make_image_model):
    model = make_image_model()
    assert match(model, AdaptRecipe(), is_convolution, "convolution") == ["stem.0", "blocks.0.0", "blocks.1.0", "blocks.2.0"]
    with pytest.raises(ModelError, match="got 'auto', but the model 'convnet' has no linear layer outside its head"):
        match(model, AdaptRecipe(), is_linear, "linear layer")


def test_advice():
    assert near("q_prj", ["a.q_proj", "b.norm"]) == "Near it: a.q_proj, q_proj"
    assert near("查询", ["a.q_proj", "b.k"]) == "Targets of this model end in: q_proj, k"


@pytest.mark.parametrize("value", [0, -1, True, "8", 4097, 2.0, None])
def test_numbers_of_files(value):
    with pytest.raises(ModelError, match=r"adapt\.rank: got .*, expected a whole number from 1 to 4096"):
        read_whole({"rank": value}, "rank")
    with pytest.raises(ModelError, match=r"adapt\.dropout: got"):
        read_dropout({"dropout": 1 if value == 0 else value})


@pytest.mark.parametrize("names", ["up", [1], ["layers.0"], ["../x"]])
def test_targets_of_files(make_text_model, names):
    with pytest.raises(ModelError, match=r"adapt\.targets: "):
        read_targets(make_text_model().module, {"targets": names}, is_linear, "linear layer")
