"""Learning layers by oneDNN: the same step, chosen shape by shape, not for little work, and resumed as it began."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import frostline as fl
from frostline.data.dataset import Dataset
from frostline.plan.decision import Decision
from frostline.plan.passes import onednn_linear
from frostline.plan.plan import Plan
from tests.plan.small import bert, gradients
from tests.train.small import first_rows, plan, saved, stopped_and_resumed


def decision(made: Plan) -> Decision | None:
    return next((one for one in made.decisions if one.what == "onednn_linear"), None)


def tuned(data: Dataset, folder: Path, **options: Any) -> Plan:
    """All of a small BERT learns."""
    data = first_rows(data, 24)
    usual = {"adapt": "full", "batch": 6, "cache": "off", "onednn_linear": "on", "epochs": 1}
    return plan(bert(data, folder.parent), data, folder, **{**usual, **options})


@pytest.mark.parametrize("pack", ["on", "off"])
def test_a_step_is_the_same_on_as_off(pack: str, texts: Dataset, tmp_path: Path) -> None:
    found = {wish: tuned(texts, tmp_path / wish, onednn_linear=wish, pack=pack) for wish in ("on", "off")}
    assert found["on"].execution.by_convolution and not found["off"].execution.by_convolution
    (loss, ours), (expected, theirs) = (gradients(made) for made in found.values())
    assert loss == pytest.approx(expected, rel=1e-5) and set(ours) == set(theirs) and len(ours) > 10
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5 * largest, msg=name)


def test_the_layers_that_learn(texts: Dataset, tmp_path: Path) -> None:
    made = tuned(texts, tmp_path / "last", adapt="last 1")
    names, module = made.execution.by_convolution, made.model.module
    assert names and all(module.get_submodule(name).weight.requires_grad for name in names)
    assert any("layer.1" in name for name in names) and not any("layer.0" in name for name in names)
    assert decision(made).settings == {"layers": names}  # type: ignore[union-attr]
    assert made.execution.compiles_by_shape, "oneDNN compiles a product for each number of rows"
    narrow = tuned(texts, tmp_path / "bf16", precision="bf16")
    assert decision(narrow) is None and not narrow.execution.by_convolution


def test_auto_takes_the_shapes_that_are_faster(texts: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[tuple[int, int, int]] = []

    def seconds(rows: int, inputs: int, outputs: int) -> tuple[float, float]:
        timed.append((rows, inputs, outputs))
        return (1.0, 0.5) if inputs > outputs else (1.0, 0.99)

    monkeypatch.setattr(onednn_linear, "seconds_now_and_then", seconds)
    assert decision(tuned(texts, tmp_path / "little", onednn_linear="auto")) is None and not timed, "too little work to time it"
    monkeypatch.setattr(onednn_linear, "_WORTH", 0.0)
    made = tuned(texts, tmp_path / "run", onednn_linear="auto")
    chosen = [made.model.module.get_submodule(name) for name in made.execution.by_convolution]
    assert chosen and all(layer.in_features > layer.out_features for layer in chosen)
    assert len(timed) == len({shape[1:] for shape in timed}) > 1, "each shape once"
    found = decision(made)
    assert found is not None and found.on and found.exact and found.saves_seconds > 0
    assert found.why.startswith(f"{len(chosen)} of ")
    monkeypatch.setattr(onednn_linear, "seconds_now_and_then", lambda *_: (1.0, 1.0))
    refused = decision(tuned(texts, tmp_path / "slow", onednn_linear="auto"))
    assert refused is not None and not refused.on and "no shape" in refused.why


def test_both_ways_are_timed() -> None:
    assert all(seconds > 0 for seconds in onednn_linear.seconds_now_and_then(16, 32, 48))


def test_a_run_that_goes_on_computes_as_it_began(texts: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fl.train(tuned(texts, tmp_path / "whole", epochs=2), quiet=True)
    resumed = stopped_and_resumed(tuned(texts, tmp_path / "stopped", epochs=2), 2, monkeypatch)
    for name, value in saved(whole).items():
        torch.testing.assert_close(saved(resumed)[name], value, rtol=0, atol=0, msg=name)
