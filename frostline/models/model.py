"""Model: a plain ``nn.Module`` and the card that says what goes in, what comes out, and how to build it again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from frostline.data.dataset import Schema
from frostline.data.preprocess import ImagePreprocess, TextPreprocess
from frostline.recipe import Recipe


@dataclass(kw_only=True)
class Card:
    """All that a network's weights leave out."""

    name: str
    """Which builder makes it: vgg16, efficientnet-lite0, cnn, …, `transformers` (an HF architecture), `custom` (handed over)."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Plain JSON values that the builder takes to make the same network."""
    schema: Schema
    preprocess: ImagePreprocess | TextPreprocess
    pretrained: bool = False
    """Whether the body's weights were loaded; `adapt: auto` freezes a pretrained body."""
    source: str = ""
    """Where the weights came from, for people."""


@dataclass(kw_only=True)
class Model:
    """``module(**inputs)`` gives logits (rows, outputs), or an object with ``.logits``.

    Images: ``inputs = {"pixel_values": float32 (rows, channels, size, size)}``. Text: ``{"input_ids": int64 (rows, tokens),
    "attention_mask": int64 (rows, tokens)}`` and what else ``card.preprocess.inputs`` names.
    """

    module: nn.Module
    card: Card
    blocks: list[str] = field(default_factory=list)
    """Names of the body's repeated blocks, from input to output: the units of `adapt: last N`, `gradual` and lr_decay."""
    head: list[str] = field(default_factory=list)
    """Names of the modules that make up the head: new, and always learning."""
    body: str = ""
    """For models with a token's prediction at every position: the module whose output (its ``last_hidden_state``, its first item,
    or the tensor itself) is (rows, tokens, width); "" where the logits cannot be made from it alone."""
    output: str = ""
    """The linear layer from ``body``'s output to the vocabulary: ``logits = output(body(**inputs))``. It may be tied to the embedding."""
    recipe: Recipe = field(default_factory=Recipe)
    """The options that loaded it (under ``model``, and ``seed``, ``data.size`` …), for the run's recipe."""

    def in_head(self, parameter: str) -> bool:
        """Whether a parameter's dotted name lies in the head."""
        return any(parameter == name or parameter.startswith(f"{name}.") for name in self.head)


def logits_of(output: Any) -> Any:
    """The logits of a module's output: the tensor itself, or its ``.logits``."""
    return getattr(output, "logits", output)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within, the module is in evaluation mode; then each module back in its own (a plain ``train()`` would also wake what is frozen)."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def lay_out(module: nn.Module, channels_last: bool) -> None:
    """Put weights of four dimensions, those of images' convolutions, into one layout or the other, in place."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    module._apply(lambda tensor: tensor.to(memory_format=layout) if tensor.dim() == 4 else tensor)


@contextlib.contextmanager
def with_own(part: nn.Module, name: str, value: Any) -> Iterator[None]:
    """Within, the module has this attribute of its own, as another ``forward``; then what it had before, even where that is nothing."""
    own = vars(part)
    had, before = name in own, own.get(name)
    own[name] = value
    try:
        yield
    finally:
        if had:
            own[name] = before
        else:
            del own[name]
