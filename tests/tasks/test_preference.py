"""The losses against their formulas written plainly in float64; law 1; metrics; and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from frostline.data.dataset import Schema
from frostline.recipe import Recipe, TrainRecipe
from frostline.tasks import get_task
from frostline.tasks.losses import loss_conflicts, loss_name
from frostline.tasks.preference import TASK, data_conflicts
from frostline.tasks.task import LossOptions
from frostline.tasks.tokens import TokenScores

SCHEMA = Schema(task="preference", target="none")
LOSSES = ("dpo", "ipo", "orpo", "simpo", "kto")


def options(**train):
    return LossOptions(recipe=TrainRecipe(**train), schema=SCHEMA)


def outputs(pairs, references=None, dtype=torch.float64, seed=0):
    """Of each pair the counts of tokens of its answers; likelihoods at random, a gradient on each."""
    rng = torch.Generator().manual_seed(seed)
    counts = torch.tensor(pairs).reshape(-1)
    row = torch.arange(len(counts)).repeat_interleave(counts)
    nll = (torch.rand(int(counts.sum()), generator=rng, dtype=torch.float64) * 3 + 0.01).to(dtype).requires_grad_()
    return TokenScores(nll=nll, correct=torch.zeros(len(nll), dtype=torch.bool), row=row, rows=len(counts), reference=references)


def reference(count, seed=1):
    return -20 * torch.rand(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def only(whole, rows):
    """The outputs of some rows of a batch."""
    index = torch.tensor([2 * row + side for row in rows for side in (0, 1)])
    new = {int(old): place for place, old in enumerate(index)}
    mask = torch.isin(whole.row, index)
    chosen = whole.reference[rows] if whole.reference is not None else None
    moved = torch.tensor([new[int(old)] for old in whole.row[mask]], dtype=torch.int64)
    return TokenScores(nll=whole.nll[mask], correct=whole.correct[mask], row=moved, rows=len(index), reference=chosen)


def plainly(name, given, refs, beta, smoothing=0.0, margin=1.0):
    """The sum of a batch's losses, pair by pair, in plain Python."""
    sums = [[-float(given.nll.detach()[given.row == 2 * pair + side].sum()) for side in (0, 1)] for pair in range(given.rows // 2)]
    sizes = [[int((given.row == 2 * pair + side).sum()) for side in (0, 1)] for pair in range(given.rows // 2)]

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    total, ratios = 0.0, [[s - r for s, r in zip(pair, ref, strict=True)] for pair, ref in zip(sums, refs.tolist(), strict=True)]
    there = [ratio for pair, size in zip(ratios, sizes, strict=True) for ratio, n in zip(pair, size, strict=True) if n]
    z = max(0.0, sum(there) / len(there))
    for (w, ell), (size_w, size_l), (rw, rl) in zip(sums, sizes, ratios, strict=True):
        match name:
            case "dpo":
                h = beta * (rw - rl)
                total += -(1 - smoothing) * math.log(sigmoid(h)) - smoothing * math.log(sigmoid(-h))
            case "ipo":
                total += (rw / size_w - rl / size_l - 1 / (2 * beta)) ** 2
            case "orpo":
                pw, pl = math.exp(w / size_w), math.exp(ell / size_l)
                total += -w / size_w - beta * math.log(sigmoid(math.log(pw / (1 - pw)) - math.log(pl / (1 - pl))))
            case "simpo":
                total += -math.log(sigmoid(beta * w / size_w - beta * ell / size_l - margin))
            case "kto":
                total += (1 - sigmoid(beta * (rw - z))) * (size_w > 0) + (1 - sigmoid(beta * (z - rl))) * (size_l > 0)
    return total


@pytest.mark.parametrize("beta", [None, 0.7])
@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_is_its_formula(name, beta):
    refs = reference(4)
    given = outputs([(3, 5), (1, 1), (7, 2), (4, 4)], refs)
    total, count = TASK.loss(given, torch.empty(0), options(loss=name, beta=beta))
    usual = 2.0 if name == "simpo" else 0.1
    assert total.item() == pytest.approx(plainly(name, given, refs, beta or usual), rel=1e-12)
    assert int(count) == (8 if name == "kto" else 4)
    if name == "kto":  # its z has no gradient; at z = 0 there is none to miss
        given.reference = torch.zeros_like(refs)
    assert torch.autograd.gradcheck(lambda nll: TASK.loss(_with(given, nll), torch.empty(0), options(loss=name, beta=beta))[0], given.nll)


def _with(given, nll):
    return TokenScores(nll=nll, correct=given.correct, row=given.row, rows=given.rows, reference=given.reference)


def test_the_options_of_dpo_and_simpo():
    refs = reference(3)
    given = outputs([(3, 5), (1, 1), (7, 2)], refs)
    noisy, _ = TASK.loss(given, torch.empty(0), options(label_smoothing=0.2))
    assert noisy.item() == pytest.approx(plainly("dpo", given, refs, 0.1, smoothing=0.2), rel=1e-12)
    wide, _ = TASK.loss(given, torch.empty(0), options(loss="simpo", margin=0.25, beta=1.5))
    assert wide.item() == pytest.approx(plainly("simpo", given, refs, 1.5, margin=0.25), rel=1e-12)


def test_kto_takes_single_answers_and_the_other_losses_pass_them_over():
    refs = reference(3)
    given = outputs([(3, 0), (0, 4), (2, 2)], refs)
    total, count = TASK.loss(given, torch.empty(0), options(loss="kto"))
    assert total.item() == pytest.approx(plainly("kto", given, refs, 0.1), rel=1e-12) and int(count) == 4
    total.backward()
    assert given.nll.grad[:3].gt(0).all() and given.nll.grad[3:7].lt(0).all()  # a good answer is to become likelier
    alone, count = TASK.loss(given, torch.empty(0), options())
    assert int(count) == 1 and alone.item() == pytest.approx(plainly("dpo", only(given, [2]), refs[2:], 0.1))
    nothing, count = TASK.loss(only(given, [0]), torch.empty(0), options())
    assert nothing.item() == 0 and int(count) == 0
    nothing.backward()


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "kto"])
def test_law_1_parts_of_a_batch_add_up_to_it(name):
    given = outputs([(3, 5), (1, 1), (7, 2), (4, 4), (2, 6)], reference(5))
    whole, count = TASK.loss(given, torch.empty(0), options(loss=name))
    (wanted,) = torch.autograd.grad(whole, given.nll)
    parts = [TASK.loss(only(given, rows), torch.empty(0), options(loss=name)) for rows in ([0, 1], [2, 3], [4])]
    (found,) = torch.autograd.grad(sum(total for total, _ in parts), given.nll)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    assert sum(int(part) for _, part in parts) == int(count)


@pytest.mark.parametrize("name", LOSSES)
def test_sure_answers_give_finite_numbers(name):
    given = outputs([(2, 2)], torch.zeros(1, 2, dtype=torch.float64))
    for sure in ([0.0, 0.0, 500.0, 500.0], [500.0, 500.0, 0.0, 0.0]):
        nll = torch.tensor(sure, dtype=torch.float64, requires_grad=True)
        total, _ = TASK.loss(_with(given, nll), torch.empty(0), options(loss=name))
        total.backward()
        assert total.isfinite() and nll.grad.isfinite().all()


def test_a_loss_without_its_reference_is_refused():
    with pytest.raises(AssertionError, match="needs the reference's log-probabilities"):
        TASK.loss(outputs([(1, 1)]), torch.empty(0), options())


def test_scores_and_metrics():
    given = outputs([(3, 5), (1, 0), (0, 2)], reference(3))
    scores = TASK.scores(SCHEMA, given, torch.empty(0)).numpy()
    assert scores.dtype == np.float32 and np.isnan(scores).tolist() == [[False, False], [False, True], [True, False]]
    sums = -given.row_sums(given.nll).detach().view(3, 2) - given.reference
    np.testing.assert_allclose(scores[0], sums[0], rtol=1e-6)
    made = np.array([[1.0, 0.5], [2.0, np.nan], [np.nan, 3.0], [0.0, 0.0]], dtype=np.float32)
    found = TASK.metrics(SCHEMA, made, np.empty(0))
    assert found == pytest.approx({"accuracy": 2 / 4, "margin": 1 - 3.5 / 3, "chosen_reward": 1.0, "rejected_reward": 3.5 / 3})
    assert TASK.metrics(SCHEMA, made[1:2], np.empty(0)) == {"accuracy": 1.0, "chosen_reward": 2.0}
    assert TASK.metrics(SCHEMA, made[:0], np.empty(0)) == {}
    assert TASK.decode(SCHEMA, made[0]) == {"chosen_reward": 1.0, "rejected_reward": 0.5, "margin": 0.5}
    assert TASK.decode(SCHEMA, made[1]) == {"chosen_reward": 2.0}
    right, rows = TASK.running(SCHEMA, given, torch.empty(0))
    assert rows == 3 and right == TASK.metrics(SCHEMA, scores, np.empty(0))["accuracy"] * 3


def test_without_a_reference_the_reward_is_the_mean_over_tokens():
    given = outputs([(3, 5)])
    mean = -given.row_sums(given.nll).detach().view(1, 2) / torch.tensor([[3, 5]])
    np.testing.assert_allclose(TASK.scores(SCHEMA, given, None), mean, rtol=1e-6)


def test_auto_is_dpo_and_the_task_is_found():
    assert loss_name(TrainRecipe(), SCHEMA) == "dpo" and get_task("preference") is TASK and TASK.sequences == 2


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            {"loss": "mse"},
            "train.loss: 'mse' does not fit data.task 'preference', expected dpo or ipo or orpo or kto or simpo. Use: train.loss",
        ),
        ({"loss": "bradley-terry"}, "does not fit data.task 'preference'"),
        ({"beta": 0.0}, "train.beta got 0.0, expected more than 0. Use: train.beta=0.1"),
        ({"loss": "simpo", "beta": -1.0}, "Use: train.beta=2.0"),
        (
            {"margin": 2.0},
            "train.margin got 2.0, which only simpo reads, and the loss is 'dpo'. Remove train.margin, or use: train.loss=simpo",
        ),
        ({"loss": "ipo", "label_smoothing": 0.1}, "has a meaning for dpo only, and the loss is 'ipo'"),
        ({"label_smoothing": 0.5}, "of the pairs the wrong way round, expected below 0.5 for dpo. Use: train.label_smoothing=0.1"),
        ({"class_weights": "balanced"}, "train.class_weights: 'balanced' needs classes, and data.task is 'preference'"),
    ],
)
def test_conflicts_of_the_recipe(train, message):
    (found,) = loss_conflicts(TrainRecipe(**train), SCHEMA)
    assert message in found


@pytest.mark.parametrize("train", [{}, {"loss": "simpo", "margin": 2.0}, {"loss": "kto", "beta": 0.3}, {"label_smoothing": 0.1}])
def test_what_can_be_done_is_not_refused(train):
    assert loss_conflicts(TrainRecipe(**train), SCHEMA) == []


def test_other_tasks_refuse_the_options_of_preferences():
    schema = Schema(task="text-classification", labels=("a", "b"))
    assert "train.loss: 'dpo' does not fit data.target 'class'" in loss_conflicts(TrainRecipe(loss="dpo"), schema)[0]
    assert "train.beta got 0.2, which only dpo, ipo, orpo, kto, simpo read" in loss_conflicts(TrainRecipe(beta=0.2), schema)[0]


def test_single_answers_need_kto():
    splits = {"train": pa.table({"prompt": ["p", "p"], "chosen": ["a", None], "rejected": ["b", "b"]})}
    (found,) = data_conflicts(TrainRecipe(), SCHEMA, splits)
    assert found == "train.loss got 'dpo', which learns from pairs, but 1 of 2 rows have one answer alone. Use: train.loss=kto"
    assert data_conflicts(TrainRecipe(loss="kto"), SCHEMA, splits) == []


def test_the_new_keys_are_read_from_words():
    recipe = Recipe().with_values({"train.loss": "simpo", "train.beta": "2.5", "train.margin": "1.6"})
    assert (recipe.train.loss, recipe.train.beta, recipe.train.margin) == ("simpo", 2.5, 1.6)
