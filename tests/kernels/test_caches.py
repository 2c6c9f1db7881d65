"""No cache of keys and values is made within, and the configuration is given back."""

from __future__ import annotations

import pytest
import torch

from frostline.kernels.caches import configs, is_cache, without_caches
from tests.kernels.transformers_models import build


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_within_only(kind: str) -> None:
    module, blocks = build(kind)
    ids = torch.arange(14).view(2, 7)
    plain = module(ids)
    assert is_cache(plain.past_key_values) and module.config.use_cache
    with pytest.raises(KeyboardInterrupt), without_caches(module, blocks):
        ours = module(ids)
        raise KeyboardInterrupt
    assert ours.past_key_values is None
    torch.testing.assert_close(ours.logits, plain.logits, rtol=1e-5, atol=1e-5)
    assert module.config.use_cache and configs([module.get_submodule(name) for name in blocks]) == [module.config]


def test_a_network_without_a_configuration() -> None:
    with without_caches(torch.nn.Sequential(torch.nn.Linear(2, 2)), ["0"]):
        pass
