"""Named machines, so many cores, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from frostline.errors import RecipeError
from frostline.plan import target as subject
from frostline.plan.machine import machine
from frostline.plan.target import Target, named_targets, parse_target


def test_named_machines() -> None:
    h200 = parse_target("H200")
    assert h200.memory_bytes == 141_000_000_000 and h200.device == "gpu"
    assert h200.rate("bf16") == pytest.approx(0.5 * 989e12)
    assert {target.name for target in named_targets()} >= {"h200", "a100-80gb", "rtx4090"}
    assert parse_target("RTX 4090") == parse_target("rtx4090")
    assert parse_target("a100") == parse_target("a100-80gb")


def test_cores_are_scaled_from_this_machine() -> None:
    here = machine()
    twice = parse_target(f"{2 * here.cores} cores 24GB")
    assert twice.gflops["fp32"] == pytest.approx(2 * here.fp32_gflops)
    assert twice.memory_bytes == 24_000_000_000 and twice.device == "cpu" and twice.efficiency == 1
    assert parse_target("this").rate("fp32") == pytest.approx(here.fp32_gflops * 1e9)


def test_this_is_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    here = replace(machine(), name="A GPU", fp32_gflops=30000.0, bf16_gflops=0.0, memory_gb_per_s=2000.0)
    monkeypatch.setattr(subject, "choose", lambda wish: torch.device("cuda", 0))
    monkeypatch.setattr(subject, "machine", lambda device: here)
    monkeypatch.setattr(subject, "memory_limit", lambda device: 7 * 10**10)
    monkeypatch.setattr(subject, "resident_bytes", lambda device: 10**10)
    found = parse_target("this")
    assert (found.name, found.device, found.cores, found.memory_bytes) == ("this A GPU", "gpu", None, 8 * 10**10)
    assert found.gflops == {"fp32": 30000} and found.rate("fp32") == 3e13 and found.bandwidth == 2e12


@pytest.mark.parametrize(("text", "hint"), [("h20o", "Did you mean 'h200'"), ("0 cores 4GB", "at least one core"), ("", "expected this")])
def test_unknown_machines_are_refused(text: str, hint: str) -> None:
    with pytest.raises(RecipeError, match=hint):
        parse_target(text)


def test_a_type_that_the_machine_does_not_have_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"train.precision got .bf16."):
        parse_target("t4").rate("bf16")


@pytest.mark.parametrize("target", [*named_targets(), parse_target("this")], ids=lambda target: target.name)
def test_no_run_is_in_int8(target: Target) -> None:
    assert set(target.gflops) <= {"fp32", "bf16"}
    with pytest.raises(RecipeError, match=r"train.precision got 'int8', expected one of fp32"):
        target.rate("int8")
