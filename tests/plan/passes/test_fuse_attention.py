"""Attention in C++: the same step, chosen where it is faster, none where there is no such attention, and resumed as it began."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import frostline as fl
from frostline.data.dataset import Dataset
from frostline.kernels import sequence_attention
from frostline.plan.decision import Decision
from frostline.plan.passes import fuse_attention
from frostline.plan.plan import Plan
from tests.models.tiny import image_folder
from tests.plan.small import bert_with_lora, gradients
from tests.train.small import cnn, first_rows, plan, saved, stopped_and_resumed


def decision(made: Plan) -> Decision | None:
    return next((one for one in made.decisions if one.what == "fuse_attention"), None)


def vit(digits: Dataset, folder: Path, **options: Any) -> Plan:
    """Its last block learns."""
    if not (weights := folder.parent / "vit").exists():
        image_folder("vit", weights)
    data = first_rows(digits, 24)
    usual = {"adapt": "last 1", "batch": 8, "cache": "off", "fuse_attention": "on"}
    return plan(fl.load(str(weights), data=data), data, folder, **{**usual, **options})


@pytest.fixture(autouse=True)
def compiler() -> None:
    if sequence_attention.library.missing:
        pytest.skip(sequence_attention.library.missing)


def test_a_step_is_the_same_on_as_off(digits: Dataset, tmp_path: Path) -> None:
    found = {wish: vit(digits, tmp_path / wish, fuse_attention=wish, adapt="full") for wish in ("on", "off")}
    assert found["on"].execution.attends_in_sequences and not found["off"].execution.attends_in_sequences
    assert decision(found["on"]).why.startswith("1 attentions; 4 rows of "), "the last block asks for the first token alone"  # type: ignore[union-attr]
    (loss, ours), (expected, theirs) = (gradients(made) for made in found.values())
    assert loss == pytest.approx(expected, rel=1e-5) and set(ours) == set(theirs) and len(ours) > 10
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5 * largest, msg=name)


@pytest.mark.parametrize(("then", "chosen"), [(1.0, True), (1.95, False), (3.0, False)])
def test_auto_takes_what_is_faster(
    then: float, chosen: bool, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(fuse_attention, "seconds_now_and_then", lambda call: (2.0, then))
    made = vit(digits, tmp_path / "run", fuse_attention="auto")
    found = decision(made)
    assert found is not None and found.on is chosen is made.execution.attends_in_sequences and found.exact
    assert found.why.endswith(f"tokens take {1e3 * then:.1f} ms in C++, 2000.0 ms in PyTorch")
    assert found.saves_seconds == (pytest.approx(2 * 3 * 8 / 4 * (2.0 - then)) if chosen else 0.0), "two epochs of three batches"
    assert found.saves_before_line == found.saves_seconds, "what learns is the last block"


def test_a_gradient_is_timed_where_one_passes(digits: Dataset, tmp_path: Path) -> None:
    made = vit(digits, tmp_path / "run", adapt="full")
    (call,) = fuse_attention.attentions(made.execution)
    assert call.learns and call.operands[0].shape[0] == 4
    assert all(seconds > 0 for seconds in fuse_attention.seconds_now_and_then(call))
    (frozen,) = fuse_attention.attentions(vit(digits, tmp_path / "last").execution)
    assert not frozen.learns


def test_none_where_no_attention_can_be(digits: Dataset, texts: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = first_rows(digits, 24)
    assert decision(plan(cnn(data), data, tmp_path / "cnn")) is None
    assert decision(bert_with_lora(texts, tmp_path / "padded", pack="off")) is None, "padding needs a mask"
    monkeypatch.setattr(sequence_attention.library, "found", "there is no C++ compiler")
    assert decision(vit(digits, tmp_path / "run")) is None


def test_a_run_that_goes_on_computes_as_it_began(digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fl.train(vit(digits, tmp_path / "whole"), quiet=True)
    resumed = stopped_and_resumed(vit(digits, tmp_path / "stopped"), 2, monkeypatch)
    for name, value in saved(whole).items():
        torch.testing.assert_close(saved(resumed)[name], value, rtol=0, atol=0, msg=name)
