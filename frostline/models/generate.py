"""Writing tokens: greedy, with beams, or sampled; in batches, with a cache, and stopping at the stop tokens.

Greedy decoding takes the likeliest token each time. Beam search keeps the b likeliest beginnings and divides a finished one's
log-probability by its length, lest the short ones always win (Wu et al., "Google's neural machine translation system", 2016,
with exponent 1). Sampling draws from softmax(logits / temperature) with the seed's own generator.

Models of ``transformers`` generate themselves, under settings that say only what is asked for here: what a folder's
generation_config.json adds (a temperature, a repetition penalty) would make the same model write something else in evaluation
and in serving. Prompts are padded on the left there, so that all rows go on at the same position; the mask keeps the padding out.
Rows of like length share a batch. What is written for a row does not depend on its batch mates, up to the rounding of sums.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frostline.errors import ModelError
from frostline.models.hf_module import NO_LIMIT, positions_of
from frostline.models.model import Model, evaluating
from frostline.models.output import decoder_start, writes_from_source
from frostline.models.seq2seq import DecoderState, Seq2Seq

_ROWS_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class _Wish:
    """How to write."""

    new_tokens: int
    stop: tuple[int, ...]
    beams: int
    temperature: float
    pad: int
    start: int | None
    """What an encoder-decoder's target begins with."""


@dataclass(frozen=True, kw_only=True)
class _Space:
    """How many positions there are; what an adapter's virtual tokens take is gone from them already."""

    read: int
    """For a prompt or a source."""
    written: int
    """For what is written."""
    together: bool
    """Whether both come out of the same ones."""


def generate(
    model: Model,
    inputs: dict[str, Tensor] | Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: list[int],
    beams: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[int]]:
    """The new tokens of each row, in the order of the rows, without the stop token that ended it.

    ``inputs``: the ids of prompts (of sources, for an encoder-decoder), as lists or as a batch with its ``attention_mask``.
    ``temperature`` 0: no chance. Adapters in the module take part. Raises ModelError for a prompt with no room behind it.
    """
    for name, value, least in (("max_new_tokens", max_new_tokens, 1), ("beams", beams, 1), ("temperature", temperature, 0)):
        if value < least:
            raise ModelError(f"generate: {name} got {value!r}, expected a number from {least} on, as in {name}={max(least, 1)}")
    if beams > 1 and temperature > 0:
        raise ModelError(f"generate: beams got {beams!r} with temperature {temperature!r}, expected one of them. Set temperature=0")
    rows, module = _rows(inputs), model.module
    if not isinstance(module, Seq2Seq) and not hasattr(module, "generate"):
        raise ModelError(f"generate: the model is a {type(module).__name__!r}, expected a language model, as fl.load gives one for chat")
    tokenizer: Any = model.card.preprocess.tokenizer  # type: ignore[union-attr]
    both = writes_from_source(module)
    wish = _Wish(
        new_tokens=max_new_tokens,
        stop=tuple(stop),
        beams=beams,
        temperature=temperature,
        pad=tokenizer.pad_token_id or 0,
        start=decoder_start(module, tokenizer) if both else None,
    )
    result: list[list[int]] = [[] for _ in rows]
    with torch.no_grad(), evaluating(module), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for group, room in _groups(rows, max_new_tokens, _space(module, both)):
            written = _write(module, [rows[index] for index in group], wish, room)
            for index, tokens in zip(group, written, strict=True):
                result[index] = _until(tokens, stop)
    return result


def _rows(inputs: dict[str, Tensor] | Sequence[Sequence[int]]) -> list[list[int]]:
    """The real tokens of each row. Raises ModelError for a row without any: there is nothing to go on from."""
    if isinstance(inputs, dict):
        pairs = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
        rows = [ids[real].tolist() for ids, real in pairs]
    else:
        rows = [list(row) for row in inputs]
    empty = next((index for index, row in enumerate(rows) if not row), None)
    if empty is not None:
        raise ModelError(
            f"generate: row {empty} got {rows[empty]!r}, expected at least one token. Begin with the tokenizer's bos or eos token"
        )
    return rows


def _space(module: Any, both: bool) -> _Space:
    positions = positions_of(module, decoder=True)
    if positions == NO_LIMIT:
        return _Space(read=NO_LIMIT, written=NO_LIMIT, together=not both)
    if not both:
        left = positions - _virtual_tokens(module)
        return _Space(read=left, written=left, together=True)
    read = positions - _virtual_tokens(module.get_encoder())
    return _Space(read=read, written=positions - _virtual_tokens(module.get_decoder()), together=False)


def _virtual_tokens(module: nn.Module) -> int:
    """Positions that the virtual tokens of an adapter take (see adapt/virtual.py, to the right of here)."""
    return sum(getattr(part, "positions_taken", 0) for part in module.modules())


def _groups(rows: list[list[int]], wanted: int, space: _Space) -> Iterator[tuple[list[int], int]]:
    """(row indices, how many tokens they may write): rows of like length; one that lacks room stands alone, to take none from others."""
    full: list[int] = []
    for index in sorted(range(len(rows)), key=lambda index: len(rows[index])):
        length = len(rows[index])
        room = min(wanted, space.written - (length if space.together else 0))
        if room < 1 or length > space.read:
            raise ModelError(
                f"generate: row {index} got a prompt of {length} tokens, expected fewer than the {space.read} positions that the model "
                f"has for them. Cut it to {space.read - 1} tokens"
            )
        if room < wanted:
            yield [index], room
        else:
            full.append(index)
    for start in range(0, len(full), _ROWS_AT_ONCE):
        yield full[start : start + _ROWS_AT_ONCE], wanted


def _write(module: Any, rows: list[list[int]], wish: _Wish, room: int) -> list[list[int]]:
    width = max(map(len, rows))
    left = wish.start is None  # an encoder reads padding on the right, as in training
    padding = [[0] * (width - len(row)) for row in rows]
    ids = torch.tensor(
        [[wish.pad] * len(pad) + row if left else row + [wish.pad] * len(pad) for row, pad in zip(rows, padding, strict=True)]
    )
    mask = torch.tensor([pad + [1] * len(row) if left else [1] * len(row) + pad for row, pad in zip(rows, padding, strict=True)])
    device = next(module.parameters()).device
    ids, mask = ids.to(device), mask.to(device)
    if isinstance(module, Seq2Seq):
        return _decode(module, module.model.encode(ids, mask), wish, room)
    with _plain_settings(module, wish, room) as settings:
        written = module.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    return written[:, width if left else 1 :].tolist()


@contextlib.contextmanager
def _plain_settings(module: Any, wish: _Wish, room: int) -> Iterator[Any]:
    """The settings; those of the module, which ``transformers`` would mix in, are put aside meanwhile."""
    from transformers import GenerationConfig

    from frostline.models.hf_module import quiet

    options: dict[str, Any] = {"do_sample": wish.temperature > 0, "num_beams": wish.beams, "use_cache": True, "length_penalty": 1.0}
    if wish.temperature > 0:
        options.update(temperature=wish.temperature, top_k=0, top_p=1.0)
    tokens = {"eos_token_id": list(wish.stop) or None, "pad_token_id": wish.pad, "decoder_start_token_id": wish.start}
    settings = GenerationConfig(max_new_tokens=room, **options, **tokens)
    own = module.generation_config
    module.generation_config = GenerationConfig()
    try:
        with quiet():
            yield settings
    finally:
        module.generation_config = own


def _until(tokens: list[int], stop: Sequence[int]) -> list[int]:
    """What stands before the first stop token."""
    end = next((place for place, token in enumerate(tokens) if token in stop), len(tokens))
    return tokens[:end]


def _decode(module: Seq2Seq, state: DecoderState, wish: _Wish, room: int) -> list[list[int]]:
    """The LSTM's own loop: one step for all rows and beams together."""
    rows, beams, device = len(state.real), wish.beams, state.real.device
    state = state.pick(torch.arange(rows, device=device).repeat_interleave(beams))
    written = torch.full((rows * beams, 1), wish.start or 0, device=device)
    scores = torch.full((rows, beams), -torch.inf, device=device)
    scores[:, 0] = 0.0  # all beams are the same at first
    ended = torch.zeros(rows * beams, dtype=torch.bool, device=device)
    stop = torch.tensor(wish.stop or (-1,), device=device)
    for _ in range(room):
        hidden, state = module.model.decode(written[:, -1:], state)
        logits = module.lm_head(hidden[:, 0])
        if wish.temperature > 0:
            token = torch.multinomial((logits / wish.temperature).softmax(-1), 1)[:, 0]
            origin = torch.arange(len(token), device=device)
        else:
            token, origin, scores = _best(logits.log_softmax(-1), scores, written, ended, wish)
            state = state if beams == 1 else state.pick(origin)
        token = torch.where(ended[origin], wish.pad, token)
        written = torch.cat([written[origin], token[:, None]], dim=1)
        ended = ended[origin] | torch.isin(token, stop)
        if ended.all():
            break
    best = (scores / _lengths(written, stop).view(rows, beams)).argmax(1) + torch.arange(rows, device=device) * beams
    return written[best, 1:].tolist()


def _best(logs: Tensor, scores: Tensor, written: Tensor, ended: Tensor, wish: _Wish) -> tuple[Tensor, Tensor, Tensor]:
    """The next token of each beam, the beam that it goes on from, and the new scores; a beam that ended keeps its own."""
    rows, beams = scores.shape
    vocabulary = logs.shape[1]
    only_pad = torch.full_like(logs[:1], -torch.inf)
    only_pad[0, wish.pad] = 0.0
    logs = torch.where(ended[:, None], only_pad, logs)
    total = (scores.view(-1, 1) + logs).view(rows, beams * vocabulary)
    top, place = total.topk(beams)
    origin = (place // vocabulary + torch.arange(rows, device=place.device)[:, None] * beams).view(-1)
    return (place % vocabulary).view(-1), origin, top


def _lengths(written: Tensor, stop: Tensor) -> Tensor:
    """Tokens that each beam wrote, its stop token included."""
    over = torch.isin(written[:, 1:], stop).cumsum(1)
    return ((over == 0) | ((over == 1) & torch.isin(written[:, 1:], stop))).sum(1).clamp(min=1)
