"""Two small models that hold all that can go wrong when a part is frozen: norms with and without buffers, dropout, embeddings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from frostline.data.dataset import Schema
from frostline.data.preprocess import ImagePreprocess, TextPreprocess
from frostline.models.model import Card, Model


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(4, 4, 3, padding=1, groups=groups, bias=False),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.Dropout(0.4),
                nn.BatchNorm2d(4, affine=False),
            )
            for groups in (1, 2, 1)
        )
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * 6 * 6, 3))

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = self.stem(pixel_values)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.head(self.norm(hidden))


class TextBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 16)
        self.dropout = nn.Dropout(0.3)
        self.down = nn.Linear(16, 8)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.down(self.dropout(torch.relu(self.up(self.norm(hidden)))))


class TextNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(TextBlock() for _ in range(3))
        self.positions = nn.Embedding(7, 8)  # registered late and read first, as MPNet's relative positions are
        self.final_norm = nn.LayerNorm(8)
        self.dropout = nn.Dropout(0.3)
        self.classifier = nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.embedding(input_ids) + self.positions(torch.arange(input_ids.shape[1]))
        for layer in self.layers:
            hidden = layer(hidden)
        mask = attention_mask[:, :, None].to(hidden.dtype)
        return self.classifier(self.dropout((self.final_norm(hidden) * mask).sum(1) / mask.sum(1)))


def image_model(pretrained: bool = True) -> Model:
    torch.manual_seed(0)
    schema = Schema(task="image-classification", labels=("猫", "dog", "fish"))
    card = Card(name="convnet", schema=schema, preprocess=ImagePreprocess(size=6), pretrained=pretrained)
    return Model(module=ConvNet(), card=card, blocks=["blocks.0", "blocks.1", "blocks.2"], head=["head"])


def text_model(pretrained: bool = True) -> Model:
    torch.manual_seed(0)
    schema = Schema(task="text-classification", labels=("好", "bad", "so so"))
    card = Card(name="textnet", schema=schema, preprocess=TextPreprocess(tokenizer=None), pretrained=pretrained)
    return Model(module=TextNet(), card=card, blocks=["layers.0", "layers.1", "layers.2"], head=["classifier"])


def batch_of(model: Model, rows: int, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if model.card.name == "convnet":
        return {"pixel_values": torch.randn(rows, 3, 6, 6, generator=generator)}
    mask = (torch.arange(7) < torch.randint(1, 8, (rows, 1), generator=generator)).long()
    return {"input_ids": torch.randint(20, (rows, 7), generator=generator), "attention_mask": mask}


@pytest.fixture(params=[image_model, text_model], ids=["images", "text"])
def make_model(request: pytest.FixtureRequest) -> Callable[..., Model]:
    return request.param


@pytest.fixture
def make_image_model() -> Callable[..., Model]:
    return image_model


@pytest.fixture
def make_text_model() -> Callable[..., Model]:
    return text_model


@pytest.fixture
def make_batch() -> Callable[..., dict[str, Tensor]]:
    return batch_of
