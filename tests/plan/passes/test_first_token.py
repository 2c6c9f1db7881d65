"""The last block for the first token: taken for classifiers that read no more, the same step, and resumed as it began."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import frostline as fl
from frostline.data.dataset import Dataset
from frostline.plan.decision import Decision
from frostline.plan.passes import first_token
from frostline.plan.plan import Plan
from tests.plan.small import bert_with_lora, gradients, llama_with_lora, without_dropout
from tests.train.small import cnn, first_rows, plan, saved, stopped_and_resumed


def decision(made: Plan) -> Decision | None:
    return next((one for one in made.decisions if one.what == "first_token"), None)


@pytest.mark.parametrize("options", [{"pack": "on"}, {"pack": "off"}, {"pack": "on", "checkpoint_activations": "on"}], ids=str)
def test_a_step_is_the_same(options: dict[str, Any], texts: Dataset, tmp_path: Path) -> None:
    made = without_dropout(bert_with_lora(texts, tmp_path, **options))
    on = decision(made)
    assert on is not None and on.on and on.exact and on.settings["attention"].startswith(on.settings["block"])
    loss, ours = gradients(made)
    made.execution.first_token = None
    expected, theirs = gradients(made)
    assert loss == pytest.approx(expected, rel=1e-5) and set(ours) == set(theirs) and ours
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5 * largest, msg=name)


def test_behind_a_stored_prefix(texts: Dataset, tmp_path: Path) -> None:
    made = bert_with_lora(texts, tmp_path, adapt="last 1", cache="on", epochs=1)
    assert decision(made).on and made.execution.line is not None  # type: ignore[union-attr]
    run = fl.train(made, quiet=True)
    assert made.execution.prove("train", rows=4) and np.isfinite(run.history[-1]["loss"])
    frozen = bert_with_lora(texts, tmp_path / "head", adapt="head", cache="on", epochs=1)
    assert decision(frozen).on and frozen.execution.line is not None  # type: ignore[union-attr]
    assert all(not item.per_token for item in frozen.execution.line.border), "one vector a row is stored"
    fl.train(frozen, quiet=True)
    assert frozen.execution.prove("train", rows=4)


def test_a_run_that_goes_on_computes_as_it_began(texts: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fl.train(bert_with_lora(texts, tmp_path / "whole"), quiet=True)
    resumed = stopped_and_resumed(bert_with_lora(texts, tmp_path / "stopped"), 2, monkeypatch)
    for name, value in saved(whole).items():
        torch.testing.assert_close(saved(resumed)[name], value, rtol=0, atol=0, msg=name)


def test_not_where_more_is_read_or_nothing_attends(digits: Dataset, texts: Dataset, tmp_path: Path) -> None:
    assert decision(plan(cnn(digits), digits, tmp_path / "cnn")) is None
    made = llama_with_lora(tmp_path / "llama")
    assert (decision(made) is None or not decision(made).on) and made.execution.first_token is None  # type: ignore[union-attr]
    data = first_rows(texts, 24)
    made = plan(fl.load("transformer", data=data, width=16), data, tmp_path / "own", pack="off")
    loss, _ = gradients(without_dropout(made))
    made.execution.first_token = None
    assert loss == pytest.approx(gradients(made)[0], rel=1e-5)


def test_a_head_of_zeros_shows_nothing(texts: Dataset, tmp_path: Path) -> None:
    made = bert_with_lora(texts, tmp_path)
    assert decision(made).on  # type: ignore[union-attr]
    head = made.model.module.classifier
    torch.nn.init.zeros_(head.weight)
    made.execution.first_token = None
    refused = first_token.propose(made.execution)
    assert refused is not None and not refused.on and "do not depend on it yet" in refused.why
    assert made.execution.first_token is None
