"""Counts against sums by hand and against what real modules keep."""

from __future__ import annotations

import resource
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostline.adapt.lora_layers import PLAIN, wrap
from frostline.adapt.wrapper import replace
from frostline.errors import ModelError
from frostline.plan.count import FORWARD, INPUT, WEIGHT, StepCount, count_step


def total(output: Any) -> Tensor:
    return getattr(output, "last_hidden_state", output).sum()


def llama(layers: int = 2, hidden: int = 64, inner: int = 128, heads: int = 4, device: str = "cpu") -> Any:
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        num_hidden_layers=layers, hidden_size=hidden, intermediate_size=inner, num_attention_heads=heads,
        num_key_value_heads=heads // 2 if heads < 8 else 8, vocab_size=128 if hidden < 100 else 128_256, attn_implementation="sdpa",
    )  # fmt: skip
    with torch.device(device):
        return LlamaModel(config).train()


def with_lora(module: nn.Module, rank: int = 2) -> nn.Module:
    module.requires_grad_(False)
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.Linear):
            replace(module, name, wrap(part, {"rank": rank, "alpha": 4.0, "dropout": 0.0}, PLAIN, None))
    return module


def really_saved(module: nn.Module, inputs: Any) -> int:
    own = {t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total(module(**inputs) if isinstance(inputs, dict) else module(*inputs))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_linear_by_hand() -> None:
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    count = count_step(module, (torch.zeros(5, 8),), loss=total)
    first, second = 2 * 5 * 8 * 16, 2 * 5 * 16 * 4
    gemm = {part: kinds["gemm"] for part, kinds in count.flops.items()}
    assert gemm == {FORWARD: first + second, INPUT: second, WEIGHT: first + second}
    assert count.blocks == {"0": 2 * first, "2": 3 * second}
    assert count.gradients_bytes == count.learning_bytes == 4 * (8 * 16 + 16 + 16 * 4 + 4)
    assert count.timeline[-1]["gradients"] == count.gradients_bytes and count.timeline[-1]["activations"] == 0
    assert all(parameter.grad is None and not parameter.is_meta for parameter in module.parameters())


def test_what_is_frozen_has_no_weight_gradient() -> None:
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    module[2].requires_grad_(False)
    count = count_step(module, (torch.zeros(5, 8),), loss=total)
    assert count.flops[WEIGHT]["gemm"] == 2 * 5 * 8 * 16
    assert count.flops[INPUT]["gemm"] == 2 * 5 * 16 * 4
    assert count.frozen_bytes == 4 * (16 * 4 + 4)
    assert sum(count_step(module.requires_grad_(False), (torch.zeros(5, 8),), loss=total).flops[INPUT].values()) == 0


def test_convolution_by_hand() -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3))
    count = count_step(module, (torch.zeros(2, 3, 10, 10),), loss=total)
    first, second = 2 * 2 * 8 * 8 * 6 * 3 * 9, 2 * 2 * 6 * 6 * 4 * 6 * 9
    assert [count.flops[part]["convolution"] for part in (FORWARD, INPUT, WEIGHT)] == [first + second, second, first + second]


def test_lora_on_a_frozen_body_takes_four_flops_a_weight_and_token() -> None:
    module = with_lora(llama(), rank=1)
    body = sum(p.numel() for n, p in module.named_parameters() if "base.weight" in n)
    count = count_step(module, {"input_ids": torch.zeros(2, 32, dtype=torch.long), "use_cache": False}, loss=total)
    assert (count.flops[FORWARD]["gemm"] + count.flops[INPUT]["gemm"]) / (4 * body * 64) == pytest.approx(1, abs=0.1)
    assert count.flops[WEIGHT]["gemm"] < 0.05 * count.flops[FORWARD]["gemm"]
    scores = 2 * 2 * 32 * 32 * 64 * 2  # layers, rows, queries, keys, width; a multiplication and an addition
    assert count.flops[FORWARD]["attention"] - scores * 2 < scores / 4  # the angles of the positions are small products too
    assert {"layers.0", "layers.1"} <= set(count.blocks)


@pytest.mark.parametrize("adapted", [False, True])
def test_saved_bytes_are_those_of_a_real_run(adapted: bool) -> None:
    module: Any = with_lora(llama()) if adapted else llama()
    inputs = {"input_ids": torch.zeros(2, 32, dtype=torch.long), "use_cache": False}
    assert count_step(module, inputs, loss=total).saved_bytes == really_saved(module, inputs)


def test_the_peak_by_hand() -> None:
    count = count_step(nn.Sequential(nn.ReLU(), nn.Linear(100, 50, bias=False)), (torch.zeros(10, 100),), loss=total)
    forward = 4 * (10 * 100 + 10 * 50 + 1)  # the ReLU's output is kept, the outputs until they are summed
    assert forward <= count.peak_bytes <= forward + 4 * (2 * 50 * 100 + 10 * 50 + 1)
    assert count.peak_bytes == max(sum(point.values()) for point in count.timeline)


class Experts(nn.Module):
    def __init__(self, experts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(experts, inputs, outputs, dtype=torch.bfloat16))

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        return torch._grouped_mm(x, self.weight, offs=ends).relu()


def test_tokens_that_meet_one_expert_each_by_hand() -> None:
    given = (torch.zeros(32, 16, dtype=torch.bfloat16), torch.zeros(4, dtype=torch.int32))
    count = count_step(Experts(4, 16, 64), given, loss=total)
    assert [kinds["gemm"] for kinds in count.flops.values()] == [2 * 32 * 16 * 64, 0, 2 * 32 * 16 * 64]


def test_a_product_that_cannot_be_counted_is_an_error() -> None:
    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch._int_mm(x, x.T).float()

    with pytest.raises(ModelError, match="got the product '_int_mm'"):
        count_step(Rounded(), (torch.zeros(32, 32, dtype=torch.int8),), loss=total)


def test_llama_70b_takes_seconds_and_little_memory() -> None:
    with torch.device("meta"):
        module = with_lora(llama(80, 8192, 28672, 64, "meta"), rank=8)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    count: StepCount = count_step(module, {"input_ids": torch.zeros(1, 2048, dtype=torch.long), "use_cache": False}, loss=total)
    assert time.process_time() - start < 25  # 1.5 to 10, by the machine
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # kB
    body = 80 * (2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672)
    assert count.flops[FORWARD]["gemm"] / (2 * body * 2048) == pytest.approx(1, abs=0.01)


def test_blocks_that_are_computed_once_more() -> None:
    """They keep what they are handed; their forward products are counted twice, and what one keeps is there while it is computed."""
    inputs = {"input_ids": torch.zeros(2, 64, dtype=torch.long), "use_cache": False}
    module = with_lora(llama(layers=4, device="meta"))
    plain, again = (count_step(module, inputs, loss=total, recomputed=names) for names in ([], [f"layers.{i}" for i in range(4)]))
    hidden, block = 2 * 64 * 64 * 4, plain.saved_bytes / 4
    assert 4 * hidden <= again.saved_bytes < 6 * hidden + 64 * 64 * 4 < 0.5 * plain.saved_bytes
    assert again.peak_bytes < 0.6 * plain.peak_bytes and again.peak_bytes > again.saved_bytes + 0.8 * block
    forward = {kind: plain.flops[FORWARD][kind] for kind in ("gemm", "attention")}
    assert again.flops[FORWARD] == plain.flops[FORWARD] and again.flops[WEIGHT] == plain.flops[WEIGHT]
    for kind, count in forward.items():
        assert again.flops[INPUT][kind] - plain.flops[INPUT][kind] == pytest.approx(
            count, rel=0.2
        )  # the last product of each is not needed
