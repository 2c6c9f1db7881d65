"""Sources and targets to batches: for an encoder-decoder both sides apart, for a decoder one conversation.

Encoder-decoder (Sutskever et al., "Sequence to sequence learning with neural networks", 2014): the encoder reads the source. The
decoder reads the start token and the target without its last token, and position i is to give the target's token i, the end
token included, so nothing is shifted a second time.

Decoder: the request (data.prompt, with the source in it) is a user's message and the target the answer to it, through the model's
own chat template as in chat (chat_encoder.py): loss on the target and its end token only.

Where a pair is too long and data.too_long is cut, an encoder-decoder's sides are each cut to max_length. A decoder's *source* is
cut, so that the target is learned whole: a target whose end is missing teaches the model not to stop.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from frostline.data.chat_encoder import chat_rows
from frostline.data.chat_spans import Message
from frostline.data.chat_template import prompt_ids, render, with_template
from frostline.data.loader import Batch, Encoded
from frostline.data.preprocess import TextPreprocess
from frostline.data.token_rows import IGNORED, token_rows
from frostline.data.too_long import settle
from frostline.errors import DataError, RecipeError
from frostline.recipe import DataRecipe

_PROMPTS = {"translation": "Translate 翻译:\n{source}", "summarisation": "Summarise 总结:\n{source}"}
"""What is asked where data.prompt says nothing."""
_TEXTS_AT_ONCE = 1000
_SPARE = 8
"""Tokens by which a text may be longer within a conversation than alone."""
_PROMPT_SHARE = 0.75
"""Of max_length, for the prompt when there is no target that says how much room it needs."""


def encoder(table: pa.Table, preprocess: TextPreprocess, recipe: DataRecipe) -> Encoded:
    """The batches of a split."""
    recipe = _with_own_prompt(recipe, preprocess)
    if "decoder_input_ids" in preprocess.inputs:
        return _both_sides(table, preprocess, recipe)
    return _conversations(table, preprocess, recipe)


def source_ids(text: str, preprocess: TextPreprocess, recipe: DataRecipe) -> list[int]:
    """What the model is given to write a target for, as in training: an encoder's tokens, or a decoder's prompt."""
    tokenizer, recipe = preprocess.tokenizer, _with_own_prompt(recipe, preprocess)
    if "decoder_input_ids" in preprocess.inputs:
        return _sides([request(text, recipe)], tokenizer, preprocess.max_length, target=False)[0][0]
    with_template(tokenizer)
    most = max(1, int(preprocess.max_length * _PROMPT_SHARE))
    for _ in range(4):
        ids = prompt_ids(_messages(text, recipe), None, tokenizer)
        shorter = _shortened(text, len(ids) - most, tokenizer)
        if len(ids) <= most or shorter is None:
            break
        text = shorter
    return ids


def _with_own_prompt(recipe: DataRecipe, preprocess: TextPreprocess) -> DataRecipe:
    """Where the recipe asks for no prompt, the one that the model was trained with."""
    return recipe if recipe.prompt is not None else replace(recipe, prompt=preprocess.prompt)


def request(source: str, recipe: DataRecipe) -> str:
    """What is asked of the model: data.prompt with the source in it; for an encoder-decoder without it the source itself."""
    prompt = recipe.prompt
    if prompt is None:
        return source
    if "{source}" not in prompt:
        raise RecipeError(f"data.prompt got {prompt!r}, expected {{source}} in it. Use: data.prompt='Translate into Chinese: {{source}}'")
    return prompt.replace("{source}", source)


def _messages(source: str, recipe: DataRecipe) -> list[Message]:
    prompt = recipe.prompt if recipe.prompt is not None else _PROMPTS[recipe.task or "translation"]
    return [{"role": "user", "content": request(source, replace(recipe, prompt=prompt))}]


# -- Encoder-decoder --------------------------------------------------------------------------------------------------


def _both_sides(table: pa.Table, preprocess: TextPreprocess, recipe: DataRecipe) -> Encoded:
    assert preprocess.start is not None, "an encoder-decoder's preprocess knows what its targets begin with"
    tokenizer, longest = preprocess.tokenizer, preprocess.max_length
    sources, cut = _sides([request(text, recipe) for text in table["source"].to_pylist()], tokenizer, longest, target=False)
    targets, cut_too = _sides(table["target"].to_pylist(), tokenizer, longest, target=True)
    kept, warnings = settle(cut | cut_too, table.num_rows, longest, recipe.too_long, "pair")
    if not kept:
        raise DataError(f"all {table.num_rows} pairs are longer than max_length={longest}. Use: data.too_long=cut, or data.max_length")
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is None:
        warnings.append("the tokenizer has no end token: the model cannot learn where a target ends")
    left = token_rows([sources[row] for row in kept], [[IGNORED] * len(sources[row]) for row in kept], kept, 0, [])
    begun = [[preprocess.start, *targets[row][:-1]] for row in kept]
    right = token_rows(begun, [targets[row] for row in kept], kept, 0, [])
    pad = tokenizer.pad_token_id or 0

    def encode(rows: np.ndarray, epoch: int | None) -> Batch:
        source, target = left.batch(rows, pad), right.batch(rows, pad)
        made = {**source.inputs, **{f"decoder_{name}": value for name, value in target.inputs.items()}}
        return Batch(inputs={name: made[name] for name in preprocess.inputs}, labels=target.labels, rows=source.rows)

    truncated = len((cut | cut_too) & set(kept))
    lengths = left.lengths + right.lengths
    return Encoded(encode=encode, kept=np.asarray(kept, np.int64), lengths=lengths, truncated=truncated, warnings=warnings)


def _sides(texts: list[str], tokenizer: Any, longest: int, *, target: bool) -> tuple[list[list[int]], set[int]]:
    """The ids of one side, with the tokens that the tokenizer frames them with (a target ends in the end token), and which were cut."""
    end = tokenizer.eos_token_id
    ids: list[list[int]] = []
    cut: set[int] = set()
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        some = texts[start : start + _TEXTS_AT_ONCE]
        made = tokenizer(**{"text_target" if target else "text": some}, truncation=True, max_length=longest, padding=False)
        for row, (own, encoding) in enumerate(zip(made["input_ids"], made.encodings, strict=True), start):
            if target and end is not None and own[-1:] != [end]:
                if len(own) >= longest:  # its last token gives way to the end token
                    cut.add(row)
                own = [*own[: longest - 1], end]
            ids.append(own or [tokenizer.pad_token_id or 0])
            if encoding.overflowing:
                cut.add(row)
    return ids, cut


# -- Decoder ----------------------------------------------------------------------------------------------------------


def _conversations(table: pa.Table, preprocess: TextPreprocess, recipe: DataRecipe) -> Encoded:
    tokenizer = preprocess.tokenizer
    warnings = with_template(tokenizer)
    sources, targets = table["source"].to_pylist(), table["target"].to_pylist()
    shortened: list[int] = []
    if recipe.too_long == "cut":
        for row in _perhaps_long(sources, targets, preprocess, recipe):
            shorter = _fitting(sources[row], targets[row], preprocess, recipe)
            if shorter != sources[row]:
                shortened.append(row)
                sources[row] = shorter
    talks = [[*_messages(source, recipe), {"role": "assistant", "content": target}] for source, target in zip(sources, targets)]
    columns = {"messages": [json.dumps(talk, ensure_ascii=False) for talk in talks]}
    if "origin" in table.column_names:
        columns["origin"] = table["origin"].to_pylist()
    rows = chat_rows(pa.table(columns), tokenizer, max_length=preprocess.max_length, too_long=recipe.too_long)
    if shortened:
        example = f"row {shortened[0] + 1} of the split"
        warnings.append(f"{len(shortened)} of {len(talks)} sources were cut so that the target fits in as well, e.g. {example}")
    rows = replace(rows, truncated=rows.truncated + len(shortened), warnings=[*warnings, *rows.warnings])
    return rows.encoded(preprocess)


def _perhaps_long(sources: list[str], targets: list[str], preprocess: TextPreprocess, recipe: DataRecipe) -> list[int]:
    """Rows that may not fit in max_length; the others surely do."""
    tokenizer = preprocess.tokenizer
    around = len(render([*_messages("a", recipe), {"role": "assistant", "content": "a"}], None, tokenizer).ids) + _SPARE
    counts = np.full(len(sources), around)
    for texts in (sources, targets):
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            made = tokenizer(texts[start : start + _TEXTS_AT_ONCE], add_special_tokens=False, verbose=False)["input_ids"]
            counts[start : start + len(made)] += [len(ids) for ids in made]
    return np.flatnonzero(counts > preprocess.max_length).tolist()


def _fitting(source: str, target: str, preprocess: TextPreprocess, recipe: DataRecipe) -> str:
    """The source without its end, as far as the target needs; whole where even none of it would make room enough."""
    text, answer = source, {"role": "assistant", "content": target}
    for _ in range(4):  # a text's tokens are not always as many within a conversation
        excess = len(render([*_messages(text, recipe), answer], None, preprocess.tokenizer).ids) - preprocess.max_length
        if excess <= 0:
            return text
        shorter = _shortened(text, excess, preprocess.tokenizer)
        if shorter is None:
            return source
        text = shorter
    return text


def _shortened(text: str, tokens: int, tokenizer: Any) -> str | None:
    """The text without its last tokens; None where nothing would be left."""
    ends = [end for _, end in tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]]
    return text[: ends[-tokens - 1]].rstrip() if 0 < tokens < len(ends) else None
