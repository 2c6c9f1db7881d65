"""Bidirectional LSTM and GRU classifiers for text.

Embedding → ``depth`` bidirectional layers → one vector → head. The rows of a batch are packed, so that no step is spent on
padding and the backward direction starts at a row's last real token: the result does not depend on how far a batch is padded.

LSTM: Hochreiter & Schmidhuber, "Long short-term memory", 1997; GRU: Cho et al., "Learning phrase representations using RNN
encoder–decoder", 2014; both directions: Schuster & Paliwal, "Bidirectional recurrent neural networks", 1997. Each direction
has half of ``width`` units, so that ``width`` features go from layer to layer. Each layer is a module of its own
(``blocks.N``), because layers are the units that freeze and thaw.
"""

from __future__ import annotations

from torch import Tensor, cat, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from frostline.errors import ModelError
from frostline.models.head import build_head
from frostline.models.net import Net
from frostline.models.pool import Pool


class RecurrentClassifier(nn.Module):
    """``forward(input_ids, attention_mask) → logits``; padding stands on the right."""

    def __init__(self, kind: str, net: Net, vocabulary: int) -> None:
        super().__init__()
        if net.width % 2:
            raise ModelError(f"model.width got {net.width!r}, expected an even number for {kind}: half of it for each direction")
        layer = {"lstm": nn.LSTM, "gru": nn.GRU}[kind]
        self.embedding = nn.Embedding(vocabulary, net.width, padding_idx=0)
        self.dropout = nn.Dropout(net.dropout)
        self.blocks = nn.ModuleList(layer(net.width, net.width // 2, batch_first=True, bidirectional=True) for _ in range(net.depth))
        self.pool = Pool(net.pool, net.width) if net.pool else None
        self.head = build_head(list(net.head), net.width, net.outputs)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        lengths = attention_mask.sum(1).clamp(min=1).cpu()
        packed = pack_padded_sequence(self.embedding(input_ids), lengths, batch_first=True, enforce_sorted=False)
        for block in self.blocks:
            packed, state = block(PackedSequence(self.dropout(packed.data), *packed[1:]))
        if self.pool is None:
            last = state[0] if isinstance(state, tuple) else state  # (2 directions, rows, width / 2)
            features = cat([last[0], last[1]], dim=-1)
        else:
            hidden, _ = pad_packed_sequence(packed, batch_first=True, total_length=input_ids.shape[1])
            features = self.pool(hidden, attention_mask)
        return self.head(features)


def build_rnn(kind: str, net: Net, vocabulary: int) -> nn.Module:
    """A bidirectional ``lstm`` or ``gru`` classifier with fresh weights; ``net.pool`` None: the last states of both directions."""
    if kind not in ("lstm", "gru"):
        raise ModelError(f"model.name got {kind!r}, expected lstm or gru")
    return RecurrentClassifier(kind, net, vocabulary)
