"""Small tokenizers with the published chat templates, for the tests of conversations."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

TEMPLATES = Path(__file__).parent / "templates"
_TEXTS = [
    "The capital of France is Paris.",
    "the answer is here\n\n",
    "法国的首都是巴黎。",
    "你好，世界！",
    "USER: ASSISTANT: Assistant: User:",
] * 8


class Family(NamedTuple):
    """The special tokens of a model family, and what ends its answers."""

    kind: str
    bos: str | None
    eos: str
    end: str
    others: tuple[str, ...] = ()


_IM = ("<|im_start|>", "<|im_end|>")
_LLAMA3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_DEEPSEEK = tuple(f"<｜{name}｜>" for name in ("User", "Assistant", "tool▁calls▁begin", "tool▁calls▁end", "tool▁call▁begin"))
_DEEPSEEK += tuple(f"<｜{name}｜>" for name in ("tool▁call▁end", "tool▁sep", "tool▁outputs▁begin", "tool▁outputs▁end", "tool▁output▁end"))

FAMILIES = {
    "chatml": Family("bytes", None, "<|im_end|>", "<|im_end|>", _IM),
    "llama2": Family("pieces", "<s>", "</s>", " </s>"),
    "llama3": Family("bytes", "<|begin_of_text|>", "<|eot_id|>", "<|eot_id|>", _LLAMA3),
    "llama31": Family("bytes", "<|begin_of_text|>", "<|eot_id|>", "<|eot_id|>", _LLAMA3),
    "mistral": Family("pieces", "<s>", "</s>", "</s>", ("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]")),
    "qwen25": Family("bytes", None, "<|im_end|>", "<|im_end|>", (*_IM, "<|endoftext|>", "<tool_call>", "</tool_call>")),
    "qwen3": Family("bytes", None, "<|im_end|>", "<|im_end|>", (*_IM, "<tool_call>", "</tool_call>", "<think>", "</think>")),
    "gemma": Family("pieces", "<bos>", "<eos>", "<end_of_turn>", ("<start_of_turn>", "<end_of_turn>")),
    "phi3": Family("pieces", "<s>", "<|endoftext|>", "<|end|>", ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")),
    "deepseek": Family("bytes", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>", _DEEPSEEK),
    "deepseek_v2": Family("bytes", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "zephyr": Family("pieces", "<s>", "</s>", "</s>"),
    "vicuna": Family("pieces", "<s>", "</s>", "</s>"),
    "alpaca": Family("pieces", "<s>", "</s>", "</s>"),
    "stripping": Family("bytes", None, "<|endoftext|>", ""),
    "generation": Family("bytes", None, "<|im_end|>", "<|im_end|>", _IM),
}
"""By the name of the template. ``kind``: BPE on bytes (GPT-2, Llama 3, Qwen), or on characters with ▁ for spaces (Llama 2)."""


def chat_tokenizer(name: str, *, trim_offsets: bool = False) -> Any:
    """A tokenizer with the template ``templates/NAME.jinja``; padding is its end token."""
    family = FAMILIES[name]
    tokenizer = plain_tokenizer(family.kind, family.bos, family.eos, family.others, trim_offsets)
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8").removesuffix("\n")
    return tokenizer


def plain_tokenizer(kind: str, bos: str | None, eos: str | None, others: tuple[str, ...] = (), trim_offsets: bool = False) -> Any:
    """One without a template."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    special = list(dict.fromkeys(token for token in (bos, eos, *others) if token))
    backend = Tokenizer.from_str(_trained(kind, trim_offsets))
    backend.add_special_tokens(special)
    named = {key: value for key, value in (("bos_token", bos), ("eos_token", eos), ("pad_token", eos)) if value}
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **named)


@functools.cache
def _trained(kind: str, trim_offsets: bool) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    if kind == "bytes":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim_offsets)
        backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
        backend.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        backend.train_from_iterator(_TEXTS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False))
        return backend.to_str()
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=["<unk>", *pieces], show_progress=False)
    backend.train_from_iterator([text for text in _TEXTS if text.isascii()] + ["你好"] * 8, trainer)
    return backend.to_str()
