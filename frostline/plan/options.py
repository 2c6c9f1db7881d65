"""The options of a Python call, ``fl.plan(model, data, epochs=3, …)``, as the recipe that a command would have read from a file."""

from __future__ import annotations

import dataclasses
from typing import Any

from frostline.data.dataset import Dataset
from frostline.errors import RecipeError
from frostline.models.model import Model
from frostline.recipe import AdaptRecipe, AugmentRecipe, DataRecipe, PlanRecipe, Recipe, TrainRecipe


def plan_options(model: Model, data: Dataset, options: dict[str, Any]) -> Recipe:
    """The recipe of a Python call: what the data and the model were made with, and the options by their short names.

    ``epochs``, ``lr`` … are those of ``train``; ``cache``, ``quality`` those of ``plan``; ``adapt`` is a method or a dict.
    Raises RecipeError for an unknown option or a value of the wrong type.
    """
    if model.card.schema.task != data.schema.task:
        raise RecipeError(
            f"the model was loaded for {model.card.schema.task!r} and the data is for {data.schema.task!r}. Use: fl.load(…, data=data)"
        )
    made, loaded = DataRecipe(**_data_recipe(data)), model.recipe.data
    augment = dataclasses.replace(made.augment, rescale=loaded.augment.rescale)
    both = dataclasses.replace(made, size=loaded.size, max_length=loaded.max_length, augment=augment)
    _refuse_what_was_settled(made, model, options)
    recipe = dataclasses.replace(model.recipe, data=both)
    method = options.get("adapt")
    if isinstance(method, str) and method.split()[:1] != [recipe.adapt.method]:
        recipe = dataclasses.replace(recipe, adapt=AdaptRecipe())  # the numbers of the method before do not belong to this one
    return recipe.with_values(_dotted(options))


def _refuse_what_was_settled(made: DataRecipe, model: Model, options: dict[str, Any]) -> None:
    """What the model was loaded with cannot be changed by a plan; a recipe that said otherwise would not give the same run again."""
    loaded = model.recipe
    if options.get("seed", loaded.seed) != loaded.seed:
        raise RecipeError(
            f"seed got {options['seed']!r}, but the model was loaded with {loaded.seed!r}. Use: fl.load(…, seed={options['seed']!r})"
        )
    if late := next((key for key in options if key.startswith("model")), None):
        raise RecipeError(f"{late} got {options[late]!r}, but the model is loaded already. Give it to fl.load")
    wanted = {"size": made.size, "max_length": made.max_length, "rescale": made.augment.rescale}
    has = {"size": loaded.data.size, "max_length": loaded.data.max_length, "rescale": loaded.data.augment.rescale}
    preprocess = model.card.preprocess
    for name, value in wanted.items():
        if value is not None and value not in (has[name], getattr(preprocess, "scale" if name == "rescale" else name, None)):
            raise RecipeError(
                f"{name} got {value!r} in fl.prepare, but the model was loaded without it. "
                f"Use: fl.load(…, data=data), or fl.load(…, {name}={value!r})"
            )


def _data_recipe(data: Dataset) -> dict[str, Any]:
    values = dict(data.recipe)
    if isinstance(values.get("augment"), dict):
        values["augment"] = AugmentRecipe(**values["augment"])
    return values


def _dotted(options: dict[str, Any]) -> dict[str, Any]:
    """Python's short option names as dotted keys: ``lr`` is ``train.lr``, ``cache`` is ``plan.cache``."""
    names = {f.name: f"train.{f.name}" for f in dataclasses.fields(TrainRecipe)}
    names |= {f.name: f"plan.{f.name}" for f in dataclasses.fields(PlanRecipe)}
    return {names.get(key, key): value for key, value in options.items()}
