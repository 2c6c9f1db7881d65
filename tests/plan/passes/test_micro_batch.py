"""A batch in pieces gives the step of the whole batch, and is taken only where the whole does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import frostline as fl
from frostline.data.dataset import Dataset
from frostline.plan import plan as plan_module
from frostline.plan.decision import Decision
from frostline.plan.passes import micro_batch
from frostline.plan.plan import Plan
from frostline.recipe import Recipe
from tests.plan.small import bert_with_lora, llama_with_lora, without_dropout
from tests.train.small import cnn, first_rows, plan, saved, stopped_and_resumed


def decision(made: Plan) -> Decision | None:
    return next((one for one in made.decisions if one.what == "micro_batch"), None)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_steps_of_whole_batches(accumulate: int, texts: Dataset, tmp_path: Path) -> None:
    options: dict[str, Any] = {"accumulate": accumulate, "batch": 10}  # 24 rows: the last batch is smaller, the last piece too
    whole = fl.train(without_dropout(bert_with_lora(texts, tmp_path, out=str(tmp_path / "whole"), **options)), quiet=True)
    made = without_dropout(bert_with_lora(texts, tmp_path, out=str(tmp_path / "pieces"), micro_batch=4, **options))
    assert decision(made) and decision(made).on and decision(made).exact and made.execution.micro_batch == 4
    seen: list[int] = []
    forward = made.execution.forward
    made.execution.forward = lambda batch: (seen.append(len(batch.rows)), forward(batch))[1]  # type: ignore[method-assign]
    pieces = fl.train(made, quiet=True)
    assert sorted(seen[:7]) == [3, 3, 3, 3, 4, 4, 4], "of the first epoch: twice 10 rows, and 4"
    for ours, theirs in zip(pieces.history, whole.history, strict=True):
        assert ours["step"] == theirs["step"] and ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    for name, value in saved(whole).items():
        torch.testing.assert_close(saved(pieces)[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_only_where_the_whole_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert decision(llama_with_lora(tmp_path / "room")) is None
    peaks: list[int] = []
    predict = plan_module.predict_peak_bytes

    def large(work: Any, probe: Any, *args: Any, **options: Any) -> int:
        peaks.append(predict(work, probe, *args, **options))
        return int(1e12) * probe.saved_bytes // whole

    whole = 1
    made = llama_with_lora(tmp_path / "first")
    whole = made.parameters["activations_bytes"]
    monkeypatch.setattr(plan_module, "predict_peak_bytes", large)
    monkeypatch.setattr(plan_module, "memory_limit", lambda *_: int(0.6e12) - plan_module.resident_bytes())
    made = llama_with_lora(tmp_path / "little")
    assert decision(made) is not None and decision(made).settings == {"rows": 3} and "would take" in decision(made).why
    assert made.execution.micro_batch == 3 and made.parameters["activations_bytes"] < 0.7 * whole


def test_halved_until_it_fits_or_a_row_is_left() -> None:
    class Execution:
        micro_batch: int | None = None

        class model:
            module = torch.nn.Linear(1, 1)

            class card:
                class schema:
                    task = "chat"

    for room, expected in ((1200, None), (1199, 6), (350, 3), (10, 1)):
        execution: Any = Execution()
        made = micro_batch.propose(Recipe(), execution, 12, lambda rows: 100 * rows, room)
        assert execution.micro_batch == expected and (made is None) == (expected is None)


def test_declined_where_rows_depend_on_each_other(digits: Dataset, tmp_path: Path) -> None:
    made = plan(cnn(digits), first_rows(digits, 24), tmp_path, micro_batch=4)
    assert decision(made) and not decision(made).on and "learns from whole batches" in decision(made).why
    assert made.execution.micro_batch is None
    mixed = Recipe().with_values({"data.augment.mixup": 0.2})
    assert "mixed" in str(micro_batch.depends_on_the_batch(mixed, made.execution))


def test_a_run_that_goes_on_computes_the_same_pieces(texts: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fl.train(bert_with_lora(texts, tmp_path, out=str(tmp_path / "whole"), micro_batch=2), quiet=True)
    resumed = stopped_and_resumed(bert_with_lora(texts, tmp_path, out=str(tmp_path / "stopped"), micro_batch=2), 2, monkeypatch)
    for name, value in saved(whole).items():
        torch.testing.assert_close(saved(resumed)[name], value, rtol=0, atol=0, msg=name)


def test_pieces() -> None:
    assert [len(piece) for piece in micro_batch.pieces(np.arange(10), 4)] == [4, 3, 3]
    assert [len(piece) for piece in micro_batch.pieces(np.arange(3), 4)] == [3]
    assert [len(piece) for piece in micro_batch.pieces(np.arange(3), None)] == [3]
