"""build: from a card to the network that it describes, with fresh weights. The names below are all there are.

A saved card comes from a file, so it can only pick one of these builders and give it plain values (law 11).
"""

from __future__ import annotations

from collections.abc import Callable
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
from frostline.models.transformer import build_transformer, build_vit

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


def names_for(schema: Schema) -> dict[str, Builder]:
    """The networks that are defined here for a task."""
    return IMAGES if schema.task == "image-classification" else TEXTS


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
    except TypeError as error:
        raise ModelError(
            f"model {card.name!r} cannot be built from the arguments {sorted(arguments)!r}: {error}. Save the model again"
        ) from error
