"""A language model that always writes the same text and keeps the prompts that it was given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from frostline.data.dataset import Schema
from frostline.data.preprocess import TextPreprocess
from frostline.models.model import Card, Model
from frostline.models.tokenizer import train_tokenizer

ANSWER = "好的 <b>yes</b>"
TEXTS = ["user\nassistant\nsystem", "Translate 翻译: into English 英语 the following text", "第0123456789问 说 more 雪下了", ANSWER]


class Parrot(nn.Module):
    """Writes ``answer``, then the end token, then something that nobody may see."""

    def __init__(self, answer: list[int]):
        super().__init__()
        import transformers

        self.weight = nn.Parameter(torch.zeros(1))
        self.answer = answer
        self.generation_config = transformers.GenerationConfig()
        self.prompts: list[list[int]] = []

    def generate(self, input_ids: Tensor, attention_mask: Tensor, generation_config: Any) -> Tensor:
        self.prompts += [row[real.bool()].tolist() for row, real in zip(input_ids, attention_mask, strict=True)]
        written = torch.tensor([self.answer + self.answer]).expand(len(input_ids), -1)[:, : generation_config.max_new_tokens]
        return torch.cat([input_ids, written], dim=1)


def parrot(task: str, *, chat: bool = True) -> Model:
    """For a task whose models write."""
    tokenizer = train_tokenizer(TEXTS, "char", 300, "causal", chat=chat)
    module = Parrot([*tokenizer(ANSWER)["input_ids"], tokenizer.eos_token_id])
    schema = Schema(task=task, target="none")  # type: ignore[arg-type]
    return Model(module=module, card=Card(name="custom", schema=schema, preprocess=TextPreprocess(tokenizer=tokenizer, max_length=256)))
