"""Tiny language models: folders as ``transformers`` saves them, and data sets of each task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from frostline.data.dataset import Dataset, Schema
from frostline.data.report import DataReport
from frostline.models.hf_module import quiet
from frostline.models.tokenizer import train_tokenizer
from tests.models.tiny import WORDS

LABELS = ("O", "B-人", "I-人")
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 40}


def schema(task: str) -> Schema:
    """As the data of a task has it."""
    if task == "token-classification":
        return Schema(task="token-classification", target="tags", labels=LABELS)
    return Schema(task=task, target="none")  # type: ignore[arg-type]


def folder_of(kind: str, folder: Path, *, chat: bool = True, pad: bool = True, **config: Any) -> Path:
    """A saved language model (llama, gpt2, bert) or encoder-decoder (bart, t5) with a tokenizer of its own."""
    import transformers

    tokenizer = train_tokenizer(WORDS, "bpe", 300, "causal", chat=chat)
    if not pad:
        tokenizer.pad_token = None
    vocabulary = len(tokenizer)
    both = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    made = {
        "llama": lambda: transformers.LlamaConfig(**{**SMALL, **ids, "tie_word_embeddings": True, **config}, vocab_size=vocabulary),
        "gpt2": lambda: transformers.GPT2Config(
            **{**ids, **config}, n_embd=32, n_layer=2, n_head=2, n_positions=40, vocab_size=vocabulary
        ),
        "bert": lambda: transformers.BertConfig(**{**SMALL, **config}, vocab_size=vocabulary),
        "bart": lambda: transformers.BartConfig(
            **{**both, **ids, **config}, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=40, vocab_size=vocabulary,
            decoder_start_token_id=2, forced_eos_token_id=None,
        ),
        "t5": lambda: transformers.T5Config(
            **{**ids, **config}, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2, vocab_size=vocabulary, decoder_start_token_id=0
        ),
    }[kind]()  # fmt: skip
    autos = {
        "bert": transformers.AutoModelForMaskedLM,
        "bart": transformers.AutoModelForSeq2SeqLM,
        "t5": transformers.AutoModelForSeq2SeqLM,
    }
    torch.manual_seed(1)
    with quiet():
        autos.get(kind, transformers.AutoModelForCausalLM).from_config(made).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def data_of(task: str) -> Dataset:
    """A few training rows of each task."""
    talk = [{"role": "user", "content": "这部电影 good?"}, {"role": "assistant", "content": "a good film"}]
    columns: dict[str, Any] = {
        "chat": {"messages": [json.dumps(talk, ensure_ascii=False)] * 4, "tools": [None] * 4},
        "causal-lm": {"text": WORDS},
        "preference": {"prompt": [json.dumps(talk[:1])] * 3, "chosen": [json.dumps(talk[1:])] * 3, "rejected": [json.dumps(talk[1:])] * 3},
        "translation": {"source": ["a good film", "good good"] * 3, "target": ["好看的电影", "好 好"] * 3},
    }
    table = pa.table(columns["translation" if task == "summarisation" else task])
    table = table.append_column("id", pa.array([str(row) for row in range(table.num_rows)]))
    return Dataset(schema=schema(task), splits={"train": table}, report=DataReport(), recipe={})


def inputs_of(model: Any) -> dict[str, torch.Tensor]:
    """Two rows of 5 and 3 tokens."""
    ids = torch.tensor([[5, 6, 7, 8, 4], [7, 5, 4, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])}
    if "decoder_input_ids" in model.card.preprocess.inputs:
        inputs.update(decoder_input_ids=ids[:, :4].clone(), decoder_attention_mask=inputs["attention_mask"][:, :4].clone())
    return inputs
