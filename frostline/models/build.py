"""build: from a card to the network that it describes, with fresh weights. The names below are all there are.

A saved card comes from a file, so it can only pick one of these builders and give it plain values (law 11).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

from torch import nn

from frostline.data.dataset import Schema
from frostline.errors import ModelError
from frostline.models import vgg
from frostline.models.bag import build_bag, build_text_cnn
from frostline.models.cnn import build_cnn
from frostline.models.efficientnet import build_efficientnet
from frostline.models.head import build_by_hand
from frostline.models.hf_module import build_transformers
from frostline.models.mlp import build_mlp
from frostline.models.model import Card
from frostline.models.net import Net
from frostline.models.rnn import build_rnn
from frostline.models.seq2seq import build_seq2seq
from frostline.models.transformer import build_transformer, build_vit
from frostline.recipe import ModelRecipe

Builder = Callable[..., nn.Module]


def _with_net(builder: Builder, **arguments: Any) -> nn.Module:
    """Call a builder that takes a :class:`Net`, whose fields stand beside the other arguments in the card."""
    names = Net.__dataclass_fields__
    net: dict[str, Any] = {name: tuple(value) if name == "head" else value for name, value in arguments.items() if name in names}
    return builder(net=Net(**net), **{name: value for name, value in arguments.items() if name not in names})


IMAGES: dict[str, Builder] = {
    **{name: partial(vgg.build_vgg, name) for name in vgg.NAMES},
    "efficientnet-lite0": build_efficientnet,
    "cnn": partial(_with_net, build_cnn),
    "mlp": partial(_with_net, build_mlp),
    "transformer": partial(_with_net, build_vit),
    "layers": build_by_hand,
}
TEXTS: dict[str, Builder] = {
    "lstm": partial(_with_net, build_rnn, kind="lstm"),
    "gru": partial(_with_net, build_rnn, kind="gru"),
    "transformer": partial(_with_net, build_transformer),
    "cnn": partial(_with_net, build_text_cnn),
    "mlp": partial(_with_net, build_bag),
}

CAUSAL: dict[str, Builder] = dict.fromkeys(("gpt", "gpt2"), build_transformers)
PAIRS: dict[str, Builder] = {"seq2seq": build_seq2seq, "transformer": build_transformers}
BY_TASK: dict[str, dict[str, Builder]] = {
    "image-classification": IMAGES,
    "text-classification": TEXTS,
    **dict.fromkeys(("chat", "causal-lm", "preference"), CAUSAL),
    **dict.fromkeys(("translation", "summarisation"), PAIRS),
}

_HEAD = ("head", "pool")
_NET = ("weights", *_HEAD, "width", "depth", "dropout")
IMAGE_OPTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(IMAGES, _NET),
    **dict.fromkeys((*vgg.NAMES, "efficientnet-lite0"), ("weights", *_HEAD)),
    "layers": ("weights", *_HEAD, "layers"),
}
TEXT_OPTIONS: dict[str, tuple[str, ...]] = dict.fromkeys(TEXTS, (*_NET, "tokenizer", "vocabulary"))
LANGUAGE_OPTIONS: dict[str, tuple[str, ...]] = dict.fromkeys((*CAUSAL, *PAIRS), ("tokenizer", "vocabulary", "width", "depth", "dropout"))
"""These three: the fields of a ModelRecipe that each kind of network reads; the others have no meaning for it."""
_HEADS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("image-classification", "text-classification", "reward"), _HEAD),
    "embedding": ("pool",),
}


def options_of(kind: str, schema: Schema) -> tuple[str, ...]:
    """What a network takes. ``kind``: its name, or `transformers`, `saved` (made already), `custom` (handed over)."""
    own = {"image-classification": IMAGE_OPTIONS, "text-classification": TEXT_OPTIONS}.get(schema.task, LANGUAGE_OPTIONS)
    head = _HEADS.get(schema.task, ())
    return {**own, "transformers": head, "saved": head, "custom": ()}[kind]


def unread_options(options: ModelRecipe, takes: tuple[str, ...], network: str) -> list[str]:
    """One message for each option that is set (is not its default) and that ``network`` would pass over."""
    default, what = ModelRecipe(), f"takes only {', '.join(takes)}" if takes else "takes no options"
    return [
        f"model.{field.name} got {value!r} with {network}, which {what}. Remove model.{field.name}"
        for field in fields(options)
        if field.name not in ("name", *takes) and (value := getattr(options, field.name)) != getattr(default, field.name)
    ]


def names_for(schema: Schema) -> dict[str, Builder]:
    """The networks that are defined here for a task."""
    return BY_TASK.get(schema.task, {})


def build(card: Card) -> nn.Module:
    """The network of a card. Raises ModelError for a name or arguments that no builder takes."""
    arguments = {name: value for name, value in card.arguments.items() if name != "adapt"}
    if card.name == "custom":
        raise ModelError(
            f"the model is a module that was handed over ({card.arguments.get('class')!r}) and cannot be made from its name. "
            "Hand it over again: fl.load(RUN, module=MyNet())"
        )
    if card.name == "transformers":
        arguments["schema"] = card.schema
    builder = build_transformers if card.name == "transformers" else names_for(card.schema).get(card.name)
    if builder is None:
        raise ModelError(f"model {card.name!r} is unknown for {card.schema.task!r}, expected one of {', '.join(names_for(card.schema))}")
    try:
        return builder(**arguments)
    except ModelError:
        raise
    except Exception as error:  # the arguments come from a file, and a wrong one fails in as many ways as there are layers
        raise ModelError(
            f"model {card.name!r} cannot be built from the arguments {sorted(arguments)!r}: {error}. Save the model again"
        ) from error
