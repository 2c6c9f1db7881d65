"""The networks that are defined here, made ready for a data set: size and channels looked up, vocabulary made, weights read."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from frostline.data.dataset import Dataset, Schema
from frostline.data.images import decode_image
from frostline.data.preprocess import ImagePreprocess, TextPreprocess
from frostline.errors import DataError, ModelError
from frostline.models import cnn, efficientnet, vgg
from frostline.models import head as by_hand
from frostline.models.build import build
from frostline.models.from_zero import language_model, language_preprocess
from frostline.models.model import Card, Model
from frostline.models.net import Net
from frostline.models.tokenizer import train_tokenizer
from frostline.models.transformer import patch_of, patchable
from frostline.models.weights import load_into, read_weights
from frostline.recipe import ModelRecipe, Recipe

_ROWS_LOOKED_AT = 16
_LARGEST_FROM_ZERO = 128  # pixels: photographs are reduced to this where no size is asked for
_SIZE_WITHOUT_DATA = 64
_LONGEST_TEXT = 512


def preprocess_of(recipe: Recipe, schema: Schema, data: Dataset | None) -> ImagePreprocess | TextPreprocess:
    """What a network that is defined here takes. No weights are read for it; a vocabulary is made from the training rows alone."""
    _check_layers(recipe.model)
    if schema.task == "image-classification":
        return _image_preprocess(recipe, data)
    return _text_preprocess(recipe, data) if schema.task == "text-classification" else language_preprocess(recipe, schema, data)


def image_model(recipe: Recipe, schema: Schema, preprocess: ImagePreprocess) -> Model:
    """A VGG, EfficientNet-Lite0, CNN, MLP, small ViT or network by hand, with pretrained weights where they are given or known."""
    name, options = str(recipe.model.name), recipe.model
    arguments: dict[str, Any] = {"outputs": schema.outputs, "head": list(options.head), "pool": options.pool}
    arguments.update(size=preprocess.size, channels=1 if preprocess.channels == "grey" else 3)
    if name in ("cnn", "mlp", "transformer"):
        arguments.update(_net(options))
    if name == "layers":
        arguments["specs"] = list(options.layers)
    card = Card(name=name, arguments=arguments, schema=schema, preprocess=preprocess, source="from zero")
    module = build(card)
    if name == "efficientnet-lite0":
        efficientnet.load_efficientnet(module, Path(options.weights) if options.weights else None)
    elif options.weights and name in vgg.NAMES:
        vgg.load_vgg(module, options.weights, name)
    elif options.weights:
        load_into(module, read_weights(options.weights), source=options.weights)
    if _pretrained(options):
        card.pretrained, card.source = True, options.weights or efficientnet.default_weights().name
    if name == "efficientnet-lite0":
        return Model(module=module, card=card, blocks=efficientnet.blocks(module), head=efficientnet.head(module))
    if name == "transformer":
        return Model(module=module, card=card, blocks=_listed(module, "blocks"), head=_new_parts(module))
    return Model(module=module, card=card, blocks=by_hand.blocks(module), head=by_hand.head(module))


def text_model(recipe: Recipe, schema: Schema, preprocess: TextPreprocess) -> Model:
    """An LSTM, GRU, Transformer, CNN or MLP for the vocabulary of ``preprocess``; a language model for the tasks that are for one."""
    if schema.task != "text-classification":
        return language_model(recipe, schema, preprocess)
    name, options = str(recipe.model.name), recipe.model
    arguments: dict[str, Any] = {
        "outputs": schema.outputs,
        "head": list(options.head),
        "pool": options.pool,
        **_net(options),
        "vocabulary": len(preprocess.tokenizer),
    }
    if name == "transformer":
        arguments["max_length"] = preprocess.max_length
    card = Card(name=name, arguments=arguments, schema=schema, preprocess=preprocess, source="from zero")
    module = build(card)
    if options.weights:
        load_into(module, read_weights(options.weights), source=options.weights)
        card.pretrained, card.source = True, options.weights
    blocks = ["convolutions"] if name == "cnn" else _listed(module, "blocks")
    return Model(module=module, card=card, blocks=blocks, head=_new_parts(module))


def rescaled(preprocess: ImagePreprocess | TextPreprocess, rescale: float | None) -> ImagePreprocess | TextPreprocess:
    """``data.augment.rescale`` in place of the model's own normalisation, as Keras's ImageDataGenerator means it: RGB times a factor."""
    if rescale is None or isinstance(preprocess, TextPreprocess):
        return preprocess
    count = 1 if preprocess.channels == "grey" else 3
    channels = preprocess.channels if count == 1 else "rgb"
    return replace(preprocess, scale=rescale, mean=(0.0,) * count, std=(1.0,) * count, channels=channels)


def _net(options: ModelRecipe) -> dict[str, Any]:
    """Width, depth and dropout, as given or as these networks have them."""
    given = {name: getattr(options, name) for name in ("width", "depth", "dropout")}
    return {name: getattr(Net, name) if value is None else value for name, value in given.items()}


def _pretrained(options: ModelRecipe) -> bool:
    return options.name == "efficientnet-lite0" or options.weights is not None


def _image_preprocess(recipe: Recipe, data: Dataset | None) -> ImagePreprocess:
    name, weights = str(recipe.model.name), recipe.model.weights
    size, channels = _size_and_channels(recipe, data)
    if name == "efficientnet-lite0":
        return efficientnet.preprocess(size)
    if weights and name in vgg.NAMES:
        return vgg.preprocess(vgg.family_of(weights), size, channels)
    return cnn.preprocess(size, channels)


def _text_preprocess(recipe: Recipe, data: Dataset | None) -> TextPreprocess:
    name, options = recipe.model.name, recipe.model
    if data is None:
        raise ModelError(
            f"model {name!r} got data None, expected a data set: its vocabulary is made from the training rows. "
            f"Type: fl.load({name!r}, data=data)"
        )
    tokenizer = train_tokenizer(data.splits["train"]["text"].to_pylist(), options.tokenizer, options.vocabulary)
    return TextPreprocess(tokenizer=tokenizer, max_length=recipe.data.max_length or _LONGEST_TEXT)


def _check_layers(options: ModelRecipe) -> None:
    if (options.name == "layers") != bool(options.layers):
        raise ModelError(
            f"model.layers got {options.layers!r} with model.name {options.name!r}: expected both, as in "
            "model.name=layers model.layers='[conv 64 3 relu, pool 2, flatten, dense 256 relu]', or neither"
        )


def _size_and_channels(recipe: Recipe, data: Dataset | None) -> tuple[int, int]:
    """From the recipe, else the architecture, else the training images: pretrained weights want colour and their own size."""
    name, size = str(recipe.model.name), recipe.data.size
    if _pretrained(recipe.model) or name in vgg.NAMES:
        return size or 224, 3
    seen, channels = _look(data) if data is not None else (_SIZE_WITHOUT_DATA, 3)
    if size is None:
        size = max(min(seen, _LARGEST_FROM_ZERO), cnn.SMALLEST if name == "cnn" else 1)
        if name == "transformer":
            size = _that_divides(size)
    return size, channels


def _that_divides(size: int) -> int:
    """``size`` where it can be cut into patches, else the multiple of 8 below it."""
    try:
        patch_of(size)
    except ModelError:
        return patchable(size)
    return size


def _look(data: Dataset) -> tuple[int, int]:
    """The median larger side of some training images, and 1 channel where all of them are grey."""
    table = data.splits["train"].slice(0, _ROWS_LOOKED_AT)
    if "pixels" in table.column_names:
        sides = [max(pair) for pair in zip(table["height"].to_pylist(), table["width"].to_pylist(), strict=True)]
        return int(statistics.median_high(sides)), 1 if set(table["channels"].to_pylist()) == {1} else 3
    images = _decoded(table["path"].to_pylist(), data.recipe.get("max_pixels") or 100_000_000)
    if not images:
        return _SIZE_WITHOUT_DATA, 3
    grey = all((image[..., :1] == image).all() for image in images)
    return int(statistics.median_high(max(image.shape[:2]) for image in images)), 1 if grey else 3


def _decoded(paths: Sequence[str], max_pixels: int) -> list[np.ndarray]:
    images = []
    for path in paths:
        try:
            images.append(decode_image(path, max_pixels=max_pixels))
        except DataError:
            continue  # whoever reads the rows reports it; here it is only looked at
    return images


def _listed(module: Any, name: str) -> list[str]:
    return [f"{name}.{index}" for index in range(len(module.get_submodule(name)))]


def _new_parts(module: Any) -> list[str]:
    """The head, and the pool where it learns."""
    pool = getattr(module, "pool", None)
    return (["pool"] if pool is not None and any(True for _ in pool.parameters()) else []) + ["head"]
