"""What a text model from a folder needs beside its weights: a tokenizer that fits, a length, a pool, settings for generation.

**Padding.** Rows are padded by length and labels come from spans (law 5), so which id pads does not matter to a language model:
one without a padding token takes its end token. Where the configuration itself does so, its embedding would get no gradient for
that token (``padding_idx``), and a reply's end would be learned by half; :func:`frostline.models.hf_module.from_state` undoes that.
**Vocabulary.** A tokenizer with more tokens than the embedding has rows is refused, even where only added tokens are too many: rows
made up for them would stay random under a frozen body, and nothing would say so.
**Length.** Encoders take at most 512 tokens unless more are asked for, language models 2048: attention's cost grows with the square.
**Pool.** An embedding model pools as its ``1_Pooling/config.json`` says (the layout of sentence-transformers), else by the mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from frostline.data.dataset import Schema
from frostline.data.preprocess import TextPreprocess
from frostline.errors import ModelError
from frostline.models import hf_module
from frostline.models.card import read_json
from frostline.models.output import decoder_start, writes_from_source
from frostline.models.parts import find_blocks

SEQ2SEQ_INPUTS = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")
_LONGEST = 512
_LONGEST_WRITTEN = 2048
_POOLS = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max"}


def text_preprocess(tokenizer: Any, module: nn.Module, schema: Schema, folder: Path, max_length: int | None) -> TextPreprocess:
    """What stands before the network (whose weights may be on the meta device). Raises ModelError where the two do not fit."""
    if not tokenizer.is_fast:
        raise ModelError(
            f"tokenizer of {str(folder)!r} is a {type(tokenizer).__name__!r} without a fast version, expected one with tokenizer.json"
        )
    _pad_somehow(tokenizer, schema, folder)
    _refuse_more_tokens(tokenizer, module, folder)
    longest = min(tokenizer.model_max_length, hf_module.positions_of(module.get_submodule(hf_module.body_name(module))))
    if max_length is not None and max_length > longest:
        raise ModelError(
            f"data.max_length got {max_length!r}, but {str(folder)!r} takes at most {longest} tokens. Set data.max_length={longest}"
        )
    length = max_length or min(longest, _LONGEST_WRITTEN if hf_module.writes(schema) or schema.task == "reward" else _LONGEST)
    if hf_module.writes(schema) and writes_from_source(module):
        start = decoder_start(module, tokenizer)
        return TextPreprocess(tokenizer=tokenizer, max_length=length, inputs=SEQ2SEQ_INPUTS, start=start)
    return TextPreprocess(tokenizer=tokenizer, max_length=length)


def _pad_somehow(tokenizer: Any, schema: Schema, folder: Path) -> None:
    if tokenizer.pad_token is not None:
        return
    if schema.task != "text-classification" and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
        return
    raise ModelError(
        f"tokenizer of {str(folder)!r} has pad_token None, expected a padding token. Set pad_token in its tokenizer_config.json"
    )


def _refuse_more_tokens(tokenizer: Any, module: Any, folder: Path) -> None:
    rows = module.get_submodule(hf_module.body_name(module)).get_input_embeddings().num_embeddings
    vocabulary = tokenizer.get_vocab()
    largest = max(vocabulary, key=vocabulary.__getitem__, default="")
    if vocabulary.get(largest, -1) >= rows:
        raise ModelError(
            f"tokenizer of {str(folder)!r} has ids up to {vocabulary[largest]} ({largest!r}), its embedding has {rows} rows, "
            f"expected one for each. Take the tokenizer that belongs to the weights, or give them rows and save both again: "
            f"model.resize_token_embeddings({vocabulary[largest] + 1}) in transformers"
        )


def pool_of(folder: Path) -> str:
    """How a folder's embeddings are pooled. Raises ModelError for a way that is not built here."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return "mean"
    values = read_json(path)
    asked = [name.removeprefix("pooling_mode_") for name, value in values.items() if name.startswith("pooling_mode_") and value is True]
    asked = asked or [str(values.get("pooling_mode", "mean"))]
    known = {**_POOLS, **{pool: pool for pool in _POOLS.values()}}
    if len(asked) != 1 or asked[0] not in known:
        raise ModelError(f"{str(path)!r} asks for the pooling {asked!r}, expected one of {', '.join(_POOLS)}. Choose with model.pool=mean")
    return known[asked[0]]


def blocks_of(module: nn.Module) -> list[str]:
    """The repeated blocks from input to output: of an encoder-decoder those of both, the encoder's first."""
    body = hf_module.body_name(module)
    part = module.get_submodule(body)
    prefix = f"{body}." if body else ""
    if writes_from_source(module) and all(isinstance(getattr(part, name, None), nn.Module) for name in ("encoder", "decoder")):
        return [f"{prefix}{name}.{block}" for name in ("encoder", "decoder") for block in find_blocks(part.get_submodule(name))]
    return [f"{prefix}{block}" for block in find_blocks(part)]
