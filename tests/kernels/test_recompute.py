"""Blocks that are computed once more give the plain outputs and gradients, bit for bit, and keep less."""

from __future__ import annotations

import contextlib
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostline.kernels.caches import is_cache, without_caches
from frostline.kernels.recompute import recomputing
from frostline.kernels.unpad import unpadded
from tests.kernels.test_unpad import batch, output_of
from tests.kernels.transformers_models import build

KINDS = ["llama", "gemma2", "gpt2", "bert", "modernbert", "albert"]


def step(module: nn.Module, blocks: list[str], inputs: dict[str, Tensor], *, packed: bool) -> dict[str, Tensor]:
    """The output, and all gradients; the backward pass stands outside of what unpads, as in a run."""
    module.zero_grad()
    torch.manual_seed(4)
    with unpadded(module, blocks, inputs["attention_mask"]) if packed else contextlib.nullcontext():
        output = output_of(module, inputs)
    output[inputs["attention_mask"].bool()].float().sin().sum().backward()
    return {"output": output.detach(), **{name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}}


def dropping(module: nn.Module) -> nn.Module:
    """In training mode, with dropout where the architecture has any."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.3
        if isinstance(getattr(part, "attention_dropout", None), float):
            part.attention_dropout = 0.3  # type: ignore[assignment]
    return module.train()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_the_plain_ones_bit_for_bit(kind: str, packed: bool, precision: str) -> None:
    module, blocks = build(kind)
    dropping(module)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"), without_caches(module, blocks):  # as in a run
        expected = step(module, blocks, batch(), packed=packed)
        with recomputing(module, blocks[:2]):
            ours = step(module, blocks, batch(), packed=packed)
    assert ours.keys() == expected.keys() and len(ours) > 10
    for name, theirs in expected.items():
        assert torch.equal(ours[name], theirs), name


def test_a_cache_is_not_written_twice() -> None:
    module, blocks = build("gpt2")
    handed: list[bool] = []
    attention: Any = module.get_submodule(f"{blocks[0]}.attn")
    handle = attention.register_forward_pre_hook(
        lambda _, args, kwargs: handed.append(any(is_cache(value) for value in (*args, *kwargs.values()))), with_kwargs=True
    )
    plain = step(module, blocks, batch(), packed=False)
    with recomputing(module, blocks):
        ours = step(module, blocks, batch(), packed=False)
    handle.remove()
    assert handed == [True, False, False], "once plain, twice recomputed"
    assert all(torch.equal(ours[name], theirs) for name, theirs in plain.items())


def test_only_what_a_block_is_handed_stays() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.seen = nn.Linear(8, 8), []

        def forward(self, x: Tensor) -> Tensor:
            inner = self.linear(x).exp()
            self.seen.append(weakref.ref(inner))
            return inner.sin()

    module = nn.Sequential(Block(), Block())
    x = torch.randn(3, 8)
    output = module(x)
    assert all(block.seen[0]() is not None for block in module), "a plain block keeps what it computes"
    with recomputing(module, ["1"]):
        output = module(x)
        gc.collect()
        assert module[0].seen[1]() is not None and module[1].seen[1]() is None
        output.sum().backward()
    assert len(module[1].seen) == 3, "computed once more"
    assert "forward" not in vars(module[1])


def test_nothing_is_kept_or_repeated_without_gradients() -> None:
    calls: list[int] = []
    module = nn.Sequential(nn.Linear(4, 4))
    module[0].register_forward_pre_hook(lambda *_: calls.append(1))
    with recomputing(module, ["0"]), torch.no_grad():
        assert not module(torch.randn(2, 4)).requires_grad
    assert calls == [1]
