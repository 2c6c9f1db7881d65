"""Tiny models of Transformers with random weights, one of each shape: an encoder, decoders, encoder-decoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from frostline.data.dataset import Schema
from frostline.data.preprocess import TextPreprocess
from frostline.models.model import Card, Model

KINDS = ("bert", "llama", "gpt2", "t5", "bart")
EMBEDDING = {"bert": "word_embeddings", "llama": "embed_tokens", "gpt2": "wte", "t5": "shared", "bart": "shared"}
IDS = torch.tensor([[5, 9, 33, 12, 7, 40], [8, 21, 6, 30, 3, 3]])
MASK = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])


def network(kind: str, **changes: Any) -> Any:
    """The network alone."""
    import transformers as hf

    torch.manual_seed(0)
    wide = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 50,
        "pad_token_id": 3,
    }
    match kind:
        case "bert":
            made = hf.BertForSequenceClassification(hf.BertConfig(**{**wide, "num_labels": 3, "max_position_embeddings": 64, **changes}))
        case "llama":
            made = hf.LlamaForCausalLM(hf.LlamaConfig(**{**wide, "num_key_value_heads": 1, **changes}))
        case "gpt2":
            made = hf.GPT2LMHeadModel(
                hf.GPT2Config(**{"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, **changes})
            )
        case "t5":
            sizes = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
            made = hf.T5ForConditionalGeneration(hf.T5Config(**{**sizes, **changes}))
        case _:
            sides = {
                f"{side}_{name}": size
                for side in ("encoder", "decoder")
                for name, size in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))
            }
            sizes = {"vocab_size": 50, "d_model": 16, "max_position_embeddings": 64, **sides}
            made = hf.BartForConditionalGeneration(hf.BartConfig(**{**sizes, **changes}))
    return made.eval()


def model(kind: str, max_length: int = 20, **changes: Any) -> Model:
    """The network as a Model, pretrained as it were."""
    head = ["classifier"] if kind == "bert" else []
    schema = Schema(task="text-classification", labels=("好", "bad", "so so")) if head else Schema(task="causal-lm", target="none")
    body, output = {"llama": ("model", "lm_head"), "gpt2": ("transformer", "lm_head"), "bart": ("model", "lm_head")}.get(kind, ("", ""))
    made = network(kind, **changes)
    blocks = {"bert": "bert.encoder.layer", "llama": "model.layers", "gpt2": "transformer.h"}.get(kind)
    return Model(
        module=made, card=Card(name=kind, schema=schema, preprocess=TextPreprocess(tokenizer=None, max_length=max_length), pretrained=True),
        blocks=[f"{blocks}.0", f"{blocks}.1"] if blocks else [], head=head, body=body, output=output,
    )  # fmt: skip


def inputs(kind: str) -> dict[str, Tensor]:
    """Two rows, the second one padded."""
    given = {"input_ids": IDS, "attention_mask": MASK}
    return {**given, "decoder_input_ids": IDS[:, :4]} if kind in ("t5", "bart") else given


def outputs(made: Any, kind: str) -> Tensor:
    """The logits in evaluation mode, of a Model or a network."""
    with torch.no_grad():
        return getattr(made, "module", made).eval()(**inputs(kind)).logits


def stir(made: Model, spread: float = 0.2, seed: int = 1) -> Model:
    """Move everything that learns, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
    return made
