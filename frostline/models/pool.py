"""Pool: the features of all positions become one vector, and padding never takes part.

With hidden states ``h_t`` and a mask ``m_t`` that is 1 for real positions and 0 for padding:

``cls``        h_0, for encoders whose first position stands for the whole
``mean``       Σ m_t h_t / Σ m_t   (Reimers & Gurevych, "Sentence-BERT", 2019)
``max``        max over t with m_t = 1, per feature   (Collobert et al., "Natural language processing (almost) from scratch", 2011)
``attention``  Σ a_t h_t with a = softmax(w·h + log m), w learned   (Yang et al., "Hierarchical attention networks", 2016)

w starts at zero, so attention pooling starts as the mean and needs no random number.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from frostline.errors import ModelError

POOLS = ("cls", "mean", "max", "attention")


class Pool(nn.Module):
    """``forward(hidden (rows, tokens, width), attention_mask (rows, tokens) or None) → (rows, width)``."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        if kind not in POOLS:
            raise ModelError(f"model.pool got {kind!r}, expected one of {', '.join(POOLS)}, as in model.pool=mean")
        self.kind = kind
        if kind == "attention":
            self.query = nn.Linear(width, 1, bias=False)
            nn.init.zeros_(self.query.weight)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        if self.kind == "cls":
            return hidden[:, 0]
        if attention_mask is None:
            attention_mask = hidden.new_ones(hidden.shape[:2])
        real = attention_mask.bool().unsqueeze(-1)  # (rows, tokens, 1)
        if self.kind == "max":
            largest = hidden.masked_fill(~real, -torch.inf).amax(1)
            return largest.masked_fill(~real.any(1), 0.0)  # a row of padding alone
        if self.kind == "mean":
            return hidden.masked_fill(~real, 0.0).sum(1) / real.sum(1).clamp(min=1)
        scores = self.query(hidden).masked_fill(~real, torch.finfo(hidden.dtype).min)
        weights = scores.softmax(1).masked_fill(~real, 0.0)
        return (weights * hidden.masked_fill(~real, 0.0)).sum(1)

    def extra_repr(self) -> str:
        return self.kind
