"""Language models from zero, their sizes from one number: the width.

``gpt``          Llama-like: RMSNorm before each part, rotary positions, SwiGLU, grouped-query attention, no biases, the output
                 layer tied to the embedding (Touvron et al., "LLaMA: open and efficient foundation language models", 2023;
                 Ainslie et al., "GQA", 2023)
``gpt2``         GPT-2-like: LayerNorm before each part, learned positions, GELU, biases, tied (Radford et al., "Language models
                 are unsupervised multitask learners", 2019)
``transformer``  for translation and summarisation, an encoder and a decoder that norm before each part, as mBART does: that
                 learns without a warm-up, which the first Transformer's norms behind each part do not (Xiong et al., "On layer
                 normalization in the transformer architecture", 2020)

From the width w (384 by default) follow: attention heads of 64 numbers; depth w / 64, at least 2 (for an encoder-decoder half
of that in each, at least 2); w · 8/3 hidden units for SwiGLU, which with its three matrices is what 4 w is with two, rounded
up to a multiple of 64; one key and value head for 4, 3 or 2 query heads, whichever divides first. A w that 64 does not divide
gets the largest even head below it. ``gpt`` at 384 has 9.4 M numbers beside the vocabulary's. ``model.depth`` overrides the depth.

All are classes of ``transformers`` with the weights as those classes start them (normal, 0.02), so what is saved loads there.
"""

from __future__ import annotations

from typing import Any

from frostline.errors import ModelError
from frostline.models.net import check_size

WIDTH = 384
CAUSAL = ("gpt", "gpt2")
_HEAD = 64


def gpt_config(name: str, tokenizer: Any, max_length: int, width: int | None, depth: int | None, dropout: float | None) -> dict[str, Any]:
    """The configuration of ``gpt``, ``gpt2`` or ``transformer`` for a tokenizer made here, as config.json holds it."""
    width = WIDTH if width is None else width
    makers = {"gpt": (_llama, 2), "gpt2": (_gpt2, 1), "transformer": (_mbart, 1)}
    make, step = makers[name]
    check_size("width", width, 2)
    if dropout is not None and not 0 <= dropout < 1:
        raise ModelError(f"model.dropout got {dropout!r}, expected a share from 0 to below 1, as in model.dropout=0.1")
    if width % step:
        raise ModelError(f"model.width got {width!r}, expected an even number for {name}, as in model.width={width + 1}")
    depth = max(2, width // _HEAD // (2 if name == "transformer" else 1)) if depth is None else depth
    check_size("depth", depth, 1)
    special = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "dtype": "float32",
    }
    if name == "transformer":
        special["decoder_start_token_id"] = tokenizer.bos_token_id
    return {**make(width, depth, max_length, dropout or 0.0), **special}


def head_size(width: int, step: int = 2) -> int:
    """The largest divisor of the width up to 64 that ``step`` divides.

    >>> head_size(384), head_size(100), head_size(32)
    (64, 50, 32)
    """
    return next(size for size in range(min(_HEAD, width), 0, -1) if width % size == 0 and size % step == 0)


def mlp_size(width: int) -> int:
    """8/3 of the width, rounded up to a multiple of 64.

    >>> mlp_size(384), mlp_size(576)
    (1024, 1536)
    """
    return -(-8 * width // (3 * 64)) * 64


def key_heads(heads: int) -> int:
    """How many key and value heads serve so many query heads.

    >>> [key_heads(heads) for heads in (1, 2, 6, 9, 12)]
    [1, 1, 2, 3, 3]
    """
    return heads // next(group for group in (4, 3, 2, 1) if heads % group == 0)


def _llama(width: int, depth: int, max_length: int, dropout: float) -> dict[str, Any]:
    heads = width // head_size(width)
    return {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads(heads),
        "intermediate_size": mlp_size(width),
        "max_position_embeddings": max_length,
        "attention_dropout": dropout,
        "tie_word_embeddings": True,
    }


def _gpt2(width: int, depth: int, max_length: int, dropout: float) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "n_embd": width,
        "n_layer": depth,
        "n_head": width // head_size(width, 1),
        "n_positions": max_length,
        "resid_pdrop": dropout,
        "embd_pdrop": dropout,
        "attn_pdrop": dropout,
        "tie_word_embeddings": True,
    }


def _mbart(width: int, depth: int, max_length: int, dropout: float) -> dict[str, Any]:
    heads = width // head_size(width, 1)
    sizes = {"layers": depth, "attention_heads": heads, "ffn_dim": 4 * width}
    both = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in sizes.items()}
    return {
        "model_type": "mbart",
        "d_model": width,
        **both,
        "max_position_embeddings": max_length,
        "dropout": dropout,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "tie_word_embeddings": True,
        "is_encoder_decoder": True,
        "forced_eos_token_id": None,
    }
