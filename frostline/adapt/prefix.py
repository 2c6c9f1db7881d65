"""Prefix tuning (Li & Liang, "Prefix-tuning: optimizing continuous prompts for generation", ACL 2021).

In every layer, attention sees ``tokens`` keys and values more than the text has; they are what learns:

    attention(q, [P_k; K], [P_v; V])

They go in as cached keys and values, so the network has to be one that takes a cache: decoders, the decoder of an encoder-decoder,
and encoders that can be used as one (BERT, RoBERTa).
``encoder_width`` above 0 makes them by a two-layer network (tanh) from vectors as wide as the model, which the paper found steadier;
what is saved for others is what that network gives. They are small at first, but the network does not begin as its base.

In an encoder-decoder of L layers, layer l reads the pair 2 l mod L of the table, not pair l: so PEFT deals them out, and files go both
ways. Where L is even, two layers thus share a pair, and half of the pairs are never read.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from frostline.adapt.settings import install, refuse_another
from frostline.adapt.targets import check_modules_to_save
from frostline.adapt.virtual import NAME, Place, Virtual, body_of, cache_name, check_room, place_of, read_settings, seen_tokens
from frostline.data.randomness import integer_seed
from frostline.errors import ModelError
from frostline.models.model import Model
from frostline.recipe import AdaptRecipe

_SPREAD = 0.02


def check(model: Model, recipe: AdaptRecipe) -> None:
    """Raises ModelError for a network that takes no cache, texts that leave no room, or another adapter in place."""
    _check_cache(place_of(model.module, body_of(model)))
    check_room(model, recipe.tokens)
    check_modules_to_save(model, recipe)
    refuse_another(model, _settings(model, recipe, 0))


def apply(model: Model, recipe: AdaptRecipe, seed: int) -> None:
    """Put the prefixes in place and freeze all but them and the head."""
    install(model, recipe, inject, _settings(model, recipe, seed))


def inject(module: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """Put the prefixes in place; returns ``module``. Raises ModelError where the settings do not fit the module."""
    tokens, hidden, seed, body = read_settings(settings)
    place = place_of(module, body)
    _check_cache(place)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer_seed(seed, 0, 0, "prefix"))
        prefix = Prefix(tokens, place, hidden)
    place.decoder.add_module(NAME, prefix.to(next(place.decoder.parameters()).device))
    place.decoder.register_forward_pre_hook(prefix.before, with_kwargs=True)
    place.decoder.register_forward_hook(prefix.behind, with_kwargs=True)
    return module


class Prefix(Virtual):
    """Keys and values for every layer."""

    def __init__(self, tokens: int, place: Place, hidden: int):
        super().__init__(tokens)
        self.layers, self.heads, self.head_width, self.two_parts = place.layers, place.heads, place.head_width, place.two_parts
        total = 2 * place.layers * place.heads * place.head_width
        self.embedding = nn.Embedding(tokens, place.width if hidden else total)
        nn.init.normal_(self.embedding.weight, std=1.0 if hidden else _SPREAD)
        self.mlp: nn.Module | None = None
        if hidden:
            self.mlp = nn.Sequential(nn.Linear(place.width, hidden), nn.Tanh(), nn.Linear(hidden, total))

    def values(self) -> Tensor:
        return self.embedding.weight if self.mlp is None else self.mlp(self.embedding.weight)

    def enter(self, body: Any, named: dict[str, Any], cache: str) -> None:
        named["attention_mask"] = self.lengthened(named.get("attention_mask"))
        if named.get("position_ids") is not None:
            named["position_ids"] = named["position_ids"] + self.tokens
        if seen_tokens(named.get(cache)) == 0:
            given = named.get("input_ids")
            given = named["inputs_embeds"] if given is None else given
            named[cache] = _filled(self, named.get(cache), body.config, len(given))

    def behind(self, body: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        """The hook behind the body's ``forward``: who asked for no cache gets none back, lest writing a text went on from it."""
        for name in ("cache", "past_key_values"):
            if not self.off and named.get("use_cache") is False and getattr(output, name, None) is not None:
                setattr(output, name, None)
        return output


def _filled(prefix: Prefix, cache: Any, config: Any, rows: int) -> Any:
    """The cache (a new one for None) with the prefix in it."""
    from transformers import DynamicCache, EncoderDecoderCache

    if cache is None and prefix.two_parts:
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    elif cache is None:
        cache = DynamicCache(config=config.get_text_config(decoder=True))
    own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    shape = (prefix.tokens, 2 * prefix.layers, prefix.heads, prefix.head_width)
    pairs = prefix.values().reshape(shape).permute(1, 2, 0, 3)  # (2 × layers, heads, tokens, width): key, value, key, value …
    for layer in range(prefix.layers):
        first = 4 * layer % (2 * prefix.layers) if prefix.two_parts else 2 * layer
        key, value = (pairs[first + index].expand(rows, -1, -1, -1) for index in (0, 1))
        own.update(key, value, layer)
    return cache


def _check_cache(place: Place) -> None:
    if not cache_name(list(inspect.signature(place.decoder.forward).parameters)):
        raise ModelError(
            f"adapt: got 'prefix', but a {place.decoder.config.model_type!r} takes no cached keys and values, expected a network that "
            "does. Use: adapt=prompt"
        )


def _settings(model: Model, recipe: AdaptRecipe, seed: int) -> dict[str, Any]:
    return {"method": "prefix", "tokens": recipe.tokens, "hidden": recipe.encoder_width, "body": body_of(model), "seed": seed}
