from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import frostline as fl
from frostline.data.dataset import Dataset
from frostline.kernels import block_kernels, sequence_attention
from frostline.plan.decision import Decision
from frostline.plan.plan import Plan
from tests.models.language import folder_of
from tests.plan.small import assert_same, bert_with_lora, gradients, llama_with_lora, talks
from tests.train.small import plan, saved, stopped_and_resumed


def decision(made: Plan) -> Decision | None:
    return next((one for one in made.decisions if one.what == "fuse_blocks"), None)


def test_a_step_is_the_same_on_as_off(tmp_path: Path) -> None:
    """In float32, since transformers computes its norms in that whatever comes in."""
    (loss, ours), (expected, theirs) = (gradients(llama_with_lora(tmp_path / wish, fuse_blocks=wish)) for wish in ("on", "off"))
    assert loss == pytest.approx(expected, rel=1e-5) and len(ours) > 10
    assert_same(ours, theirs, torch.float32)


def test_what_is_said(texts: Dataset, tmp_path: Path) -> None:
    why = "5 RMS norms, 2 SwiGLU blocks, rotary positions"
    assert decision(llama_with_lora(tmp_path / "on")) == Decision(what="fuse_blocks", on=True, why=why)
    made = llama_with_lora(tmp_path / "off", fuse_blocks="off")
    assert decision(made) == Decision(what="fuse_blocks", on=False, why="switched off in the recipe") and not str(made.execution.blocks)
    assert decision(bert_with_lora(texts, tmp_path)) is None, "it has neither"


def test_without_a_compiler_a_step_is_the_same_and_the_plan_says_that_it_is_slower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, ours = gradients(llama_with_lora(tmp_path / "here", pack="on"))
    for kernels in (block_kernels, sequence_attention):
        monkeypatch.setattr(kernels.library, "found", "there is no C++ compiler")
    made = llama_with_lora(tmp_path / "without", pack="on")
    found = {one.what: one.why for one in made.decisions}
    for what in ("fuse_blocks", "pack"):
        assert found[what].endswith("which C++ would do in less time, but there is no C++ compiler")
    expected, theirs = gradients(made)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert_same(ours, theirs, torch.float32)


def test_a_run_that_goes_on_computes_as_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, data = folder_of("llama", tmp_path / "llama", max_position_embeddings=200), talks()

    def made(name: str) -> Plan:
        options = {"adapt": {"method": "lora", "rank": 3}, "batch": 4, "cache": "off", "epochs": 2}
        return plan(fl.load(str(weights), data=data), data, tmp_path / name, **options)

    whole = fl.train(made("whole"), quiet=True)
    resumed = stopped_and_resumed(made("stopped"), 2, monkeypatch)
    written = json.loads((tmp_path / "stopped" / "plan.json").read_text())
    assert next(one for one in written["decisions"] if one["what"] == "fuse_blocks")["on"]
    for name, value in saved(whole).items():
        torch.testing.assert_close(saved(resumed)[name], value, rtol=0, atol=0, msg=name)
