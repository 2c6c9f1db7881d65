from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from frostline.recipe import TrainRecipe
from frostline.train.schedules import Plateau, learning_rate, warmup_steps

SCHEDULES = ["constant", "linear", "cosine", "one-cycle", "plateau"]


def curve(total: int, **options) -> list[float]:
    return [learning_rate(TrainRecipe(**options), step, total) for step in range(total + 1)]


@given(
    schedule=st.sampled_from(SCHEDULES),
    total=st.integers(1, 3000),
    warmup=st.one_of(st.floats(0, 0.99), st.integers(1, 4000).map(float)),
    share=st.floats(0, 1),
)
def test_always_between_zero_and_one(schedule, total, warmup, share):
    assert 0 <= learning_rate(TrainRecipe(schedule=schedule, warmup=warmup), round(share * total), total) <= 1


@given(schedule=st.sampled_from(["linear", "cosine", "one-cycle"]), total=st.integers(2, 3000), warmup=st.floats(0, 0.4))
def test_rises_to_one_and_then_falls_to_zero(schedule, total, warmup):
    values = curve(total, schedule=schedule, warmup=warmup)
    top = values.index(max(values))
    assert values[:top] == sorted(values[:top]) and values[top:] == sorted(values[top:], reverse=True)
    assert values[-1] == pytest.approx(0, abs=1e-12)
    assert max(values) == pytest.approx(1, abs=3 / total if schedule == "one-cycle" else 1e-9)


def test_known_points():
    assert curve(4) == [1] * 5
    assert curve(4, schedule="linear") == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert curve(4, schedule="cosine") == pytest.approx([1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 0])
    assert curve(6, schedule="linear", warmup=2) == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25, 0])
    assert curve(10, warmup=0.3)[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    one_cycle = curve(100, schedule="one-cycle")
    assert [one_cycle[step] for step in (0, 45, 90, 95, 100)] == pytest.approx([0.04, 1, 0.04, 0.02, 0])
    assert curve(100, schedule="one-cycle", warmup=20)[20] == pytest.approx(1)
    assert curve(100, schedule="one-cycle", warmup=100)[-1] == pytest.approx(1)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_as_transformers_has_it(schedule):
    import transformers

    make = getattr(transformers, f"get_{schedule}_schedule_with_warmup")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    peer = make(optimizer, num_warmup_steps=0, num_training_steps=20)
    for step in range(20):
        assert learning_rate(TrainRecipe(schedule=schedule), step, 20) == pytest.approx(peer.get_last_lr()[0])
        optimizer.step()
        peer.step()


def test_warm_up_in_steps_or_as_a_share():
    assert [warmup_steps(TrainRecipe(warmup=w), 200) for w in (0, 0.1, 0.999, 1, 50, 500)] == [0, 20, 200, 1, 50, 200]
    assert learning_rate(TrainRecipe(warmup=4), 0, 100) == 0.25  # the first step is not lost


def test_plateau_multiplies_after_the_warm_up():
    recipe = TrainRecipe(schedule="plateau", warmup=2)
    assert [learning_rate(recipe, step, 10, plateau_factor=0.25) for step in range(4)] == [0.5, 1.0, 0.25, 0.25]
    assert learning_rate(TrainRecipe(schedule="linear"), 0, 10, plateau_factor=0.25) == 1


def test_plateau_halves_after_two_results_without_a_better_one():
    plateau = Plateau()
    assert [plateau.update(v, larger_is_better=True) for v in (0.5, 0.6, 0.6, 0.55, 0.7, 0.7, 0.7, 0.7, 0.7)] == [
        1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125,
    ]  # fmt: skip
    loss = Plateau(factor=0.1, patience=1)
    assert [loss.update(v, larger_is_better=False) for v in (1.0, 0.9, math.nan, 0.8)] == pytest.approx([1, 1, 0.1, 0.1])


@given(values=st.lists(st.floats(0, 1), min_size=2, max_size=20), cut=st.integers(0, 20))
def test_plateau_goes_on_from_its_json(values, cut):
    whole, parted = Plateau(), Plateau()
    for index, value in enumerate(values):
        if index == cut:
            parted = Plateau(**json.loads(json.dumps(parted.to_dict())))
        assert whole.update(value, True) == parted.update(value, True)
    assert whole == parted
