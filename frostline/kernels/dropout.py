"""Which numbers are kept by dropout, from few random bits.

PyTorch draws a 53-bit number for each mask element on a CPU, one after the other: 12 ms a million. Sixteen bits decide as well:
a 64-bit draw of the same generator serves four elements (1 ms a million), so runs are seeded and resumed as before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

STEPS = 2**16
"""That shares are counted in."""


def rounded(share: float) -> float:
    """The multiple of 1/65536 nearest to a share of dropped numbers: what is drawn, so what the kept ones are scaled for.

    >>> round(rounded(0.1), 6), rounded(0.5)
    (0.100006, 0.5)
    """
    return min(round(share * STEPS), STEPS - 1) / STEPS


def kept(shape: Sequence[int], share: float, device: torch.device) -> Tensor:
    """A Boolean mask, False for ``share`` (rounded) of its elements, each drawn for itself."""
    count = torch.Size(shape).numel()
    bits = torch.empty((count + 3) // 4, dtype=torch.int64, device=device).random_(-(2**63), None)
    return (bits.view(torch.int16)[:count] >= int(rounded(share) * STEPS) - STEPS // 2).view(*shape)
