"""Bradley-Terry against its formula; rewards of pairs and of texts alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from frostline.data.dataset import Schema
from frostline.recipe import TrainRecipe
from frostline.tasks import get_task
from frostline.tasks.losses import loss_conflicts, loss_name
from frostline.tasks.reward import TASK
from frostline.tasks.task import LossOptions

SCHEMA = Schema(task="reward", target="none")
OPTIONS = LossOptions(recipe=TrainRecipe(), schema=SCHEMA)


@pytest.fixture
def logits():
    return torch.randn(10, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)


def test_the_loss_is_its_formula(logits):
    total, count = TASK.loss(logits, torch.empty(0), OPTIONS)
    values = logits.flatten().tolist()
    wanted = sum(math.log(1 + math.exp(-(chosen - rejected))) for chosen, rejected in zip(values[::2], values[1::2], strict=True))
    assert total.item() == pytest.approx(wanted, rel=1e-12) and int(count) == 5
    assert torch.autograd.gradcheck(lambda z: TASK.loss(z, torch.empty(0), OPTIONS)[0], logits)


def test_law_1_parts_of_a_batch_add_up_to_it(logits):
    (wanted,) = torch.autograd.grad(TASK.loss(logits, torch.empty(0), OPTIONS)[0], logits)
    parts = [TASK.loss(part, torch.empty(0), OPTIONS)[0] for part in logits.split(4)]
    torch.testing.assert_close(torch.autograd.grad(sum(parts), logits)[0], wanted, rtol=0, atol=1e-10)


def test_rewards_are_measured_in_pairs_and_shown_alone(logits):
    scores = TASK.scores(SCHEMA, logits, torch.empty(0)).numpy()
    assert scores.shape == (5, 2) and scores.dtype == np.float32
    found = TASK.metrics(SCHEMA, scores, np.empty(0))
    margins = scores[:, 0] - scores[:, 1]
    assert found["accuracy"] == pytest.approx((margins > 0).mean()) and found["margin"] == pytest.approx(margins.mean(), rel=1e-5)
    assert found["loss"] == pytest.approx(TASK.loss(logits, torch.empty(0), OPTIONS)[0].item() / 5, rel=1e-5)
    assert TASK.running(SCHEMA, logits, torch.empty(0)) == (float((margins > 0).sum()), 5.0)
    alone = TASK.scores(SCHEMA, logits[:3], None).numpy()
    assert TASK.decode(SCHEMA, alone[1]) == {"reward": pytest.approx(logits[1].item(), rel=1e-6)}
    assert TASK.decode(SCHEMA, scores[0]).keys() == {"chosen_reward", "rejected_reward", "margin"}
    assert TASK.metrics(SCHEMA, scores[:0], np.empty(0)) == {}


def test_an_odd_number_of_rewards_is_a_fault_of_ours(logits):
    with pytest.raises(AssertionError, match=r"expected \(2 × rows, 1\)"):
        TASK.loss(logits[:3], torch.empty(0), OPTIONS)


def test_auto_is_bradley_terry_and_other_losses_are_refused():
    assert loss_name(TrainRecipe(), SCHEMA) == "bradley-terry" and get_task("reward") is TASK and SCHEMA.outputs == 1
    assert TASK.best_by(SCHEMA) == "loss" and TASK.running_name(SCHEMA) == "accuracy"
    (found,) = loss_conflicts(TrainRecipe(loss="dpo"), SCHEMA)
    assert found == "train.loss: 'dpo' does not fit data.task 'reward', expected bradley-terry. Use: train.loss=auto"
