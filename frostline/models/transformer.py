"""A pre-norm Transformer encoder from zero, for text and (as a small ViT) for images.

Each block computes ``x + attention(norm(x))`` and then ``x + mlp(norm(x))``; a norm before the head ends the residual
stream. Attention is softmax(QKᵀ / √d) V over real positions only.

Vaswani et al., "Attention is all you need", 2017; norm first: Xiong et al., "On layer normalization in the Transformer
architecture", 2020; patches of images as tokens: Dosovitskiy et al., "An image is worth 16x16 words", 2021. Positions are
learned. Weights start from N(0, 0.02²), biases at zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from frostline.errors import ModelError
from frostline.models.head import build_head
from frostline.models.net import Net
from frostline.models.pool import Pool

_HEAD_WIDTH = 64
_SMALLEST_GRID, _LARGEST_GRID = 4, 14  # patches per side: enough to attend to, and no more than ViT has at 224 pixels
_SMALLEST_PATCH = 4


class Block(nn.Module):
    """One pre-norm layer; ``mask`` (rows, 1, 1, tokens) is True at real positions."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.heads = _heads(width)
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.dropout(self.attend(self.attention_norm(x), mask))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        rows, tokens, width = x.shape
        qkv = self.qkv(x).view(rows, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (rows, heads, tokens, width / heads)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.projection(mixed.transpose(1, 2).reshape(rows, tokens, width))


class _Encoder(nn.Module):
    """What stands behind the embeddings: the blocks, the norm, the pool and the head."""

    def add_blocks(self, net: Net) -> None:
        """The last part of a subclass's set-up, and fresh weights for all of it: layers are drawn in the order of the network."""
        self.dropout = nn.Dropout(net.dropout)
        self.blocks = nn.ModuleList(Block(net.width, net.dropout) for _ in range(net.depth))
        self.norm = nn.LayerNorm(net.width)
        self.pool = Pool(net.pool or "mean", net.width)
        self.head = build_head(list(net.head), net.width, net.outputs)
        _initialise(self)

    def encode(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)


class TextTransformer(_Encoder):
    """``forward(input_ids, attention_mask) → logits``; padding stands on the right."""

    def __init__(self, net: Net, vocabulary: int, max_length: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, net.width, padding_idx=0)
        self.positions = nn.Embedding(max_length, net.width)
        self.add_blocks(net)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = input_ids.shape[1]
        if tokens > self.positions.num_embeddings:
            raise ModelError(
                f"input_ids hold {tokens!r} tokens a row, expected at most {self.positions.num_embeddings}: "
                f"cut the texts, or train with data.max_length={tokens}"
            )
        x = self.tokens(input_ids) + self.positions(torch.arange(tokens, device=input_ids.device))
        x = self.encode(x, attention_mask.bool()[:, None, None, :])
        return self.head(self.pool(x, attention_mask))


class ImageTransformer(_Encoder):
    """``forward(pixel_values (rows, channels, size, size)) → logits``; a class token stands first where the pool is cls."""

    def __init__(self, net: Net, size: int, channels: int) -> None:
        super().__init__()
        self.size = size
        patch = patch_of(size)
        count = (size // patch) ** 2
        self.patches = nn.Conv2d(channels, net.width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, net.width)) if net.pool == "cls" else None
        self.positions = nn.Parameter(torch.empty(1, count + (net.pool == "cls"), net.width))
        self.add_blocks(net)

    def forward(self, pixel_values: Tensor) -> Tensor:
        if pixel_values.shape[-2:] != (self.size, self.size):
            raise ModelError(
                f"pixel_values have the shape {tuple(pixel_values.shape)!r}, expected images of {self.size} x {self.size} pixels"
            )
        x = self.patches(pixel_values).flatten(2).transpose(1, 2)  # (rows, patches, width)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)
        return self.head(self.pool(self.encode(x + self.positions, None)))


def build_transformer(net: Net, vocabulary: int, max_length: int) -> nn.Module:
    """A Transformer encoder for text with fresh weights; ``net.pool`` None: the mean."""
    return TextTransformer(net, vocabulary, max_length)


def build_vit(net: Net, size: int, channels: int = 3) -> nn.Module:
    """A Transformer encoder over the patches of an image, with fresh weights; ``net.pool`` None: the mean."""
    return ImageTransformer(net, size, channels)


def patch_of(size: int) -> int:
    """The side of a patch: the smallest from 4 pixels on that divides ``size`` into at most 14 a side.

    >>> patch_of(28), patch_of(224)
    (4, 16)
    """
    for patch in range(_SMALLEST_PATCH, size // _SMALLEST_GRID + 1):
        if size % patch == 0 and size // patch <= _LARGEST_GRID:
            return patch
    raise ModelError(
        f"data.size got {size!r}, which cannot be cut into patches; expected a multiple of 8, as in data.size={patchable(size)}"
    )


def patchable(size: int) -> int:
    """The nearest size below that can be cut into patches."""
    return max(_SMALLEST_GRID * _SMALLEST_PATCH, size // 8 * 8)


def _heads(width: int) -> int:
    """About one attention head for 64 features, and a divisor of the width."""
    return next(count for count in range(max(1, width // _HEAD_WIDTH), 0, -1) if width % count == 0)


@torch.no_grad()
def _initialise(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and not name.startswith("pool."):  # the query of attention pooling starts at zero
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
            if module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()
    for name, parameter in network.named_parameters(recurse=False):
        if name in ("positions", "class_token"):
            nn.init.normal_(parameter, std=0.02)
