from __future__ import annotations

import pytest
import torch

from frostline.errors import ModelError
from frostline.models.net import Net
from frostline.models.rnn import build_rnn

IDS = torch.tensor([[2, 5, 4, 6, 3], [2, 4, 5, 0, 0], [2, 0, 0, 0, 0]])


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_like_torch_on_each_row_alone(kind: str) -> None:
    torch.manual_seed(0)
    network = build_rnn(kind, Net(outputs=3, width=8, depth=2), 10).double().eval()
    got = network(IDS, (IDS > 0).long())
    for row, ids in enumerate(IDS):
        x = network.embedding(ids[ids > 0])[None]
        for block in network.blocks:
            x, state = block(x)
        last = state[0] if kind == "lstm" else state
        torch.testing.assert_close(got[row], network.head(torch.cat([last[0, 0], last[1, 0]])), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("pool", [None, "cls", "mean", "max", "attention"])
def test_padding_takes_no_part(kind: str, pool: str | None) -> None:
    torch.manual_seed(0)
    network = build_rnn(kind, Net(outputs=2, width=8, depth=2, pool=pool, head=("dense 4 relu",)), 10).double().eval()
    longer = torch.nn.functional.pad(IDS, (0, 7))
    torch.testing.assert_close(network(longer, (longer > 0).long()), network(IDS, (IDS > 0).long()), rtol=1e-12, atol=1e-12)


def test_every_parameter_learns() -> None:
    network = build_rnn("gru", Net(outputs=2, width=8, depth=3, pool="attention"), 10)
    network(IDS, (IDS > 0).long()).square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


def test_the_seed_decides_the_weights() -> None:
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(build_rnn("lstm", Net(outputs=2, width=8), 10).state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_bad_sizes() -> None:
    with pytest.raises(ModelError, match=r"model.width got 7, expected an even number"):
        build_rnn("gru", Net(outputs=2, width=7), 10)
    with pytest.raises(ModelError, match=r"model.depth got 0, expected a whole number from 1 on"):
        Net(outputs=2, depth=0)
    with pytest.raises(ModelError, match=r"model.dropout got 1.0"):
        Net(outputs=2, dropout=1.0)
