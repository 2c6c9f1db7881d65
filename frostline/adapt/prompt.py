"""Prompt tuning (Lester, Al-Rfou & Constant, "The power of scale for parameter-efficient prompt tuning", EMNLP 2021) and P-tuning
(Liu et al., "GPT understands, too", 2021): the vectors of ``tokens`` virtual tokens before the text are all that learns.

    inputs = [p_1 … p_n, E(x_1) … E(x_t)]          p-tuning: p = MLP(e), with e learning too

Prompts begin as vectors of the vocabulary, drawn by the seed, which the paper found better than noise; the MLP of p-tuning (two
hidden layers, ReLU) only helps learning, so what is saved for others is p. The network does not begin as its base: p is there from
the start.

A classifier of Transformers that is an encoder keeps the hidden states of the virtual tokens, since in PEFT too its head reads
the first position, whatever stands there; all others get those of the real positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from frostline.adapt.settings import install, refuse_another
from frostline.adapt.targets import check_modules_to_save
from frostline.adapt.virtual import NAME, Reminder, Virtual, body_of, check_room, place_of, read_settings, seen_tokens
from frostline.data.randomness import integer_seed
from frostline.models.hf_module import BodyWithHead
from frostline.models.model import Model
from frostline.recipe import AdaptRecipe


def check(model: Model, recipe: AdaptRecipe) -> None:
    """Raises ModelError for a network that takes no vectors, texts that leave no room, or another adapter in place."""
    check_room(model, recipe.tokens)
    check_modules_to_save(model, recipe)
    refuse_another(model, _settings(model, recipe, 0))


def apply(model: Model, recipe: AdaptRecipe, seed: int) -> None:
    """Put the virtual tokens in place and freeze all but them and the head."""
    install(model, recipe, inject, _settings(model, recipe, seed))


def inject(module: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """Put the virtual tokens in place; returns ``module``. Raises ModelError where the settings do not fit the module."""
    tokens, hidden, seed, body = read_settings(settings)
    place = place_of(module, body)
    table = place.encoder.get_input_embeddings().weight
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer_seed(seed, 0, 0, "prompt"))
        prompt = Prompt(tokens, table.detach(), hidden, strip=bool(settings.get("strip")) and not place.two_parts)
    place.encoder.add_module(NAME, prompt.to(table.device))
    place.encoder.register_forward_pre_hook(prompt.before, with_kwargs=True)
    place.encoder.register_forward_hook(prompt.behind, with_kwargs=True)
    if place.two_parts:
        place.decoder.register_forward_pre_hook(Reminder(prompt).before, with_kwargs=True)
    return module


class Prompt(Virtual):
    """Vectors before the text's."""

    def __init__(self, tokens: int, table: Tensor, hidden: int, strip: bool):
        super().__init__(tokens)
        width = table.shape[1]
        self.strip = strip
        self.entered = False
        self.embedding = nn.Embedding(tokens, width)
        self.mlp: nn.Module | None = None
        if hidden:
            layers = [nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, width)]
            self.mlp = nn.Sequential(*layers)
        if not table.is_meta:
            self.embedding.weight.data.copy_(table[torch.randint(len(table), (tokens,))])

    def values(self) -> Tensor:
        return self.embedding.weight if self.mlp is None else self.mlp(self.embedding.weight)

    def enter(self, body: Any, named: dict[str, Any], cache: str) -> None:
        named["attention_mask"] = self.lengthened(named.get("attention_mask"))
        positions = named.get("position_ids")
        self.entered = seen_tokens(named.get(cache)) == 0
        if not self.entered:  # they are in the cache
            if positions is not None:
                named["position_ids"] = positions + self.tokens
            return
        vectors = named.pop("inputs_embeds", None)
        ids = named.pop("input_ids", None)
        vectors = body.get_input_embeddings()(ids) if vectors is None else vectors
        prompts = self.values().to(vectors.dtype).expand(len(vectors), -1, -1)
        named["inputs_embeds"] = torch.cat([prompts, vectors], dim=1)
        if positions is not None:
            first = torch.arange(self.tokens, device=positions.device).expand(len(positions), -1)
            named["position_ids"] = torch.cat([first, positions + self.tokens], dim=1)
        types = named.get("token_type_ids")
        if types is not None:
            named["token_type_ids"] = torch.cat([types.new_zeros(len(types), self.tokens), types], dim=1)

    def behind(self, body: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        """The hook behind the body's ``forward``: the hidden states of the real positions."""
        if self.off or not self.strip or not self.entered:
            return output
        if isinstance(output, Tensor):
            return output[:, self.tokens :]
        if isinstance(output, tuple):
            return (output[0][:, self.tokens :], *output[1:])
        output.last_hidden_state = output.last_hidden_state[:, self.tokens :]
        return output


def _settings(model: Model, recipe: AdaptRecipe, seed: int) -> dict[str, Any]:
    place = place_of(model.module, body_of(model))
    hidden = (recipe.encoder_width or place.width) if recipe.method == "p-tuning" else 0
    strip = not _reads_the_first_position(model)
    return {"method": recipe.method, "tokens": recipe.tokens, "hidden": hidden, "body": place.body, "strip": strip, "seed": seed}


def _reads_the_first_position(model: Model) -> bool:
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    encoder = type(getattr(model.module, "config", None)) in MODEL_FOR_MASKED_LM_MAPPING
    return encoder and model.card.schema.task == "text-classification" and not model.output and not isinstance(model.module, BodyWithHead)
