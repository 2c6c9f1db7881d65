"""Losses against formulas written out, metrics against scipy and a count by hand; ties count against a model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from frostline.data.dataset import Schema
from frostline.errors import RecipeError
from frostline.recipe import TrainRecipe
from frostline.tasks import get_task
from frostline.tasks.losses import loss_conflicts
from frostline.tasks.task import LossOptions

TASK, SCHEMA = get_task("embedding"), Schema(task="embedding", target="none")


def options(**recipe):
    return LossOptions(recipe=TrainRecipe(**recipe), schema=SCHEMA)


def vectors(rows, several, width=8, seed=0):
    return torch.randn(rows * several, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def numbers(rows, several):
    return torch.arange(rows * several).reshape(rows, several)


def cosine(a, b):
    return (torch.dot(a, b) / a.norm() / b.norm()).item()


@pytest.mark.parametrize("several", [2, 3])
def test_contrastive(several):
    made, rows = vectors(4, several), 4
    total, count = TASK.loss(made, numbers(rows, several), options(temperature=0.1))
    expected = 0.0
    for i in range(rows):
        others = [made[several * j + part] for part in range(1, several) for j in range(rows)]
        likes = [math.exp(cosine(made[several * i], other) / 0.1) for other in others]
        expected -= math.log(likes[i] / sum(likes))
    assert total.item() == pytest.approx(expected) and count == 4
    total.backward()
    assert made.grad.abs().sum() > 0


def test_equal_texts_are_no_negatives():
    made = vectors(3, 2)
    labels = torch.tensor([[0, 9], [1, 9], [2, 0]])  # rows 0 and 1 have the same second; row 2's second is row 0's first
    total, _ = TASK.loss(made, labels, options())
    alone = [TASK.loss(made[[0, 1]], labels[:1], options())[0]]  # nothing is left beside its own: zero
    like = [torch.tensor([cosine(made[2 * i], made[2 * j + 1]) for j in keep]) / 0.05 for i, keep in ((1, (1, 2)), (2, (2, 0, 1)))]
    assert alone[0].item() == 0
    assert total.item() == pytest.approx(sum(-torch.log_softmax(row, 0)[0].item() for row in like))
    same_first = torch.tensor([[0, 1], [0, 2]])
    assert TASK.loss(made[:4], same_first, options())[0].item() == 0


def test_cosine_and_triplet():
    made = vectors(3, 2)
    total, count = TASK.loss(made, torch.tensor([0.0, 0.5, 1.0]), options())
    assert total.item() == pytest.approx(sum((cosine(made[2 * i], made[2 * i + 1]) - i / 2) ** 2 for i in range(3))) and count == 3
    made = vectors(5, 3)
    total, count = TASK.loss(made, numbers(5, 3), options(loss="triplet", margin=0.2))
    apart = [2 * cosine(made[3 * i], made[3 * i + 2]) - 2 * cosine(made[3 * i], made[3 * i + 1]) + 0.2 for i in range(5)]
    assert total.item() == pytest.approx(sum(max(0.0, value) for value in apart)) and count == 5


@pytest.mark.parametrize("name", ["cosine", "triplet"])
def test_sums_do_not_depend_on_the_batch(name):
    several, labels = (2, torch.rand(6)) if name == "cosine" else (3, numbers(6, 3))
    made = vectors(6, several)
    whole, count = TASK.loss(made, labels, options(loss=name))
    parts = [TASK.loss(made[several * i : several * (i + 2)], labels[i : i + 2], options(loss=name)) for i in range(0, 6, 2)]
    assert sum(part[0].item() for part in parts) == pytest.approx(whole.item()) and sum(part[1] for part in parts) == count


@pytest.mark.parametrize(
    ("labels", "name", "needs"),
    [
        (numbers(2, 2), "cosine", "a score in every row"),
        (numbers(2, 2), "triplet", "a negative in every row"),
        (torch.rand(2), "contrastive", "rows without scores"),
    ],
)
def test_a_loss_that_the_rows_do_not_fit(labels, name, needs):
    with pytest.raises(RecipeError, match=rf"train\.loss got '{name}', which needs {needs}"):
        TASK.loss(vectors(2, 2), labels, options(loss=name))


def test_spearman_is_scipys():
    from scipy.stats import spearmanr

    truth = torch.tensor([0.0, 0.5, 0.5, 1.0, 0.2, 0.9])
    made = TASK.scores(SCHEMA, vectors(6, 2), truth).numpy()
    assert made.shape == (6, 16) and made.dtype == np.float32
    own = (made[:, :8] * made[:, 8:]).sum(1)
    found = TASK.metrics(SCHEMA, made, truth.numpy())
    assert found["spearman"] == pytest.approx(spearmanr(own, truth.numpy())[0]) and list(found) == ["spearman", "pearson"]
    assert TASK.metrics(SCHEMA, made, np.zeros(6, np.float32)) == {}


def test_recall_is_counted_by_hand():
    made, labels = vectors(40, 3, width=4, seed=3).detach(), numbers(40, 3)
    labels[7, 1] = labels[3, 1]  # two rows have one answer
    made[3 * 7 + 1] = made[3 * 3 + 1]
    labels[9, 0] = labels[8, 0]  # and two one question
    made[3 * 9] = made[3 * 8]
    found = TASK.metrics(SCHEMA, TASK.scores(SCHEMA, made, labels).numpy(), labels.numpy())
    unit = made / made.norm(dim=-1, keepdim=True)
    texts = {int(number): unit[3 * row + part] for row in range(40) for part, number in enumerate(labels[row]) if part}
    ranks = []
    for row in range(40):
        right = {int(labels[other, 1]) for other in range(40) if labels[other, 0] == labels[row, 0]}
        own = torch.dot(unit[3 * row], unit[3 * row + 1])
        ranks.append(1 + sum(bool(torch.dot(unit[3 * row], text) >= own) for number, text in texts.items() if number not in right))
    assert found["mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
    assert found["recall@5"] == pytest.approx(np.mean([rank <= 5 for rank in ranks])) and 0 < found["recall@5"] < 1
    assert 0 < found["triplet_accuracy"] < 1


def test_one_vector_for_all_is_the_worst():
    labels = numbers(20, 2)
    scores = TASK.scores(SCHEMA, torch.ones(40, 4), labels).numpy()
    assert TASK.metrics(SCHEMA, scores, labels.numpy()) == {"mrr": pytest.approx(0.05), "recall@1": 0, "recall@5": 0, "recall@10": 0}


def test_running_and_single_texts():
    made = torch.eye(3).repeat_interleave(2, 0)
    assert TASK.running(SCHEMA, made, numbers(3, 2)) == (3, 3)
    assert TASK.running(SCHEMA, torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]]), torch.tensor([1.0, 0.0])) == (1, 1)
    vector = TASK.scores(SCHEMA, torch.tensor([[3.0, 4.0]]), None)
    assert TASK.decode(SCHEMA, vector[0].numpy())["vector"] == pytest.approx([0.6, 0.8])


def test_settings_of_other_losses_are_refused():
    assert loss_conflicts(TrainRecipe(), SCHEMA) == loss_conflicts(TrainRecipe(loss="triplet", margin=0.3), SCHEMA) == []
    assert (
        "train.temperature got 0.1, which only contrastive reads" in loss_conflicts(TrainRecipe(loss="cosine", temperature=0.1), SCHEMA)[0]
    )
    assert "expected more than 0" in loss_conflicts(TrainRecipe(temperature=0.0), SCHEMA)[0]
    assert (
        "does not fit data.task 'embedding', expected contrastive or cosine or triplet"
        in loss_conflicts(TrainRecipe(loss="bce"), SCHEMA)[0]
    )


@pytest.mark.parametrize("scored", [False, True])
def test_a_whole_run(scored, tmp_path):
    import frostline as fl
    from tests.models import tiny

    words = ["a", "good", "bad", "film", "好", "看", "电"]
    texts = [" ".join(words[n // 7**place % 7] for place in range(3)) for n in range(0, 343, 4)]
    rows = [{"query": a, "positive": b, **({"score": n % 6} if scored else {})} for n, (a, b) in enumerate(zip(texts[:40], texts[40:]))]
    data = fl.prepare(rows, task="embedding")
    model = fl.load(str(tiny.text_folder("bert", tmp_path / "bert")), data=data)
    run = fl.train(fl.plan(model, data, out=str(tmp_path / "run"), epochs=1, batch=8, lr=1e-3, adapt="full"), quiet=True)
    assert ("spearman" if scored else "mrr") in fl.evaluate(run).metrics
