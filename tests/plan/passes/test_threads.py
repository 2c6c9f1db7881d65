"""Fewer cores compute where the others load: by trial, by the recipe, again in a run that goes on, and with the same results."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import frostline as fl
from frostline.data.dataset import Dataset
from frostline.plan.decision import Decision
from frostline.plan.passes import threads
from frostline.plan.plan import Plan
from frostline.train import loop
from tests.train.small import cnn, first_rows, plan, saved, stopped_and_resumed


@pytest.fixture(autouse=True)
def _four_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 4)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data(digits: Dataset) -> Dataset:
    return first_rows(digits, 60)


def decision(made: Plan) -> Decision | None:
    return next((one for one in made.decisions if one.what == "threads"), None)


def test_the_recipe_names_a_number(data: Dataset, tmp_path: Path) -> None:
    usual = plan(cnn(data), data, tmp_path / "all")
    made = plan(cnn(data), data, tmp_path / "two", threads=2)
    found = decision(made)
    assert found and found.on and found.exact and "2 of 4 cores compute" in found.why and "the recipe asks for it" in found.why
    seen: set[int] = set()
    forward = made.execution.forward
    made.execution.forward = lambda batch: (seen.add(torch.get_num_threads()), forward(batch))[1]  # type: ignore[method-assign]
    few, all_cores = fl.train(made, quiet=True), fl.train(usual, quiet=True)
    assert seen == {2} and torch.get_num_threads() == 4
    for ours, theirs in zip(few.history, all_cores.history, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    for name, value in saved(all_cores).items():
        torch.testing.assert_close(saved(few)[name], value, rtol=1e-3, atol=1e-4, msg=name)


def propose(made: Plan, steps: float, monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], **changes: Any) -> tuple[Any, Any]:
    """Where trials take these seconds; ``changes`` of the probe, whose rows are read in threads and take long to encode."""
    asked: list[list[int]] = []

    def tried(_: Any, __: Any, ___: int, numbers: list[int]) -> list[float]:
        asked.append(numbers)
        return [seconds[number] for number in numbers]

    monkeypatch.setattr(threads, "_seconds", tried)
    made.execution.threads, made.execution.workers = None, changes.pop("workers", 4)
    usual = {"batch": 24, "encode_row": 0.01, "prefix_row": 0.0, "step": 0.1, "forward": 0.05, "input_bytes": 1}
    measured = threads.Probe(**{**usual, "saved_bytes": 1, "transient_bytes": 1, **changes})
    found, after = threads.propose(made.recipe, made.execution, made.loss, measured, steps)
    if found is None:
        assert after == measured and made.execution.threads is None
    return found, (after, asked)


def test_by_trial(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(cnn(data), data, tmp_path)
    found, (after, asked) = propose(made, 10_000, monkeypatch, {4: 2.0, 2: 1.0, 1: 1.5})
    assert asked == [[4, 2, 1]] and found.settings == {"threads": 2} and made.execution.threads == 2
    assert found.saves_seconds == pytest.approx(10_000 / threads._BATCHES)
    assert (after.step, after.forward, after.encode_row) == pytest.approx((0.05, 0.025, 0.005))


@pytest.mark.parametrize(
    ("steps", "seconds", "changes"),
    [
        (10_000, {4: 1.0, 2: 0.99, 1: 1.2}, {}),  # hardly faster
        (100, {4: 2.0, 2: 1.0, 1: 1.0}, {}),  # a trial would take longer than it saves
        (10_000, {4: 2.0, 2: 1.0, 1: 1.0}, {"encode_row": 1e-4}),  # there is little to load
        (10_000, {4: 2.0, 2: 1.0, 1: 1.0}, {"workers": 0}),  # nothing is loaded beside the step
    ],
)
def test_all_cores_compute(
    steps: float, seconds: dict[int, float], changes: dict[str, Any], data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = propose(plan(cnn(data), data, tmp_path), steps, monkeypatch, seconds, **changes)
    assert found is None


def test_rows_of_a_store_are_not_encoded(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(cnn(data), data, tmp_path, adapt="head", cache="on")
    assert made.execution.line is not None
    assert propose(made, math.inf, monkeypatch, {4: 2.0, 2: 1.0, 1: 1.0})[0] is None


def test_a_trial_leaves_everything_as_it_was(data: Dataset, tmp_path: Path) -> None:
    made = plan(cnn(data), data, tmp_path)
    before = {name: value.clone() for name, value in made.model.module.state_dict().items()}
    seconds = threads._seconds(made.execution, made.loss, 24, [4, 1])
    assert len(seconds) == 2 and min(seconds) > 0 and torch.get_num_threads() == 4 and made.execution.threads is None
    for name, value in made.model.module.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in made.model.module.parameters())


def test_a_run_that_goes_on_takes_the_same_number(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fl.train(plan(cnn(data), data, tmp_path / "whole", threads=1), quiet=True)
    parts = stopped_and_resumed(plan(cnn(data), data, tmp_path / "parts", threads=1), 3, monkeypatch)
    for name, value in saved(whole).items():
        assert torch.equal(saved(parts)[name], value), name


@pytest.mark.parametrize(
    ("cores", "changes", "options"),
    [
        (2, {}, {}),
        (1, {}, {}),
        (4, {}, {}),
        (2, {"encode_row": 0.002}, {}),  # takes long
        (2, {"step": 0.0, "prefix_row": 0.004}, {"adapt": "head", "cache": "on"}),
        (2, {"step": 1e3, "prefix_row": 0.0}, {"adapt": "head", "cache": "on"}),  # what fills the store counts
    ],
)
def test_what_takes_little_to_encode_is_encoded_between_the_steps_of_two_cores(
    cores: int, changes: dict[str, Any], options: dict[str, Any], data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(cnn(data), data, tmp_path, **options)
    assert (made.execution.line is not None) == ("cache" in options)
    monkeypatch.setattr(threads.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(threads, "_seconds", lambda _, __, ___, numbers: [1.0] * len(numbers))
    made.execution.threads, made.execution.workers = None, 4
    usual = {"batch": 10, "encode_row": 0.0009, "prefix_row": 0.0, "step": 0.04, "forward": 0.02, "input_bytes": 1}
    measured = threads.Probe(**{**usual, "saved_bytes": 1, "transient_bytes": 1, **changes})
    named = made.recipe.with_values({"data.workers": 4})
    assert threads.propose(named, made.execution, made.loss, measured, 10)[0] is None, "the recipe names a number"
    found, after = threads.propose(made.recipe.with_values({"data.workers": None}), made.execution, made.loss, measured, 10)
    wanted = cores <= 2 and changes.get("encode_row", 0.0) < 0.001 and changes.get("step") != 1e3
    assert after == measured and made.execution.workers == (0 if wanted else 4)
    assert (found is not None) == wanted
    if found:
        assert found.on and found.exact and found.settings == {"workers": 0} and "between the steps" in found.why


def test_a_run_that_goes_on_encodes_where_it_did(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data.recipe.pop("workers")
    monkeypatch.setattr(threads, "_LITTLE", 1e9)
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 2)
    whole = fl.train(plan(cnn(data), data, tmp_path / "whole"), quiet=True)
    seen: list[int] = []
    load = loop.load
    monkeypatch.setattr(
        loop, "load", lambda encode, batches, epoch, workers: (seen.append(workers), load(encode, batches, epoch, workers))[1]
    )
    parts = stopped_and_resumed(plan(cnn(data), data, tmp_path / "parts"), 3, monkeypatch)
    assert set(seen) == {0}
    for name, value in saved(whole).items():
        assert torch.equal(saved(parts)[name], value), name


def test_no_cores_at_all(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(fl.FrostlineError, match=r"plan\.threads got 0, expected 1 or more"):
        plan(cnn(data), data, tmp_path, threads=0)
