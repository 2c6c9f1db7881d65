"""Virtual tokens in front of a text: what prompt tuning, P-tuning and prefix tuning have in common.

They stand in the body of a network of Transformers, as a submodule ``virtual_tokens`` with hooks before and behind the body's
``forward``: every module keeps its name, ``module(input_ids, attention_mask)`` is called as before, and where a token's
prediction is made at every position the body's output is that of the real positions alone. In an encoder-decoder, prompts stand
before the encoder's tokens (the decoder sees them through its cross-attention) and prefixes in the decoder, as in PEFT. With
a cache that holds tokens already, as in the later steps of writing a text, the virtual ones are in it.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frostline.adapt.targets import LARGEST, read_whole
from frostline.errors import ModelError
from frostline.models.hf_module import body_name, positions_of
from frostline.models.model import Model

NAME = "virtual_tokens"
"""Of the submodule."""


class Virtual(nn.Module):
    """Virtual tokens; subclasses put them into what the body takes. ``embedding`` is their table, as in PEFT."""

    embedding: nn.Embedding

    def __init__(self, tokens: int):
        super().__init__()
        self.tokens = tokens
        self.off = False

    @property
    def positions_taken(self) -> int:
        """Of those that the network has for a row; writing (models/generate.py) leaves room for them."""
        return 0 if self.off else self.tokens

    def values(self) -> Tensor:
        """(tokens, width): what stands for each."""
        return self.embedding.weight

    def before(self, body: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The hook before the body's ``forward``: its arguments by name, with the virtual tokens in them."""
        if self.off:
            return None
        names = list(inspect.signature(body.forward).parameters)
        named = {**dict(zip(names, arguments, strict=False)), **named}
        self.enter(body, named, cache_name(names))
        return (), named

    def enter(self, body: nn.Module, named: dict[str, Any], cache: str) -> None:
        """Change the arguments. ``cache``: the name under which the body takes one."""
        raise NotImplementedError

    def lengthened(self, mask: Tensor | None) -> Tensor | None:
        """A mask (rows, tokens) that lets the virtual tokens through. Raises ModelError for another kind of mask."""
        if mask is None:
            return None
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            raise ModelError(
                f"adapt: got a mask of the kind {getattr(mask, 'shape', type(mask).__name__)!r}, expected one of (rows, tokens): virtual "
                "tokens stand before every row. Use: plan.pack=off"
            )
        return torch.cat([mask.new_ones(len(mask), self.tokens), mask], dim=1)


class Reminder:
    """Before a decoder: the encoder's output is longer by the virtual tokens, and so must be the mask over it."""

    def __init__(self, virtual: Virtual):
        self.virtual = virtual

    def before(self, decoder: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """The hook before the decoder's ``forward``."""
        mask, hidden = named.get("encoder_attention_mask"), named.get("encoder_hidden_states")
        if self.virtual.off or mask is None or hidden is None or mask.shape[1] == hidden.shape[1]:
            return None
        return arguments, {**named, "encoder_attention_mask": self.virtual.lengthened(mask)}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where virtual tokens stand, and the sizes of what stands there."""

    body: str
    encoder: Any
    """The module that takes the tokens: the body itself where there is no encoder beside a decoder."""
    decoder: Any
    width: int
    """Of a token's vector."""
    layers: int
    heads: int
    """Of keys and values."""
    head_width: int

    @property
    def two_parts(self) -> bool:
        """Whether it is an encoder and a decoder."""
        return self.encoder is not self.decoder


def place_of(module: nn.Module, body: str) -> Place:
    """The place in the body called ``body``. Raises ModelError where there is none of the right kind."""
    try:
        part: Any = module.get_submodule(body)
    except AttributeError as error:
        raise ModelError(
            f"adapt: the network has no body {body!r}, expected the one that the adapter was made for. Save it again"
        ) from error
    config = getattr(part, "config", None)
    if config is None or not hasattr(part, "get_input_embeddings") or "inputs_embeds" not in inspect.signature(part.forward).parameters:
        raise ModelError(
            f"adapt: virtual tokens need a network of transformers that takes vectors for ids, and {type(part).__name__!r} does not. "
            "Use: adapt=lora"
        )
    two = bool(getattr(config, "is_encoder_decoder", False))
    text = config if two else config.get_text_config()
    heads = _first(text, "num_key_value_heads", "decoder_attention_heads", "num_attention_heads")
    width, all_heads = _first(text, "hidden_size"), _first(text, "decoder_attention_heads", "num_attention_heads")
    decoder = part.get_decoder() if two else part
    layers = _first(text, "decoder_layers", "num_decoder_layers") if two else None
    return Place(
        body=body, encoder=part.get_encoder() if two else part, decoder=decoder, width=width, heads=heads,
        layers=layers or _first(text, "num_hidden_layers"), head_width=_first(text, "head_dim", "d_kv") or width // all_heads,
    )  # fmt: skip


def body_of(model: Model) -> str:
    """The name of the body; "" for the module itself."""
    return model.body or body_name(model.module)


def check_room(model: Model, tokens: int) -> None:
    """Raises ModelError where the longest text and the virtual tokens together are more than the network has positions for."""
    if not 1 <= tokens <= LARGEST:
        raise ModelError(f"adapt.tokens: got {tokens!r}, expected a whole number from 1 to {LARGEST}. Use: adapt.tokens=20")
    positions = positions_of(place_of(model.module, body_of(model)).encoder)
    longest = getattr(model.card.preprocess, "max_length", 0)
    if longest + tokens > positions:
        raise ModelError(
            f"adapt.tokens: got {tokens!r}, and texts have up to {longest} tokens, but {model.card.name!r} has {positions} positions. "
            f"Use: data.max_length={max(1, positions - tokens)}"
        )


def read_settings(settings: dict[str, Any]) -> tuple[int, int, int, str]:
    """How many tokens, the width of the network that makes them (0: none), the seed, the body. Raises ModelError for anything else."""
    tokens, hidden, seed, body = read_whole(settings, "tokens"), settings.get("hidden", 0), settings.get("seed"), settings.get("body")
    if type(hidden) is not int or not 0 <= hidden <= 4 * LARGEST or type(seed) is not int or not isinstance(body, str):
        raise ModelError(f"adapt: got {settings!r}, expected the settings of virtual tokens. Save the model again")
    return tokens, hidden, seed, body


def take_out(module: nn.Module) -> None:
    """Take the virtual tokens out of a network, with their hooks."""
    for part in list(module.modules()):
        for hooks in (part._forward_pre_hooks, part._forward_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), Virtual | Reminder)]:
                del hooks[key]
        if isinstance(part._modules.get(NAME), Virtual):
            del part._modules[NAME]


def find(module: nn.Module) -> list[Virtual]:
    """The virtual tokens in a network."""
    return [part for part in module.modules() if isinstance(part, Virtual)]


def learning_names(module: nn.Module) -> list[str]:
    """Full names of what learns in them."""
    places = [name for name, part in module.named_modules() if isinstance(part, Virtual)]
    return [f"{place}.{name}" for place in places for name, _ in module.get_submodule(place).named_parameters()]


def cache_name(names: list[str]) -> str:
    """What this version of Transformers calls the argument for cached keys and values; "" where the body takes none."""
    return next((name for name in ("cache", "past_key_values") if name in names), "")


def seen_tokens(cache: Any) -> int:
    """How many tokens a cache holds."""
    return 0 if cache is None else int(cache.get_seq_length())


def _first(config: Any, *names: str) -> Any:
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)
