"""Where a network is computed: what is chosen, what is refused, and whole runs on a device that stands in for a GPU.

No GPU is here. The stand-in (stand_in_device.py) shows that the numbers are the processor's and that no operation mixes the two; how fast
a real one is, what it counts, and what it cannot do, is not tested.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import frostline.device as subject
from frostline.device import (
    CPU,
    accelerator,
    available_bytes,
    bytes_needed,
    capability,
    choose,
    device_of,
    finest,
    missing,
    moved,
    peak_bytes,
    wait,
)
from frostline.errors import RecipeError
from tests import stand_in_device

ROOT = Path(__file__).parents[1]
CASES = ("images", "chat", "texts", "preferences")


def finding(monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    monkeypatch.setattr(subject, "accelerator", lambda: None if name is None else torch.device(name, 0))


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    finding(monkeypatch, None)
    assert choose("auto") == choose("cpu") == CPU
    finding(monkeypatch, "cuda")
    assert choose("auto") == choose("cuda") == torch.device("cuda:0") and choose("cpu") == CPU


@pytest.mark.parametrize(("found", "wish", "there"), [(None, "cuda", "no GPU"), (None, "mps", "no GPU"), ("mps", "cuda", "'mps' alone")])
def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, found: str | None, wish: str, there: str) -> None:
    finding(monkeypatch, found)
    with pytest.raises(RecipeError) as caught:
        choose(wish)
    text = f"train.device got {wish!r}, expected a device that is there: PyTorch {torch.__version__} finds {there}. Use: train.device=auto"
    assert str(caught.value) == missing(wish) == text
    assert missing("auto") is None and missing("cpu") is None


def test_only_what_is_known_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 1)
    for name, found in (("cuda", torch.device("cuda:1")), ("xpu", None)):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda name=name: torch.device(name))
        assert accelerator() == found


def test_a_network_says_where_it_is() -> None:
    assert device_of(nn.Linear(1, 1, device="meta")).type == "meta" and device_of(nn.ReLU()) == CPU


def test_sums_are_exact() -> None:
    assert finest(torch.ones(1)).dtype == torch.float64


def test_what_is_there_is_not_copied() -> None:
    tensor = torch.ones(2)
    assert moved(tensor, CPU) is tensor
    assert moved(tensor, torch.device("meta")).is_meta
    wait()  # for nothing


def test_the_counts_of_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps no peak, and knows how much it should be given."""
    for name, value in (("recommended_max_memory", 100), ("current_allocated_memory", 30), ("driver_allocated_memory", 50)):
        monkeypatch.setattr(torch.mps, name, lambda value=value: value)
    mps = torch.device("mps", 0)
    assert available_bytes(mps) == 70 and peak_bytes(mps) == 50
    assert bytes_needed(lambda: None, mps) is None


def test_which_generation_a_gpu_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setattr(torch.version, "hip", None)
    assert capability(torch.device("cuda", 0)) == (8, 9)
    assert capability(CPU) == capability(torch.device("mps", 0)) == (0, 0)
    monkeypatch.setattr(torch.version, "hip", "6.3")
    assert capability(torch.device("cuda", 0)) == (0, 0), "AMD counts otherwise"


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the runs of stand_in_runs.py gave."""
    if reason := stand_in_device.unavailable():
        pytest.skip(reason)
    place, cache = tmp_path_factory.mktemp("stand-in"), getattr(request.config, "cache", None)  # none with -p no:cacheprovider
    library = stand_in_device.built(cache.mkdir("stand_in_device") if cache is not None else place)
    command = [sys.executable, "-m", "tests.stand_in_runs", str(library), str(place)]
    environment = {**os.environ, "FROSTLINE_CACHE": str(place / "cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(params=CASES)
def run(request: pytest.FixtureRequest, runs: dict[str, Any]) -> dict[str, Any]:
    """One of them, which ended as it should."""
    found: dict[str, Any] = runs[request.param]
    assert "error" not in found, found["error"]
    return found


def test_the_numbers_are_those_of_the_processor(run: dict[str, Any]) -> None:
    """And no operation mixed the two, or there would be none."""
    assert run["where"] == ["standin:0"]
    here, there = run["losses"]["cpu"], run["losses"]["device"]
    assert len(here) == len(there) > 4 and np.abs(np.subtract(here, there)).max() < 1e-5


def test_a_run_goes_on_bit_for_bit(run: dict[str, Any]) -> None:
    assert run["losses"]["resumed"] == run["losses"]["device"] and run["same_after_resume"]


def test_the_peak_of_its_memory_is_predicted(run: dict[str, Any]) -> None:
    """It is that of tensors alone: a program's would be hundreds of megabytes."""
    predicted, actual = run["peaks"]
    assert 0 < actual < 60e6 and 0.7 * actual < predicted < 2 * actual


def test_what_was_trained_there_is_evaluated_there_and_here(run: dict[str, Any]) -> None:
    (there, here), (told_there, told_here) = run["metrics"], run["predicted"]
    assert there.keys() == here.keys() and all(abs(there[name] - here[name]) < 1e-4 * max(1, abs(here[name])) for name in there)
    assert told_there == told_here and len(told_there) >= 2


def test_what_is_for_a_processor_is_left_out(run: dict[str, Any]) -> None:
    assert not {"allocator", "prepack_frozen", "fuse_convolutions", "lower_frozen"} & set(run["decisions"])
    assert ", on standin of " in run["heading"]


def test_the_frozen_part_is_stored_and_the_reference_too(runs: dict[str, Any]) -> None:
    assert "cache_prefix" in runs["images"]["decisions"] and "reference" in runs["preferences"]["decisions"]
    assert {"label_logits", "pack", "fuse_blocks"} <= set(runs["chat"]["decisions"])
    assert "fuse_adapter" in runs["preferences"]["decisions"]


def test_bf16_is_autocast_there(runs: dict[str, Any]) -> None:
    here, there = runs["texts"]["bf16_cpu"], runs["texts"]["bf16_auto"]
    plain = runs["texts"]["losses"]["device"][0]
    assert np.abs(np.subtract(here, there)).max() < 2e-2 and 0 < abs(there[0] - plain) < 2e-2


def test_a_batch_that_does_not_fit_is_computed_in_pieces(runs: dict[str, Any]) -> None:
    """As planned, or when memory runs out in a step."""
    found = runs["short"]
    whole, planned, surprised = found["losses"]
    assert np.abs(np.subtract(whole, planned)).max() < 1e-4 and np.abs(np.subtract(whole, surprised)).max() < 1e-4
    assert all(rows and rows < 24 for rows in found["rows"]) and found["peak"] <= 1


def test_weights_that_do_not_fit_are_brought_there_as_they_are_needed(runs: dict[str, Any]) -> None:
    """The run is the same bit for bit, goes on as it was, and holds less."""
    found = runs["hosted"]
    whole, asked, resumed = found["losses"]
    assert whole == asked == resumed
    ((first, *_),) = found["blocks"]
    at_home = [name for name, where in found["places"].items() if where == "cpu"]
    assert len(at_home) > 5 and all(name.startswith(tuple(f"{block}." for block in found["blocks"][0])) for name in at_home)
    assert any(name.startswith(first) for name in at_home) and not any("lora_" in name for name in at_home)
    assert found["taken"][1] < found["taken"][0]


@pytest.mark.parametrize("numbers", ["int8", "fp8"])
def test_frozen_layers_in_8_bits(numbers: str, runs: dict[str, Any]) -> None:
    """The losses are near those of the plain run, the run goes on bit for bit, and weights that stay at home are left as they are."""
    found, plain = runs["eight bits"][numbers], runs["eight bits"]["none"]
    decisions = {what: (on, why) for what, on, why, _ in found["decisions"]}
    on, why = decisions["lower_frozen"]
    assert on and f"14 of 14 frozen linear layers in {numbers}; loss on held-out" in why
    assert not {"prepack_frozen", "fuse_convolutions"} & set(decisions) and "C++" not in why
    assert len(found["layers"]) == 14 and set(found["layers"].values()) == {numbers}
    assert found["tolerance"] == {"int8": 2e-2, "fp8": 6e-2}[numbers]
    (losses, resumed), (without, _) = found["losses"], plain["losses"]
    assert losses == resumed and found["same_after_resume"]
    assert losses != without and np.allclose(losses, without, rtol=0.02)
    assert found["hosted"] == []


def test_a_gpu_that_multiplies_no_8_bits(runs: dict[str, Any]) -> None:
    found = runs["eight bits"]["none"]
    ((on, why),) = [(on, why) for what, on, why, _ in found["decisions"] if what == "lower_frozen"]
    assert not on and why == "this build of PyTorch has no fast products in 8 bits for them here" and found["layers"] == {}


def test_the_stand_in_itself(runs: dict[str, Any]) -> None:
    found = runs["device"]
    assert "Expected all tensors to be on the same device" in found["refused"]
    assert found["states"] == {"adamw": ["standin:0"], "adafactor": ["cpu", "standin:0"]}, "counts of steps where the kernels want them"
    assert found["rounded"] == [True, True, False], "a saved model is read back, but for the rounding of another way to multiply"
    assert found["bytes"] == 2 * 4000 and found["room"] > 2**32 and found["taken"] >= 0
    assert runs["waits"] > 100, "clocks wait for it"


def test_a_device_is_measured_for_itself(runs: dict[str, Any]) -> None:
    """Its products and its memory; cores and disk are the machine's."""
    host, there = runs["device"]["host"], runs["device"]["machine"]
    own = ("name", "fp32_gflops", "bf16_gflops", "memory_gb_per_s")
    assert {name for name in host if host[name] != there[name]} == set(own) and there["fp32_gflops"] > 0
    assert there["name"].startswith("standin") and runs["device"]["again"]
    assert runs["device"]["rates"] == {
        "matrix 64": ["bf16", "fp16", "fp32"],
        "convolution 8, 14 × 14": ["bf16", "bf16 channels last", "fp32", "fp32 channels last"],
    }
