"""Tiny Hugging Face models from configurations, saved to local folders as ``transformers`` saves them, and tiny data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from frostline.data.dataset import Dataset, Schema
from frostline.data.report import DataReport
from frostline.models.hf_module import quiet
from frostline.models.tokenizer import train_tokenizer

IMAGES = Schema(task="image-classification", labels=("猫", "狗", "bird"))
TEXTS = Schema(task="text-classification", labels=("好评", "差评"))
WORDS = ["a good film", "a bad film", "这部电影很好看", "这部电影不好看", "good good good", "好看 不好看"] * 3


def image_config(kind: str) -> Any:
    """The configuration of a network of a few thousand numbers, for images of 32 pixels (dinov2: 28)."""
    import transformers

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    match kind:
        case "vit":
            return transformers.ViTConfig(**small, image_size=32, patch_size=8)
        case "dinov2":
            return transformers.Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
        case "swin":
            return transformers.SwinConfig(image_size=32, patch_size=2, embed_dim=12, depths=[1, 2], num_heads=[2, 2], window_size=4)
        case "convnext":
            return transformers.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1], image_size=32)
        case _:
            return transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])


def image_folder(kind: str, folder: Path) -> Path:
    """A saved image classifier with two labels of its own, and its preprocessor_config.json."""
    from transformers import AutoModelForImageClassification

    torch.manual_seed(1)
    with quiet():
        AutoModelForImageClassification.from_config(image_config(kind)).save_pretrained(folder)
    size = 28 if kind == "dinov2" else 32
    values = {"image_processor_type": "ViTImageProcessor", "size": {"height": size, "width": size}, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    return folder


def text_folder(kind: str, folder: Path, *, body_only: bool = False) -> Path:
    """A saved ``bert`` or ``roberta`` with a small vocabulary of its own."""
    import transformers

    tokenizer = train_tokenizer(WORDS, "word", 100)
    make = transformers.BertConfig if kind == "bert" else transformers.RobertaConfig
    config = make(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=40, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(1)
    auto = transformers.AutoModel if body_only else transformers.AutoModelForSequenceClassification
    with quiet():
        auto.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def image_inputs(size: int, channels: int = 3) -> dict[str, torch.Tensor]:
    """Two images of noise."""
    return {"pixel_values": torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(5))}


def text_inputs() -> dict[str, torch.Tensor]:
    """Two rows of ids, of 5 and 3 tokens."""
    ids = torch.tensor([[2, 5, 4, 6, 3], [2, 4, 5, 0, 0]])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def text_data(**recipe: object) -> Dataset:
    """Two training rows, and a test row of other words."""
    train = pa.table({"id": ["1", "2"], "text": ["好看 good", "难看 bad"], "label": [0, 1]})
    test = pa.table({"id": ["3"], "text": ["秘密 secret"], "label": [0]})
    return Dataset(schema=TEXTS, splits={"train": train, "test": test}, report=DataReport(), recipe=recipe)


def image_data(folder: Path, size: int, mode: str = "RGB") -> Dataset:
    """Three images of noise, a little narrower than high."""
    paths = []
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 255, (size, size - 2) + ((3,) if mode == "RGB" else ()), np.uint8)
        paths.append(str(folder / f"图{index}.png"))
        Image.fromarray(pixels, mode).save(paths[-1])
    table = pa.table({"id": list("abc"), "path": paths, "label": [0, 1, 2]})
    return Dataset(schema=IMAGES, splits={"train": table}, report=DataReport(), recipe={})
