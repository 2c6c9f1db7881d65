"""A step that runs out of memory is taken in halves, and a step that cannot be halved says what to change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import frostline as fl
from frostline import api
from frostline.data.dataset import Dataset
from frostline.errors import TrainingStopped
from frostline.plan.plan import Plan
from frostline.train.out_of_memory import ran_out
from tests.plan.small import bert_with_lora, without_dropout
from tests.train.small import cnn, first_rows, plan, saved

ERRORS = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")]


def with_room_for(rows: int, made: Plan, error: Exception = ERRORS[0]) -> list[int]:
    """Backward passes of more rows fail, after they have left gradients behind. Returns the rows of those that did not."""
    forward, backward = made.execution.forward, made.execution.backward
    seen: list[int] = []

    def count(batch):
        seen.append(len(batch.rows))
        return forward(batch)

    def fail(loss):
        backward(loss)
        if seen[-1] > rows:
            raise error

    made.execution.forward, made.execution.backward = count, fail  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("error", ERRORS, ids=["gpu", "cpu"])
def test_the_run_goes_on_in_halves(error: Exception, texts: Dataset, tmp_path: Path) -> None:
    whole = fl.train(without_dropout(bert_with_lora(texts, tmp_path, out=str(tmp_path / "whole"), batch=8)), quiet=True)
    made = without_dropout(bert_with_lora(texts, tmp_path, out=str(tmp_path / "halves"), batch=8))
    seen, said = with_room_for(2, made, error), []
    halves = api.train(made, say=said.append)
    assert made.execution.micro_batch == 2 and seen[:2] == [8, 4] and seen[2:6] == [2, 2, 2, 2]
    told = [line for line in said if "memory ran out" in line]
    assert len(told) == 2 and told[-1].startswith("step 1: memory ran out; from here on 2 rows")
    for name, value in saved(whole).items():
        torch.testing.assert_close(saved(halves)[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_a_single_row_that_does_not_fit(texts: Dataset, tmp_path: Path) -> None:
    made = bert_with_lora(texts, tmp_path, batch=2)
    with_room_for(0, made)
    with pytest.raises(TrainingStopped, match=r"step 1: 1 rows do not fit in memory.*it holds one row.*data\.max_length"):
        fl.train(made, quiet=True)


def test_a_batch_that_may_not_be_divided(digits: Dataset, tmp_path: Path) -> None:
    made = plan(cnn(digits), first_rows(digits, 24), tmp_path)
    with_room_for(4, made)
    with pytest.raises(TrainingStopped, match=r"24 rows do not fit.*learns from whole batches.*train\.batch=12"):
        fl.train(made, quiet=True)


def test_other_errors_are_others(texts: Dataset, tmp_path: Path) -> None:
    assert all(ran_out(error) for error in ERRORS) and not ran_out(RuntimeError("shapes cannot be multiplied"))
    made = bert_with_lora(texts, tmp_path)
    with_room_for(0, made, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        fl.train(made, quiet=True)
