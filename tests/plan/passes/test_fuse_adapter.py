"""A linear layer and its LoRA update as one function: the same outputs and gradients, for both ways to store a weight."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.adapt.lora_layers import LoRALinear
from frostline.data.dataset import Dataset
from frostline.kernels.lora_linear import fused, lora_linear
from frostline.plan.decision import Decision
from frostline.plan.execution import Execution
from frostline.plan.passes.fuse_adapter import propose
from frostline.plan.plan import Plan, plan_recipe
from frostline.recipe import PlanRecipe, Recipe
from tests.plan import small
from tests.plan.small import bert_with_lora, llama
from tests.train.small import plan, saved


@pytest.fixture(scope="module")
def talks() -> Dataset:
    return small.talks()


def layers(module: nn.Module) -> list[LoRALinear]:
    return [part for part in module.modules() if isinstance(part, LoRALinear)]


def wake(module: nn.Module) -> None:
    """B begins at zero, where an update changes nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        for part in layers(module):
            nn.init.normal_(part.lora_B, std=0.3)


def decision(made: Plan) -> Decision | None:
    return next((one for one in made.decisions if one.what == "fuse_adapter"), None)


@pytest.mark.parametrize("dtype", small.CLOSE, ids=str)
def test_a_step_is_the_same_on_as_off(dtype: torch.dtype, talks: Dataset, tmp_path: Path) -> None:
    found: list[tuple[float, dict[str, Tensor]]] = []
    for wish in ("on", "off"):
        made = plan(llama(talks), talks, tmp_path / wish, adapt={"method": "lora", "rank": 3}, batch=6, fuse_adapter=wish, cache="off")
        assert decision(made) is not None and decision(made).on == (wish == "on") and decision(made).exact  # type: ignore[union-attr]
        assert made.execution.fused == (wish == "on")
        assert {part.kernel for part in layers(made.model.module)} == {None}, "only for the length of a pass"
        wake(made.model.module)
        made.model.module.to(dtype)
        batch = made.execution.sources["train"].encode(np.arange(6), None)
        total, _ = made.loss(made.execution.forward(batch), batch.labels)
        total.backward()
        found.append((float(total.detach()), {name: p.grad for name, p in made.model.module.named_parameters() if p.grad is not None}))
    (loss, ours), (expected, theirs) = found
    assert loss == pytest.approx(expected, rel=1e-5) and all("lora_" in name for name in ours)
    small.assert_same(ours, theirs, dtype)


@pytest.mark.parametrize(("inputs", "outputs"), [(12, 12), (12, 20), (20, 12)], ids=["square", "wider", "narrower"])
@pytest.mark.parametrize("transposed", [False, True], ids=["linear", "conv1d"])
def test_both_ways_to_store_a_weight(inputs: int, outputs: int, transposed: bool) -> None:
    """GPT-2's Conv1D holds (inputs, outputs); of a square one the shape does not tell."""
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    base = Conv1D(outputs, inputs) if transposed else nn.Linear(inputs, outputs)
    nn.init.normal_(base.bias)
    layer = LoRALinear(base, rank=3, alpha=5.0, dropout=0.0)
    wake(layer)
    results = []
    for on in (True, False):
        x = torch.randn(2, 5, inputs, generator=torch.Generator().manual_seed(1), requires_grad=True)
        with fused(layer) if on else contextlib.nullcontext():
            assert (layer.kernel is not None) == on
            y = layer(x)
        learning = [x, *layer.parameters()]
        results.append([y.detach(), *torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum(), learning)])
    assert results[0][0].shape == (2, 5, outputs) and len(results[0]) == 6
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def used(layer: LoRALinear) -> bool:
    """Whether the layer computes by its kernel as it stands."""
    calls: list[int] = []

    def counted(*args: Any) -> Tensor:
        calls.append(1)
        return lora_linear(*args)

    layer.kernel = counted
    layer(torch.ones(2, 8))
    return bool(calls)


def test_not_used_where_dropout_or_a_switch_asks_for_more() -> None:
    plain, dropped = (LoRALinear(nn.Linear(8, 8), rank=2, alpha=4.0, dropout=p) for p in (0.0, 0.5))
    assert used(plain) and used(plain.eval())
    assert not used(dropped.train()) and used(dropped.eval())
    plain.off = True
    assert not used(plain)


def test_dropout_draws_as_it_did(talks: Dataset, tmp_path: Path) -> None:
    """With dropout the plain path runs, so the numbers are those of the layers as they are written, bit by bit."""
    losses = []
    for wish in ("on", "off"):
        made = plan(llama(talks), talks, tmp_path / wish, adapt={"method": "lora", "dropout": 0.5}, batch=6, fuse_adapter=wish, cache="off")
        wake(made.model.module)
        made.model.module.train()
        batch = made.execution.sources["train"].encode(np.arange(6), None)
        torch.manual_seed(3)
        losses.append(float(made.loss(made.execution.forward(batch), batch.labels)[0].detach()))
    assert losses[0] == losses[1]


def execution(module: nn.Module) -> Execution:
    task: Any = None
    model: Any = SimpleNamespace(module=module, blocks=[])
    return Execution(model=model, task=task, sources={}, workers=0)


@pytest.mark.parametrize(("wish", "on"), [("auto", True), ("on", True), ("off", False)])
def test_decided(wish: Any, on: bool) -> None:
    module = nn.Sequential(LoRALinear(nn.Linear(4, 4), rank=2, alpha=4.0), nn.ReLU(), LoRALinear(nn.Linear(4, 4), rank=2, alpha=4.0))
    run = execution(module)
    why = "2 linear layers with LoRA" if on else "switched off in the recipe"
    assert propose(Recipe(plan=PlanRecipe(fuse_adapter=wish)), run) == Decision(what="fuse_adapter", on=on, why=why)
    assert run.fused == on
    with run.kernels():
        assert all((part.kernel is lora_linear) == on for part in layers(module))
    assert all(part.kernel is None for part in layers(module))


def test_not_proposed_without_lora() -> None:
    assert propose(Recipe(), execution(nn.Linear(4, 4))) is None


def test_what_is_saved_gives_what_its_reader_gives(texts: Dataset, tmp_path: Path) -> None:
    """The fused sums round otherwise; a model is saved as it is written, and read back bit for bit."""
    made = bert_with_lora(texts, tmp_path)
    assert made.execution.fused
    assert saved(fl.train(made, quiet=True)).keys() == made.model.module.state_dict().keys()


def test_blocks_that_are_recomputed_in_the_backward_pass(talks: Dataset, tmp_path: Path) -> None:
    made = plan(llama(talks), talks, tmp_path, adapt={"method": "lora", "rank": 3}, batch=6, prepack="on", pack="off", cache="off")
    module: Any = made.model.module
    wake(module)
    batch = made.execution.sources["train"].encode(np.arange(6), None)
    found = []
    for recompute in (False, True):
        if recompute:
            module.gradient_checkpointing_enable()
        module.train()
        module.zero_grad()
        total, _ = made.loss(made.execution.forward(batch), batch.labels)
        made.execution.backward(total)
        found.append({name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-6 * float(gradient.abs().max()), msg=name)


def test_layers_that_read_one_input_are_computed_together_and_a_run_that_goes_on_does_the_same(talks: Dataset, tmp_path: Path) -> None:
    made = plan(llama(talks), talks, tmp_path, adapt={"method": "lora", "rank": 3, "targets": ["all-linear"]}, batch=6, cache="off")
    found, said = made.execution.siblings, decision(made)
    attention, block = (
        [f"model.layers.0.{name}_proj" for name in names]
        for names in (["self_attn.q", "self_attn.k", "self_attn.v"], ["mlp.gate", "mlp.up"])
    )
    assert found[:2] == [attention, block] and said is not None and said.settings == {"siblings": found}
    assert said.why.endswith(f"; {5 * len(found) // 2} of them share an input, in {len(found)} groups")
    again = plan_recipe(made.recipe, made.model, talks, forced=made.decisions)
    assert again.execution.siblings == found and again.execution.fused
