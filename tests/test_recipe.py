"""The recipe: YAML and back again, and a text under every field."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline.errors import RecipeError
from frostline.recipe import AdaptRecipe, AugmentRecipe, DataRecipe, ModelRecipe, PlanRecipe, Recipe, TrainRecipe, describe
from frostline.recipe_reader import all_keys, resolve

SECTIONS = (AugmentRecipe, DataRecipe, ModelRecipe, AdaptRecipe, PlanRecipe, TrainRecipe)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Whatever a field of this type may hold. An empty text means nothing given, so it is no path and no name."""
    if dataclasses.is_dataclass(hint):
        return recipes(typing.cast(type, hint))
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return st.one_of(*(values(option) for option in typing.get_args(hint)))
    if typing.get_origin(hint) is Literal:
        return st.sampled_from(typing.get_args(hint))
    if typing.get_origin(hint) is list:
        return st.lists(texts(), max_size=3)
    if typing.get_origin(hint) is dict:
        return st.dictionaries(texts(), values(typing.get_args(hint)[1]), max_size=3)
    plain = {
        types.NoneType: st.none(),
        bool: st.booleans(),
        int: st.integers(),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: texts(),
    }
    return plain[hint]


def texts() -> st.SearchStrategy[str]:
    return st.sampled_from(
        ["null", "none", "~", "off", "no", "1e3", "a: b", "# x", "[a]", "!!x", "数据/猫 狗", "-", "\t\n", "'"]
    ) | st.text(min_size=1)


def recipes(cls: type) -> st.SearchStrategy[Any]:
    return st.builds(cls, **{name: values(hint) for name, hint in typing.get_type_hints(cls).items()})


@settings(max_examples=60, deadline=None)
@given(recipe=recipes(Recipe))
def test_yaml_and_back(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("配方") / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    again, sources = resolve(path)
    assert again == recipe
    assert set(sources) == set(all_keys()), "every field is written, and its line is told"
    assert Recipe.from_yaml(path) == recipe


def test_a_path_that_is_no_utf_8(tmp_path: Path) -> None:
    recipe = Recipe(data=DataRecipe(path="caf\udce9"))  # how Python holds the name b"caf\xe9"
    (tmp_path / "a.yaml").write_bytes(recipe.to_yaml().encode())
    assert Recipe.from_yaml(tmp_path / "a.yaml") == recipe


def test_yaml_is_readable_by_people() -> None:
    text = Recipe(data=DataRecipe(path="数据/猫狗")).to_yaml()
    assert "path: 数据/猫狗" in text
    assert list(dataclasses.asdict(Recipe())) == [line.split(":")[0] for line in text.splitlines() if not line.startswith(" ")]


@pytest.mark.parametrize("cls", SECTIONS, ids=lambda cls: cls.__name__)
def test_every_field_has_a_text(cls: type) -> None:
    silent = [field.name for field in dataclasses.fields(cls) if not describe(cls).get(field.name, "").strip()]
    assert not silent, f"{cls.__name__} has fields without a docstring: {', '.join(silent)}"
    assert describe(cls).keys() <= {field.name for field in dataclasses.fields(cls)}


def test_sections_are_all_there_are() -> None:
    found = {hint for cls in (Recipe, *SECTIONS) for hint in typing.get_type_hints(cls).values() if dataclasses.is_dataclass(hint)}
    assert found == set(SECTIONS)


def test_from_yaml_takes_overrides(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("train: {lr: 1, epochs: 2}\n")
    recipe = Recipe.from_yaml(path, ["train.lr=3e-4"])
    assert (recipe.train.lr, recipe.train.epochs) == (3e-4, 2)


def test_with_values_leaves_the_rest() -> None:
    recipe = Recipe(seed=7).with_values({"adapt": "last 3", "model.head": ("flatten", "dense 8 relu"), "plan.cache": False})
    assert (recipe.seed, recipe.adapt.method, recipe.adapt.last, recipe.plan.cache) == (7, "last", 3, "off")
    assert recipe.model.head == ["flatten", "dense 8 relu"]
    with pytest.raises(RecipeError, match=r"train\.epochs got 1\.5, expected a whole number"):
        Recipe().with_values({"train.epochs": 1.5})


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "random"),
    [
        ({}, False),
        ({"rescale": 1 / 255, "fill": "reflect"}, False),
        ({"zoom": 0.1}, True),
        ({"vertical_flip": True}, True),
        ({"mixup": 0.2}, True),
    ],
)
def test_random_augmentation(options: dict[str, Any], random: bool) -> None:
    assert AugmentRecipe(**options).random is random
