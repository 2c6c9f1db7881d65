from __future__ import annotations

import torch
from torch.nn import functional

from frostline.models.bag import build_bag, build_text_cnn
from frostline.models.net import Net

IDS = torch.tensor([[2, 5, 4, 6, 3], [2, 4, 5, 0, 0], [2, 0, 0, 0, 0]])


def test_padding_takes_no_part() -> None:
    torch.manual_seed(0)
    for build in (build_bag, build_text_cnn):
        for pool in (None, "mean", "max", "attention"):
            network = build(Net(outputs=2, width=8, pool=pool), 10).double().eval()
            longer = functional.pad(IDS, (0, 7))
            torch.testing.assert_close(network(longer, (longer > 0).long()), network(IDS, (IDS > 0).long()), rtol=1e-12, atol=1e-12)


def test_the_cnn_takes_the_largest_response_of_each_filter() -> None:
    torch.manual_seed(0)
    network = build_text_cnn(Net(outputs=2, width=4), 10).eval()
    ids = torch.tensor([[2, 5, 4, 6, 3, 7]])
    embedded = functional.pad(network.embedding(ids).transpose(1, 2), (2, 2))  # beyond the text: zeros
    expected = []
    for length, convolution in zip((3, 4, 5), network.convolutions, strict=True):
        windows = embedded[..., 2 - (length - 1) // 2 : 8 + length // 2]
        expected.append(functional.conv1d(windows, convolution.weight, convolution.bias).relu().amax(-1))
    torch.testing.assert_close(network(ids, torch.ones_like(ids)), network.head(torch.cat(expected, 1)))
