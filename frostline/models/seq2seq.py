"""An LSTM encoder-decoder with attention, for translation and summarisation from zero.

The encoder is a bidirectional LSTM over the source; the decoder an LSTM that starts from the encoder's last states and at each
position t looks back at all source positions s (Luong et al., "Effective approaches to attention-based neural machine
translation", 2015, the global attention with the general score):

    a_ts = softmax_s(h_t W e_s)        c_t = Σ_s a_ts e_s        o_t = tanh(V [c_t; h_t])        logits_t = E o_t

Luong's o_t is not fed back into the next step, so that training runs the decoder over all positions at once. E is the embedding
itself (Press & Wolf, "Using the output embedding to improve language models", 2017): source, target and output share it.
Source rows are packed, so padding takes no step, and attention does not see it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from frostline.errors import ModelError
from frostline.models.net import check_size

WIDTH = 256
DEPTH = 1


@dataclass(kw_only=True)
class Seq2SeqOutput:
    """As the classes of ``transformers`` give it."""

    logits: Tensor


@dataclass(kw_only=True)
class DecoderState:
    """Where a row's decoder stands; its rows can be picked and repeated, for beams."""

    encoded: Tensor
    """(rows, source tokens, width)."""
    real: Tensor
    """bool (rows, source tokens)."""
    hidden: Tensor
    """(layers, rows, width)."""
    cell: Tensor

    def pick(self, rows: Tensor) -> DecoderState:
        """The state of these rows, in this order; one may stand several times."""
        return DecoderState(
            encoded=self.encoded[rows], real=self.real[rows], hidden=self.hidden[:, rows].contiguous(), cell=self.cell[:, rows].contiguous()
        )


class Body(nn.Module):
    """All but the output layer: ``forward(…) → o`` (rows, target tokens, width)."""

    def __init__(self, vocabulary: int, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        between = dropout if depth > 1 else 0.0
        self.embedding = nn.Embedding(vocabulary, width)
        self.encoder = nn.LSTM(width, width // 2, depth, batch_first=True, bidirectional=True, dropout=between)
        self.decoder = nn.LSTM(width, width, depth, batch_first=True, dropout=between)
        self.score = nn.Linear(width, width, bias=False)
        self.combine = nn.Linear(2 * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)  # it is the output layer too: logits of about 1

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor, decoder_attention_mask: Tensor | None = None
    ) -> Tensor:
        # Target padding stands behind the real tokens, and the decoder runs forwards only: it needs no mask
        return self.decode(decoder_input_ids, self.encode(input_ids, attention_mask))[0]

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> DecoderState:
        """The source, read; a row without tokens counts as one of its padding."""
        real = attention_mask.bool()
        lengths = real.sum(1).clamp(min=1)
        real = torch.arange(input_ids.shape[1], device=real.device) < lengths[:, None]
        embedded = self.dropout(self.embedding(input_ids))
        packed, (hidden, cell) = self.encoder(pack_padded_sequence(embedded, lengths.cpu(), batch_first=True, enforce_sorted=False))
        encoded, _ = pad_packed_sequence(packed, batch_first=True, total_length=input_ids.shape[1])
        return DecoderState(encoded=encoded, real=real, hidden=_join(hidden), cell=_join(cell))

    def decode(self, decoder_input_ids: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """o of these target tokens, and the state behind them."""
        h, (hidden, cell) = self.decoder(self.dropout(self.embedding(decoder_input_ids)), (state.hidden, state.cell))
        scores = self.score(h) @ state.encoded.transpose(1, 2)  # (rows, target tokens, source tokens)
        weights = scores.masked_fill(~state.real[:, None, :], -torch.inf).softmax(-1)
        o = torch.tanh(self.combine(torch.cat([weights @ state.encoded, h], dim=-1)))
        return self.dropout(o), DecoderState(encoded=state.encoded, real=state.real, hidden=hidden, cell=cell)


class Seq2Seq(nn.Module):
    """``forward(input_ids, attention_mask, decoder_input_ids) → .logits`` (rows, target tokens, vocabulary); padding on the right."""

    def __init__(self, vocabulary: int, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.model = Body(vocabulary, width, depth, dropout)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.model.embedding.weight

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor, decoder_attention_mask: Tensor | None = None
    ) -> Seq2SeqOutput:
        return Seq2SeqOutput(logits=self.lm_head(self.model(input_ids, attention_mask, decoder_input_ids, decoder_attention_mask)))


def build_seq2seq(*, vocabulary: int, width: int, depth: int, dropout: float) -> nn.Module:
    """An LSTM encoder-decoder with fresh weights."""
    check_size("width", width, 2)
    check_size("depth", depth, 1)
    if width % 2:
        raise ModelError(f"model.width got {width!r}, expected an even number for seq2seq: half of it for each direction")
    if not 0 <= dropout < 1:
        raise ModelError(f"model.dropout got {dropout!r}, expected a share from 0 to below 1, as in model.dropout=0.1")
    return Seq2Seq(vocabulary, width, depth, dropout)


def _join(state: Tensor) -> Tensor:
    """The two directions of each layer side by side: (2 · layers, rows, width / 2) → (layers, rows, width)."""
    layers = state.unflatten(0, (-1, 2))  # (layers, 2, rows, width / 2)
    return torch.cat([layers[:, 0], layers[:, 1]], dim=-1)
