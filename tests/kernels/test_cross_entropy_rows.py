"""Cross-entropy of rows of logits in C++: PyTorch's numbers, whatever the rows hold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from frostline.kernels import cross_entropy_rows

pytestmark = pytest.mark.skipif(not cross_entropy_rows.takes(torch.zeros(1)), reason="there is no C++ compiler here")


def computed(logits: Tensor, labels: Tensor, slopes: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses, whether right, log sums, and what the logits have become."""
    rows, z = len(logits), logits.clone()
    nll, log_sums, correct = torch.empty(rows), torch.empty(rows), torch.empty(rows, dtype=torch.bool)
    cross_entropy_rows.losses(z, labels, nll, correct, log_sums, slopes=slopes)
    return nll, correct, log_sums, z


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("columns", [1, 2, 31, 32, 33, 1000, 4097])
def test_equals_pytorch_s(columns: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(columns)
    logits = (torch.randn(70, columns, generator=generator) * torch.logspace(-2, 1.5, 70)[:, None]).to(dtype)
    labels = torch.randint(0, columns, (70,), generator=generator)
    nll, correct, log_sums, slopes = computed(logits, labels)
    exact = logits.double()
    probabilities = exact.softmax(1)
    torch.testing.assert_close(nll.double(), functional.cross_entropy(exact, labels, reduction="none"), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(log_sums.double(), exact.logsumexp(1), rtol=1e-6, atol=1e-6)
    assert torch.equal(correct, logits.argmax(1) == labels)
    expected = probabilities - functional.one_hot(labels, columns)
    near = {"rtol": 1e-5, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 5e-3, "atol": 1e-7}
    torch.testing.assert_close(slopes.double(), expected, **near)
    factors, z = torch.randn(70, generator=generator), logits.clone()
    cross_entropy_rows.slopes(z, labels, log_sums, factors)
    torch.testing.assert_close(z.double(), expected * factors.double()[:, None], **{**near, "atol": 1e-6})


def test_without_slopes_the_logits_stay() -> None:
    logits = torch.randn(3, 50)
    assert torch.equal(computed(logits, torch.tensor([1, 2, 3]), slopes=False)[3], logits)


def test_of_equal_logits_the_first_counts() -> None:
    logits = torch.zeros(3, 100)
    logits[:, [40, 70]] = 1.0
    assert computed(logits, torch.tensor([40, 70, 3]))[1].tolist() == [True, False, False]


def test_far_logits_and_such_as_are_not_numbers() -> None:
    logits = torch.full((5, 64), -1e4)
    logits[0, 5] = 1e4
    logits[1, 7] = -torch.inf
    logits[2, :] = -torch.inf
    logits[2, 9] = 3.0
    logits[3, 11] = torch.nan
    logits[4, 13] = torch.inf
    labels = torch.tensor([5, 0, 9, 0, 13])
    nll, correct, _, slopes = computed(logits, labels)
    expected = functional.cross_entropy(logits, labels, reduction="none")
    assert nll[[0, 2]].tolist() == [0.0, 0.0] and correct[[0, 2]].tolist() == [True, True]
    torch.testing.assert_close(nll[:3], expected[:3])
    assert nll[3:].isnan().all() and slopes[3].isnan().any() and slopes[:3].isfinite().all(), "what went wrong is not hidden"


def test_other_types_and_devices_are_not_taken() -> None:
    assert not cross_entropy_rows.takes(torch.zeros(1, dtype=torch.float64)) and not cross_entropy_rows.takes(torch.zeros(1, device="meta"))
