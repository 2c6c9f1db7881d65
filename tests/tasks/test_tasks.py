"""Every task through one battery: what it is called and reads; those with one label a row also from outputs to what is shown."""

from __future__ import annotations

import json

import pytest
import torch

from frostline.data.clean import CLASSIFICATION
from frostline.data.dataset import COLUMNS, Schema
from frostline.errors import RecipeError
from frostline.recipe import TrainRecipe
from frostline.tasks import get_task
from frostline.tasks.metrics import higher_is_better
from frostline.tasks.task import LossOptions
from frostline.tasks.tokens import TokenScores

ONE_LABEL_A_ROW = {
    "class": torch.tensor([0, 2, 1]),
    "multi-label": torch.tensor([[1.0, 0, 0], [0, 0, 1], [1, 1, 0]]),
    "number": torch.tensor([[0.5], [1.0], [2.0]]),
}
EXAMPLES = {
    "image-classification": ("path", ONE_LABEL_A_ROW),
    "text-classification": ("text", ONE_LABEL_A_ROW),
}
"""The input column of each task, and the labels of three rows for each target."""
SHOWN = {"class": str, "multi-label": list, "number": float}


def known_tasks() -> list[str]:
    with pytest.raises(RecipeError) as error:
        get_task("")
    return str(error.value).partition("expected one of ")[2].partition(". Use:")[0].split(", ")


def test_no_task_is_left_out():
    assert sorted(EXAMPLES) == sorted(CLASSIFICATION), "give each task with one label a row its rows in EXAMPLES"
    assert set(EXAMPLES) <= set(known_tasks())


@pytest.mark.parametrize("name", known_tasks())
def test_each_is_found_by_its_name_and_reads_a_column_of_its_rows(name):
    task = get_task(name)
    assert task.name == name and task.input_column in {**COLUMNS, "image-classification": ("path",)}[name]


@pytest.mark.parametrize(("name", "target"), [(name, target) for name, (_, targets) in EXAMPLES.items() for target in targets])
def test_the_functions_fit_together(name, target):
    task, (column, targets) = get_task(name), EXAMPLES[name]
    assert (task.name, task.input_column) == (name, column)
    labels = targets[target]
    schema = Schema(task=name, target=target, labels=() if target == "number" else ("猫", "b", "c"))
    options = LossOptions(recipe=TrainRecipe(), schema=schema)
    logits = torch.randn(3, schema.outputs, generator=torch.Generator().manual_seed(0)).requires_grad_()
    total, count = task.loss(logits, labels, options)
    total.backward()
    assert count.item() == 3 and logits.grad.abs().sum() > 0
    (first, one), (rest, two) = (task.loss(logits[rows], labels[rows], options) for rows in (slice(0, 1), slice(1, 3)))
    assert (first + rest).item() == pytest.approx(total.item()) and one + two == count  # law 1
    scores = task.scores(schema, logits.detach(), labels).numpy()
    assert (task.scores(schema, logits.detach(), None).numpy() == scores).all()
    assert scores.shape == (3, schema.outputs) and scores.dtype == "float32"
    metrics, quick = (measure(schema, scores, labels.numpy()) for measure in (task.metrics, task.epoch_metrics))
    assert metrics and task.best_by(schema) in {**quick, "loss": 0.0}
    assert {name: metrics[name] for name in quick if name in metrics} == pytest.approx({n: quick[n] for n in quick if n in metrics})
    shown, rows = task.running(schema, logits.detach(), labels)
    assert rows == 3 and shown >= 0 and task.running_name(schema).isidentifier()
    assert isinstance(json.loads(json.dumps(task.decode(schema, scores[0])))["label"], SHOWN[target])


def token_scores(rows, *, seed=0):
    """What a network with a vocabulary gives for these rows (2, 0 and 3 labelled tokens of three)."""
    row = torch.tensor([place for place, old in enumerate(rows) for _ in range((2, 0, 3)[old])], dtype=torch.int64)
    which = torch.tensor([token for old in rows for token in range((0, 2, 2)[old], (2, 2, 5)[old])], dtype=torch.int64)
    nll = torch.rand(5, generator=torch.Generator().manual_seed(seed))[which].requires_grad_()
    correct = torch.tensor([True, False, True, True, False])[which]
    return TokenScores(nll=nll, correct=correct, row=row, rows=len(rows))


def tag_logits(rows):
    return torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0))[list(rows)].requires_grad_()


def vectors(rows):
    return torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))[list(rows)].reshape(-1, 5).requires_grad_()


LANGUAGE = (token_scores, Schema(task="causal-lm", target="none"), torch.zeros(3, 4, dtype=torch.int64), 5)
TAGS = torch.tensor([[0, 1, 2, -100], [1, -100, -100, -100], [2, 0, 1, 1]])
OTHERS = {
    **dict.fromkeys(("chat", "causal-lm", "translation", "summarisation"), LANGUAGE),
    "token-classification": (tag_logits, Schema(task="token-classification", target="tags", labels=("O", "B-猫", "I-猫")), TAGS, 8),
    "embedding": (vectors, Schema(task="embedding", target="none"), torch.tensor([0.1, 0.9, 0.5]), 3),
}
"""Of tasks whose labels are of another kind: outputs of some of three rows, a schema, the labels, and how much they count in all."""


@pytest.mark.parametrize("name", OTHERS)
def test_the_functions_fit_together_where_labels_are_of_another_kind(name):
    task, (outputs, schema, labels, counted) = get_task(name), OTHERS[name]
    options = LossOptions(recipe=TrainRecipe(), schema=schema)
    whole = outputs((0, 1, 2))
    total, count = task.loss(whole, labels, options)
    total.backward()
    learned = whole.nll if isinstance(whole, TokenScores) else whole
    assert count.item() == counted and learned.grad.abs().sum() > 0
    parts = [task.loss(outputs(rows), labels[list(rows)], options) for rows in ((0,), (1, 2))]
    assert (
        sum(part[0].item() for part in parts) == pytest.approx(total.item()) and sum(part[1].item() for part in parts) == counted
    )  # law 1
    none = task.loss(outputs(()), labels[:0], options)
    assert none[0].item() == none[1].item() == 0  # an empty batch changes nothing
    scores = task.scores(schema, outputs((0, 1, 2)), labels)
    alone = [task.scores(schema, outputs((row,)), labels[row : row + 1]) for row in range(3)]
    assert torch.equal(torch.cat(alone), scores) and scores.dtype == torch.float32 and len(scores) == 3
    of_rows = torch.zeros(0) if labels.ndim == 2 else labels
    metrics, quick = (measure(schema, scores.numpy(), of_rows.numpy()) for measure in (task.metrics, task.epoch_metrics))
    assert json.loads(json.dumps(metrics)) and set(quick) <= set(metrics) and task.best_by(schema) in {**quick, "loss": 0.0}
    assert all(isinstance(higher_is_better(metric), bool) for metric in quick)
    shown, rows = task.running(schema, outputs((0, 1, 2)), labels)
    assert 0 <= shown <= rows and task.running_name(schema).isidentifier()
    assert json.dumps(task.decode(schema, scores[0].numpy()))


@pytest.mark.parametrize("name", ["image", "text"])
def test_an_unknown_task_is_named_with_the_known_ones(name):
    with pytest.raises(RecipeError, match=rf"data\.task: '{name}' is not a known task, expected one of image-classification, text-cl"):
        get_task(name)
