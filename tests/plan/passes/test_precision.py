"""bf16: as the recipe says, or by the machine's rates; a run in it learns."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import frostline as fl
from frostline.plan import machine
from frostline.plan.passes import precision
from frostline.recipe import Recipe
from tests.conftest import MACHINE
from tests.train.small import cnn, plan, saved


@pytest.mark.parametrize(
    ("wish", "bf16_gflops", "on"), [("fp32", 900.0, False), ("bf16", 10.0, True), ("auto", 124.0, False), ("auto", 126.0, True)]
)
def test_the_choice(wish, bf16_gflops, on):
    here = dataclasses.replace(MACHINE, fp32_gflops=100.0, bf16_gflops=bf16_gflops)
    decision = precision.propose(Recipe().with_values({"train.precision": wish}), here)
    assert decision.on == on and decision.what == "bf16"
    assert f"fp32 100, bf16 {bf16_gflops:.0f} GFLOP/s" in decision.why


def test_auto_follows_the_machine_through_the_plan(digits, tmp_path, monkeypatch):
    assert plan(cnn(digits), digits, tmp_path / "run", precision="auto").execution.precision == "fp32"  # the fixture's: half as fast
    monkeypatch.setattr(machine, "_measure", lambda: dataclasses.replace(MACHINE, bf16_gflops=300.0))
    machine.machine(again=True)
    assert plan(cnn(digits), digits, tmp_path / "run", precision="auto").execution.precision == "bf16"
    assert plan(cnn(digits), digits, tmp_path / "run").execution.precision == "fp32"


def test_a_run_in_bf16_learns_and_its_weights_stay_float32(digits, tmp_path):
    seen = []
    model = fl.load("mlp", data=digits, width=64, depth=1)
    made = plan(model, digits, tmp_path / "run", precision="bf16", epochs=4)
    for part in model.module.modules():
        if isinstance(part, torch.nn.Linear):
            part.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    run = fl.train(made, quiet=True)
    assert seen[0] == torch.bfloat16
    assert all(tensor.dtype != torch.bfloat16 for tensor in saved(run).values())
    losses = [epoch["loss"] for epoch in run.history]
    assert losses[-1] < 0.3 * losses[0] and run.history[-1]["val_accuracy"] > 0.5


def test_only_what_is_not_exact_says_so(digits, tmp_path):
    made = plan(cnn(digits), digits, tmp_path / "run", precision="bf16")
    assert {d.what for d in made.decisions if not d.exact} == {"bf16"} and len(made.decisions) > 1
