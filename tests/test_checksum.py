"""Any one changed bit changes the checksum, for every type and size."""

import pytest
import torch

from frostline.checksum import row_sums


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("width", [1, 3, 8])
def test_one_changed_bit_is_seen(dtype, width):
    rows = torch.randint(0, 2, (4, width), generator=torch.Generator().manual_seed(0)).to(dtype)
    before = row_sums(rows)
    rows[2].view(torch.uint8)[0] ^= 1
    assert ((row_sums(rows) != before) == torch.tensor([False, False, True, False])).all()


def test_layout_does_not_matter():
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(row_sums(images), row_sums(images.contiguous(memory_format=torch.channels_last)))
