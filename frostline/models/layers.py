"""The layer language: a network by hand, one short phrase per layer, as in [conv 64 3 relu, pool 2, flatten, dense 10].

========================================  ===============================================================================
``conv OUT K [stride S] [activation]``    K×K convolution, padded by (K - 1) // 2: an odd K and stride 1 keep the size
``depthwise K [stride S] [activation]``   the same, one filter per channel
``pool K [stride S]``                     maximum over K×K windows; the stride is K when not given
``avgpool K [stride S]``                  mean over K×K windows
``globalpool``                            mean over all positions: one vector
``flatten``                               one vector, in PyTorch's order (channel, row, column)
``dense N [activation]``                  linear layer on a vector
``dropout P``                             each value is zeroed with probability P while learning
``batchnorm``, ``layernorm``              normalisation; layernorm of a feature map goes over channels and positions
``relu gelu silu tanh sigmoid``           activations, as layers or as the last word of another layer
========================================  ===============================================================================

The output layer is not written here: the head adds it, with as many outputs as there are classes. Shapes are followed
while building, so a layer that does not fit is refused before any weight is made. Weights are drawn from the global generator,
which the caller seeds: a dense layer's as Keras draws them (Glorot and Bengio 2010, uniform; no bias), others' as PyTorch does.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from frostline.errors import ModelError

Shape = tuple[int, ...]
"""Of one row, without the batch: (channels, height, width) for a feature map, (features,) for a vector."""

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
TEXT_WORDS = ("embedding", "lstm", "gru", "transformer")


@dataclass(frozen=True, kw_only=True)
class _Form:
    """What may follow a word."""

    numbers: tuple[str, ...] = ()
    stride: bool = False
    activation: bool = False
    example: str


FORMS: dict[str, _Form] = {
    "conv": _Form(numbers=("OUT", "K"), stride=True, activation=True, example="conv 64 3 relu"),
    "depthwise": _Form(numbers=("K",), stride=True, activation=True, example="depthwise 3 relu"),
    "pool": _Form(numbers=("K",), stride=True, example="pool 2"),
    "avgpool": _Form(numbers=("K",), stride=True, example="avgpool 2"),
    "globalpool": _Form(example="globalpool"),
    "flatten": _Form(example="flatten"),
    "dense": _Form(numbers=("N",), activation=True, example="dense 256 relu"),
    "dropout": _Form(numbers=("P",), example="dropout 0.5"),
    "batchnorm": _Form(example="batchnorm"),
    "layernorm": _Form(example="layernorm"),
    **{name: _Form(example=name) for name in ACTIVATIONS},
}
SPATIAL_WORDS = ("conv", "depthwise", "pool", "avgpool")
"""Layers that need positions: they take a feature map and return one."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One phrase, read: its word, its numbers in order, and what followed them."""

    word: str
    numbers: tuple[float, ...] = ()
    stride: int | None = None
    activation: str | None = None
    text: str
    """The phrase as written, for errors."""


def parse_layers(specs: Sequence[str]) -> list[Layer]:
    """Read the phrases. Raises ModelError naming the first one that is not understood, and the nearest known word.

    >>> parse_layers(["conv 64 3 relu"])[0].numbers
    (64, 3)
    """
    return [_parse(text) for text in specs]


def build_layers(specs: Sequence[str], input_shape: Shape) -> tuple[nn.Sequential, Shape]:
    """The network of the phrases and the shape of its output. Raises ModelError where a layer does not fit its input.

    >>> build_layers(["conv 8 3 relu", "pool 2", "flatten", "dense 10"], (1, 28, 28))[1]
    (10,)
    """
    modules: list[nn.Module] = []
    shape = input_shape
    for layer in parse_layers(specs):
        made, shape = _build(layer, shape)
        modules += made
        if layer.activation:
            modules.append(ACTIVATIONS[layer.activation]())
    return nn.Sequential(*modules), shape


def _parse(text: str) -> Layer:
    if not isinstance(text, str) or not text.split():
        raise ModelError(f"layers: {text!r} is not a layer, expected a word and its numbers, for example 'dense 256 relu'")
    word, *rest = text.split()
    form = _form_of(word, text)
    numbers = tuple(_number(text, name, value) for name, value in zip(form.numbers, rest))
    if len(numbers) < len(form.numbers):
        raise ModelError(
            f"layer {text!r}: {form.numbers[len(numbers)]} is missing, expected '{_usage(word)}'; write for example '{form.example}'"
        )
    rest = rest[len(numbers) :]
    stride = None
    if form.stride and rest[:1] == ["stride"]:
        if len(rest) < 2:
            raise ModelError(f"layer {text!r}: the number after 'stride' is missing; write for example '{text} 2'")
        stride = int(_number(text, "stride", rest[1]))
        rest = rest[2:]
    activation = rest.pop(0) if form.activation and rest and rest[0] in ACTIVATIONS else None
    if rest:
        raise ModelError(_leftover(text, word, rest[0]))
    return Layer(word=word, numbers=numbers, stride=stride, activation=activation, text=text)


def _form_of(word: str, text: str) -> _Form:
    if word in FORMS:
        return FORMS[word]
    if word == "softmax":
        raise ModelError(f"layer {text!r}: the loss wants logits and applies the softmax itself; leave {word!r} out")
    if word in TEXT_WORDS:
        raise ModelError(
            f"layer {text!r}: {word!r} belongs to text models and is not part of the layer language, "
            "which is for images and heads; use model.name: lstm, gru or transformer"
        )
    near = difflib.get_close_matches(word, FORMS, n=1, cutoff=0)[0]
    raise ModelError(f"layer {text!r}: unknown word {word!r}, did you mean {near!r}? Known: {', '.join(FORMS)}")


def _number(text: str, name: str, value: str) -> float:
    try:
        number = float(value) if name == "P" else int(value)
    except ValueError:
        kind = "a number" if name == "P" else "a whole number"
        raise ModelError(f"layer {text!r}: {name} is {value!r}, expected {kind}; write '{_usage(text.split()[0])}'") from None
    if name == "P" and not 0 <= number < 1:
        raise ModelError(f"layer {text!r}: {name} is {value!r}, expected a share from 0 to below 1, as in 'dropout 0.5'")
    if name != "P" and number < 1:
        raise ModelError(f"layer {text!r}: {name} is {value!r}, expected at least 1")
    return number


def _usage(word: str) -> str:
    form = FORMS[word]
    return " ".join([word, *form.numbers, *(["[stride S]"] if form.stride else []), *(["[activation]"] if form.activation else [])])


def _leftover(text: str, word: str, extra: str) -> str:
    hint = ""
    if extra == "softmax":
        hint = "the loss wants logits and applies the softmax itself; leave it out. "
    elif FORMS[word].activation and not extra.lstrip("-").replace(".", "").isdigit():
        hint = f"known activations: {', '.join(ACTIVATIONS)}. "
    return f"layer {text!r}: {extra!r} is not understood after {word!r}: {hint}Write '{_usage(word)}'"


def _build(layer: Layer, shape: Shape) -> tuple[list[nn.Module], Shape]:
    """Modules of one layer (without its activation) and the shape they give."""
    match layer.word:
        case "conv" | "depthwise":
            return _convolution(layer, shape)
        case "pool" | "avgpool":
            return _pool(layer, shape)
        case "globalpool":
            channels, _, _ = _map_shape(layer, shape)
            return [nn.AdaptiveAvgPool2d(1), nn.Flatten()], (channels,)
        case "flatten":
            return [nn.Flatten()], (math.prod(shape),)
        case "dense":
            if len(shape) != 1:
                raise ModelError(f"layer {layer.text!r}: its input has the shape {shape!r}; put 'flatten' or 'globalpool' before it")
            return [_dense(shape[0], int(layer.numbers[0]))], (int(layer.numbers[0]),)
        case "dropout":
            return [nn.Dropout(layer.numbers[0])], shape
        case "batchnorm":
            return [nn.BatchNorm2d(shape[0]) if len(shape) == 3 else nn.BatchNorm1d(shape[0])], shape
        case "layernorm":
            # One group over all channels is the layer norm of a feature map, and it does not fix the image's size.
            return [nn.GroupNorm(1, shape[0]) if len(shape) == 3 else nn.LayerNorm(shape[0])], shape
    return [ACTIVATIONS[layer.word]()], shape


def _dense(inputs: int, outputs: int) -> nn.Linear:
    """PyTorch's own draw is narrower the more inputs there are, by 2.4 × behind a flattened VGG: its features would hardly differ."""
    made = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(made.weight)
    nn.init.zeros_(made.bias)
    return made


def _convolution(layer: Layer, shape: Shape) -> tuple[list[nn.Module], Shape]:
    channels, height, width = _map_shape(layer, shape)
    kernel, stride = int(layer.numbers[-1]), layer.stride or 1
    padding = (kernel - 1) // 2
    out, groups = (int(layer.numbers[0]), 1) if layer.word == "conv" else (channels, channels)
    after = _slide(layer, shape, (height + 2 * padding - kernel) // stride + 1, (width + 2 * padding - kernel) // stride + 1)
    return [nn.Conv2d(channels, out, kernel, stride, padding, groups=groups)], (out, *after)


def _pool(layer: Layer, shape: Shape) -> tuple[list[nn.Module], Shape]:
    channels, height, width = _map_shape(layer, shape)
    kernel = int(layer.numbers[0])
    stride = layer.stride or kernel
    after = _slide(layer, shape, (height - kernel) // stride + 1, (width - kernel) // stride + 1)
    return [(nn.MaxPool2d if layer.word == "pool" else nn.AvgPool2d)(kernel, stride)], (channels, *after)


def _map_shape(layer: Layer, shape: Shape) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ModelError(f"layer {layer.text!r}: its input is a vector of {shape[0]!r} numbers, it needs an image; put it before 'flatten'")
    return shape[0], shape[1], shape[2]


def _slide(layer: Layer, shape: Shape, height: int, width: int) -> tuple[int, int]:
    if min(height, width) < 1:
        raise ModelError(
            f"layer {layer.text!r}: its input has only {shape[1]} × {shape[2]} pixels, less than one pixel would be left; "
            "leave out a pool or a stride, or use larger images with data.size"
        )
    return height, width
