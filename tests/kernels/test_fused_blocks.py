from __future__ import annotations

import torch

from frostline.kernels.fused_blocks import FusedBlocks, computing, find
from tests.kernels.transformers_models import build


def test_a_model_computes_the_same_and_is_afterwards_as_it_was() -> None:
    module, blocks = build("qwen3")
    found = find(module, blocks)
    assert str(found) == "13 RMS norms, 3 SwiGLU blocks, rotary positions"
    ids = torch.arange(14).view(2, 7)
    expected = module(ids).logits
    with computing(module, found):
        ours = module(ids).logits
    assert not torch.equal(ours, expected), "nothing was computed in another order"
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(module(ids).logits, expected)


def test_nothing_in_an_encoder() -> None:
    assert find(*build("bert")) == FusedBlocks() and str(FusedBlocks()) == ""
