from __future__ import annotations

import pytest
import torch

from frostline.errors import ModelError
from frostline.models.output import body_and_output, trial_inputs
from frostline.models.seq2seq import build_seq2seq


def _network(**options: float) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_seq2seq(**{"vocabulary": 12, "width": 8, "depth": 2, "dropout": 0.1, **options}).eval()  # type: ignore[arg-type]


def test_logits_are_the_output_of_the_body() -> None:
    module = _network()
    assert body_and_output(module) == ("model", "lm_head")
    assert module(**trial_inputs(module)).logits.shape == (2, 3, 12)
    assert module.lm_head.weight is module.model.embedding.weight


def test_padding_and_later_tokens_change_nothing() -> None:
    module = _network()
    inputs = trial_inputs(module)
    both = module(**inputs).logits
    short = {name: value[1:, :2] for name, value in inputs.items()}
    assert torch.allclose(module(**short).logits, both[1:, :2], atol=1e-6)
    inputs["decoder_input_ids"][0, 2] = 9
    assert torch.equal(module(**inputs).logits[0, :2], both[0, :2])


def test_one_step_at_a_time_is_the_same() -> None:
    module = _network()
    inputs = trial_inputs(module)
    state = module.model.encode(inputs["input_ids"], inputs["attention_mask"])
    steps = []
    for place in range(3):
        hidden, state = module.model.decode(inputs["decoder_input_ids"][:, place : place + 1], state)
        steps.append(module.lm_head(hidden))
    assert torch.allclose(torch.cat(steps, 1), module(**inputs).logits, atol=1e-6)


def test_it_learns_to_reverse() -> None:
    module = _network(width=32, depth=1, dropout=0.0).train()
    source = torch.randint(3, 12, (64, 4), generator=torch.Generator().manual_seed(0))
    target = source.flip(1)
    start = torch.full((64, 1), 2)
    optimizer = torch.optim.Adam(module.parameters(), 0.02)
    for _ in range(120):
        logits = module(source, torch.ones_like(source), torch.cat([start, target[:, :-1]], 1)).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2


def test_a_row_without_tokens_gives_numbers() -> None:
    module = _network()
    ids, mask = torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64)
    assert module(ids, mask, ids[:, :1]).logits.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 9}, r"model.width got 9, expected an even number for seq2seq"),
        ({"depth": 0}, r"model.depth got 0, expected a whole number from 1 on"),
        ({"dropout": 1.0}, r"model.dropout got 1.0, expected a share"),
    ],
)
def test_sizes_that_cannot_be(options: dict[str, float], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        _network(**options)
