"""Two small text networks from zero: an MLP on the mean embedding, and a convolution over words.

``mlp``: the mean of the token embeddings, then ``depth`` hidden layers (Iyyer et al., "Deep unordered composition rivals
syntactic methods for text classification", 2015). ``cnn``: filters over 3, 4 and 5 neighbouring tokens, each followed by its
largest response in the text (Kim, "Convolutional neural networks for sentence classification", 2014). Neither depends on how
far a batch is padded: what stands beyond a text is zeros, as if the batch ended there.
"""

from __future__ import annotations

from torch import Tensor, cat, nn
from torch.nn.functional import pad

from frostline.models.head import build_head
from frostline.models.net import Net
from frostline.models.pool import Pool

_FILTERS = (3, 4, 5)


class BagClassifier(nn.Module):
    """``forward(input_ids, attention_mask) → logits``: pooled embeddings, then hidden layers."""

    def __init__(self, net: Net, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, net.width, padding_idx=0)
        self.pool = Pool(net.pool or "mean", net.width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(net.width, net.width), nn.ReLU(), nn.Dropout(net.dropout)) for _ in range(net.depth)
        )
        self.head = build_head(list(net.head), net.width, net.outputs)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        features = self.pool(self.embedding(input_ids), attention_mask)
        for block in self.blocks:
            features = block(features)
        return self.head(features)


class TextConvolution(nn.Module):
    """``forward(input_ids, attention_mask) → logits``: filters of three lengths, ``width`` of each, the largest response of each."""

    def __init__(self, net: Net, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, net.width, padding_idx=0)
        self.convolutions = nn.ModuleList(nn.Conv1d(net.width, net.width, length) for length in _FILTERS)
        self.pool = Pool(net.pool or "max", len(_FILTERS) * net.width)
        self.dropout = nn.Dropout(net.dropout)
        self.head = build_head(list(net.head), len(_FILTERS) * net.width, net.outputs)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        embedded = self.embedding(input_ids) * attention_mask.unsqueeze(-1)
        rows = embedded.transpose(1, 2)  # (rows, width, tokens)
        responses = [
            convolution(pad(rows, ((length - 1) // 2, length // 2))).relu()
            for length, convolution in zip(_FILTERS, self.convolutions, strict=True)
        ]
        features = self.pool(cat(responses, dim=1).transpose(1, 2), attention_mask)
        return self.head(self.dropout(features))


def build_bag(net: Net, vocabulary: int) -> nn.Module:
    """An MLP on pooled embeddings with fresh weights; ``net.pool`` None: the mean."""
    return BagClassifier(net, vocabulary)


def build_text_cnn(net: Net, vocabulary: int) -> nn.Module:
    """A one-layer convolutional network over tokens with fresh weights; ``net.pool`` None: the largest response."""
    return TextConvolution(net, vocabulary)
