"""What the tests of whole commands share: small rows, and options that make small networks."""

from __future__ import annotations

import torch

from frostline.data.dataset import Schema
from frostline.data.preprocess import TextPreprocess
from frostline.models.model import Card, Model
from frostline.models.tokenizer import train_tokenizer

IMAGE_OPTIONS = [
    *("--model", "cnn", "model.width=16", "data.size=28", "train.epochs=12", "train.lr=0.01", "train.batch=8"),
    "plan.channels_last=off",  # else it is timed, and the same run again may round otherwise
    "plan.fuse_convolutions=off",
]
TEXT_OPTIONS = ["--model", "gru", "model.width=16", "model.depth=1", "train.epochs=5", "train.lr=0.03", "train.batch=16"]


def review_rows(count: int = 40) -> list[tuple[str, str]]:
    """Chinese and English texts whose label is in their words; no two alike."""
    words = {"好": ["味道很好", "非常满意", "the food is good"], "坏": ["太难吃了", "很失望", "the food is bad"]}
    return [(f"{options[i % 3]}，第 {i} 次", label) for label, options in words.items() for i in range(count)]


def talks(count: int = 12) -> list[dict[str, list[dict[str, str]]]]:
    """Conversations whose answers follow from their questions, of very different lengths; no two alike."""
    answers = ("好的", "yes, 可以", "no")
    return [
        {
            "messages": [
                {"role": "user", "content": f"第{n}问 " + "说 more " * (n % 4 * 4) + answers[n % 3]},
                {"role": "assistant", "content": answers[n % 3]},
            ]
        }
        for n in range(count)
    ]


def llama(schema: Schema, texts: list[str], *, seed: int = 0, max_length: int = 64, chat: bool = True) -> Model:
    """A Llama of a few thousand numbers with a vocabulary of characters, as it is loaded; with one output for a reward."""
    import transformers

    tokenizer = train_tokenizer(texts, "char", 300, "causal", chat=chat)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=128, pad_token_id=tokenizer.pad_token_id, num_labels=1, tie_word_embeddings=True,
    )  # fmt: skip
    reward = schema.task == "reward"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = (transformers.LlamaForSequenceClassification if reward else transformers.LlamaForCausalLM)(config)
    card = Card(name="custom", schema=schema, preprocess=TextPreprocess(tokenizer=tokenizer, max_length=max_length), pretrained=True)
    places = {"head": ["score"]} if reward else {"body": "model", "output": "lm_head"}
    return Model(module=module, card=card, blocks=["model.layers.0", "model.layers.1"], **places)
