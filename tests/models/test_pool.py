from __future__ import annotations

import pytest
import torch

from frostline.errors import ModelError
from frostline.models.pool import POOLS, Pool


def _hidden() -> tuple[torch.Tensor, torch.Tensor]:
    hidden = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]])
    return hidden, mask


def test_references() -> None:
    hidden, mask = _hidden()
    rows = [hidden[0], hidden[1, :3], hidden[2, :1]]
    torch.testing.assert_close(Pool("cls", 8)(hidden, mask), torch.stack([row[0] for row in rows]))
    torch.testing.assert_close(Pool("mean", 8)(hidden, mask), torch.stack([row.mean(0) for row in rows]))
    torch.testing.assert_close(Pool("max", 8)(hidden, mask), torch.stack([row.max(0).values for row in rows]))
    pool = Pool("attention", 8).double()
    torch.testing.assert_close(pool(hidden, mask), torch.stack([row.mean(0) for row in rows]))  # the query starts at zero
    torch.nn.init.normal_(pool.query.weight)
    weights = [(row @ pool.query.weight[0]).softmax(0) for row in rows]
    torch.testing.assert_close(pool(hidden, mask), torch.stack([weight @ row for weight, row in zip(weights, rows, strict=True)]))


@pytest.mark.parametrize("kind", POOLS)
def test_padding_takes_no_part(kind: str) -> None:
    hidden, mask = _hidden()
    pool = Pool(kind, 8).double()
    for parameter in pool.parameters():
        torch.nn.init.normal_(parameter)
    longer = torch.cat([hidden, torch.full((3, 5, 8), 1e30, dtype=torch.float64)], dim=1)
    longer[~torch.nn.functional.pad(mask, (0, 5)).bool()] = 1e30
    torch.testing.assert_close(pool(longer, torch.nn.functional.pad(mask, (0, 5))), pool(hidden, mask), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["mean", "max", "attention"])
def test_a_row_of_padding_alone_is_zeros_with_a_finite_gradient(kind: str) -> None:
    hidden = torch.randn(2, 4, 8, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]])
    pooled = Pool(kind, 8)(hidden, mask)
    pooled.sum().backward()
    assert not pooled[1].any()
    assert hidden.grad is not None and hidden.grad.isfinite().all()


def test_unknown_kind() -> None:
    with pytest.raises(ModelError, match=r"model.pool got 'median', expected one of cls, mean, max, attention"):
        Pool("median", 8)
