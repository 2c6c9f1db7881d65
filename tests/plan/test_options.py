"""The options of a Python call: what they become in the recipe, and which are refused."""

from __future__ import annotations

import pytest

import frostline as fl
from frostline.errors import RecipeError
from tests.train.small import cnn, first_rows, plan


@pytest.fixture
def data(digits):
    return first_rows(digits, 60)


def test_what_the_data_and_the_model_were_made_with_is_in_the_recipe(digit_arrays, tmp_path):
    data = first_rows(fl.prepare(digit_arrays, seed=0, val=0.2), 40)
    made = plan(fl.load("cnn", data=data, size=32, width=16, depth=1, seed=3), data, tmp_path, clip=1.0, cache="off")
    recipe = made.recipe
    assert (recipe.data.val, recipe.data.size, recipe.model.width, recipe.seed) == (0.2, 32, 16, 3)
    assert (recipe.train.clip, recipe.plan.cache, recipe.out) == (1.0, "off", str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epoch": 3}, "epochs"),
        ({"lr": "fast"}, "fast"),
        ({"optimizer": "adm"}, "adm"),
        ({"epochs": 0}, "train.epochs got 0"),
        ({"cache": "sometimes"}, "sometimes"),
    ],
)
def test_options_that_do_not_exist(data, tmp_path, options, message):
    with pytest.raises(RecipeError, match=message):
        plan(cnn(data), data, tmp_path, **options)


def test_what_the_model_was_loaded_with_cannot_be_changed_by_a_plan(data, tmp_path):
    with pytest.raises(RecipeError, match=r"seed got 1, but the model was loaded with 0.*fl\.load"):
        fl.plan(cnn(data), data, seed=1)
    with pytest.raises(RecipeError, match=r"model\.dropout got 0.5.*Give it to fl\.load"):
        fl.plan(cnn(data), data, **{"model.dropout": 0.5})
    data.recipe["size"] = 40
    with pytest.raises(RecipeError, match=r"size got 40 in fl\.prepare.*data=data"):
        fl.plan(fl.load("cnn", task=data.task, width=16), data)
    assert fl.plan(fl.load("cnn", data=data, width=16), data, out=str(tmp_path)).model.card.preprocess.size == 40


def test_a_model_for_another_task(digits, texts, tmp_path):
    with pytest.raises(RecipeError, match=r"loaded for 'text-classification' and the data is for 'image-classification'.*data=data"):
        plan(fl.load("gru", data=texts, width=8), digits, tmp_path)
