"""Language models from zero, made ready for a data set: a vocabulary of its training rows, and a network that size."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from frostline.data.dataset import Dataset, Schema
from frostline.data.preprocess import TextPreprocess
from frostline.errors import ModelError
from frostline.models import seq2seq
from frostline.models.build import build
from frostline.models.gpt import gpt_config
from frostline.models.language import SEQ2SEQ_INPUTS, blocks_of
from frostline.models.model import Card, Model
from frostline.models.output import body_and_output
from frostline.models.tokenizer import train_tokenizer
from frostline.recipe import Recipe

_CONTEXT = 1024  # GPT-2's
_LONGEST_PAIR = 512
_DROPOUT = 0.1
_CONVERSATIONS = ("messages", "prompt", "chosen", "rejected")


def language_preprocess(recipe: Recipe, schema: Schema, data: Dataset | None) -> TextPreprocess:
    """The vocabulary, made from the training rows alone; for pairs one that source and target share."""
    name, options = recipe.model.name, recipe.model
    if data is None:
        raise ModelError(
            f"model {name!r} got data None, expected a data set: its vocabulary is made from the training rows. "
            f"Type: fl.load({name!r}, data=data)"
        )
    pairs, chat = schema.task in ("translation", "summarisation"), schema.task in ("chat", "preference")
    texts = training_texts(data)
    tokenizer = train_tokenizer(texts, options.tokenizer, options.vocabulary, "seq2seq" if pairs else "causal", chat=chat)
    if pairs:
        length = recipe.data.max_length or _LONGEST_PAIR
        return TextPreprocess(tokenizer=tokenizer, max_length=length, inputs=SEQ2SEQ_INPUTS, start=tokenizer.bos_token_id)
    return TextPreprocess(tokenizer=tokenizer, max_length=recipe.data.max_length or _CONTEXT)


def language_model(recipe: Recipe, schema: Schema, preprocess: TextPreprocess) -> Model:
    """A network for the vocabulary of ``preprocess``; a class of ``transformers`` but for the LSTM."""
    name, options, tokenizer = str(recipe.model.name), recipe.model, preprocess.tokenizer
    arguments: dict[str, Any]
    if name == "seq2seq":
        arguments = {
            "vocabulary": len(tokenizer),
            "width": options.width or seq2seq.WIDTH,
            "depth": options.depth or seq2seq.DEPTH,
            "dropout": _DROPOUT if options.dropout is None else options.dropout,
        }
    else:
        dropout = _DROPOUT if options.dropout is None and name == "transformer" else options.dropout
        config = gpt_config(name, tokenizer, preprocess.max_length, options.width, options.depth, dropout)
        arguments = {"config": config, "head": [], "pool": None, "pooler": True}
    made_by = name if name == "seq2seq" else "transformers"
    card = Card(name=made_by, arguments=arguments, schema=schema, preprocess=preprocess, source="from zero")
    module = build(card)
    blocks = ["model.encoder", "model.decoder"] if name == "seq2seq" else blocks_of(module)
    body, output = body_and_output(module)
    return Model(module=module, card=card, blocks=blocks, body=body, output=output)


def training_texts(data: Dataset) -> Iterator[str]:
    """Every text of the training rows; a message with its role, which the template writes."""
    table = data.splits["train"]
    for column in ("text", "source", "target", *_CONVERSATIONS):
        if column not in table.column_names:
            continue
        for value in table[column].to_pylist():
            if column not in _CONVERSATIONS:
                yield value or ""
                continue
            for message in json.loads(value) if value else ():
                yield f"{message.get('role', '')}\n{_content(message)}"


def _content(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):  # parts, of which only text is a text
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")
