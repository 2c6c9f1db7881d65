"""Small models of ``transformers`` in every shape of attention, for the kernels' tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

VOCABULARY = 40
TINY = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
SLIDING = ["sliding_attention", "sliding_attention", "full_attention"]
GQA = {**TINY, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}

DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("model.layers", GQA),
    "qwen2": ("model.layers", GQA),
    "qwen2-sliding": ("model.layers", {**GQA, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3": ("model.layers", {**GQA, "head_dim": 8}),
    "mistral": ("model.layers", {**GQA, "sliding_window": 4}),
    "gemma2": ("model.layers", {**GQA, "head_dim": 8, "sliding_window": 4, "attn_logit_softcapping": 2.0}),
    "gemma3_text": (
        "model.layers",
        {**GQA, "head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
    ),
    "gpt2": ("transformer.h", {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}),
    "gpt_neox": ("gpt_neox.layers", {**TINY, "max_position_embeddings": 64}),
}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("encoder.layer", {**TINY, "max_position_embeddings": 64}),
    "roberta": ("encoder.layer", {**TINY, "max_position_embeddings": 64}),
    "distilbert": ("transformer.layer", {"vocab_size": VOCABULARY, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48}),
    "modernbert": (
        "layers",
        {**TINY, "local_attention": 6, "global_attn_every_n_layers": 2, "pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1}
        | {"eos_token_id": 2, "sep_token_id": 2},
    ),
    "albert": ("encoder.albert_layer_groups", {**TINY, "embedding_size": 16}),
}


def build(kind: str) -> tuple[nn.Module, list[str]]:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    blocks, options = {**DECODERS, **ENCODERS}[kind]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind.split("-")[0], **options)
    module = (AutoModelForCausalLM if kind in DECODERS else AutoModel).from_config(config)
    for parameter in module.parameters():  # as they start, attention hardly differs from one token to the next
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return module.eval(), [f"{blocks}.{i}" for i in range(len(module.get_submodule(blocks)))]
