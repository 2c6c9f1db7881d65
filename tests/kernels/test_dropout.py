from __future__ import annotations

import pytest
import torch

from frostline.kernels.dropout import kept, rounded

CPU = torch.device("cpu")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_the_share_is_dropped_each_element_for_itself(share: float) -> None:
    torch.manual_seed(0)
    mask = kept((1001, 999), share, CPU)
    deviation = (share * (1 - share) / mask.numel()) ** 0.5
    assert mask.dtype == torch.bool and mask.shape == (1001, 999)
    assert abs(float((~mask).double().mean()) - rounded(share)) <= 5 * deviation
    if share:
        for shift in (1, 2, 3, 4, 999):  # elements that are drawn together are independent too
            both = float((~mask.flatten()[shift:] & ~mask.flatten()[:-shift]).double().mean())
            assert abs(both - share**2) < 10 * deviation + 1e-5


def test_the_same_seed_drops_the_same() -> None:
    torch.manual_seed(3)
    first = kept((10, 7), 0.3, CPU)
    torch.manual_seed(3)
    assert torch.equal(first, kept((10, 7), 0.3, CPU)) and not torch.equal(first, kept((10, 7), 0.3, CPU))


def test_a_share_is_rounded_to_what_is_drawn() -> None:
    assert rounded(0.5) == 0.5 and abs(rounded(0.1) - 0.1) < 1e-5 and rounded(1.0) < 1
