"""frostline info: the processor, and the GPU beside it where there is one."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import frostline.info as subject
from frostline.info import as_text, info
from tests.conftest import MACHINE

CUDA = torch.device("cuda", 0)
RATES = {"matrix 1024": {"fp32": 30000.0, "bf16": 400000.0}}


def test_a_machine_without_a_gpu() -> None:
    content = info()
    assert content["fp32_gflops"] == MACHINE.fp32_gflops and content["free_memory_gb"] > 0 and content["products"] is None
    assert "gpu" not in content and content["torch"] == torch.__version__
    lines = as_text(content).splitlines()
    assert f"fp32_gflops            {MACHINE.fp32_gflops:.1f}" in lines and lines[-1].endswith("Use: frostline info --calibrate")


def test_a_gpu_is_told_beside_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measured(device: torch.device, again: bool):
        asked.append((device.type, again))
        return MACHINE if device.type == "cpu" else dataclasses.replace(MACHINE, name="A GPU", bf16_gflops=400000.0)

    monkeypatch.setattr(subject, "choose", lambda wish: CUDA)
    monkeypatch.setattr(subject, "machine", measured)
    monkeypatch.setattr(subject, "memory_limit", lambda device: 10**9 if device.type == "cpu" else 8 * 10**10)
    monkeypatch.setattr(subject, "product_rates", lambda device, again: RATES if device.type == "cuda" else None)
    content = info(calibrate=True)
    assert asked == [("cpu", True), ("cuda", True)]
    gpu = content["gpu"]
    assert (content["free_memory_gb"], gpu["free_memory_gb"]) == (1, 80) and gpu["name"] == "A GPU" and gpu["products"] == RATES
    of_processor, products, of_gpu, rates = as_text(content).split("\n\n")
    assert "torch " in of_processor and "torch " not in of_gpu and "400000.0" in of_gpu and "gpu" not in of_processor
    assert "not measured" in products and "400000 ←" in rates
