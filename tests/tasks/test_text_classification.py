"""text classification: a batch of logits through loss, scores, metrics and decode, for every kind of label."""

import json

import pytest
import torch

from frostline.data.dataset import Schema
from frostline.errors import RecipeError
from frostline.recipe import TrainRecipe
from frostline.tasks import get_task
from frostline.tasks.task import LossOptions

LABELS = {
    "class": torch.tensor([0, 2, 1]),
    "multi-label": torch.tensor([[1.0, 0, 0], [0, 0, 1], [1, 1, 0]]),
    "number": torch.tensor([[0.5], [1.0], [2.0]]),
}


@pytest.mark.parametrize("target", LABELS)
def test_the_functions_fit_together(target):
    task = get_task("text-classification")
    assert (task.name, task.input_column) == ("text-classification", "text")
    schema = Schema(task="text-classification", target=target, labels=() if target == "number" else ("猫", "b", "c"))
    logits = torch.randn(3, schema.outputs, generator=torch.Generator().manual_seed(0)).requires_grad_()
    total, count = task.loss(logits, LABELS[target], LossOptions(recipe=TrainRecipe(), schema=schema))
    total.backward()
    assert count.item() == 3 and logits.grad.abs().sum() > 0
    scores = task.scores(schema, logits.detach()).numpy()
    assert scores.shape == (3, schema.outputs)
    assert task.metrics(schema, scores, LABELS[target].numpy())
    assert "label" in json.loads(json.dumps(task.decode(schema, scores[0])))


def test_an_unknown_task_is_named_with_the_known_ones():
    with pytest.raises(RecipeError, match=r"data\.task: 'text' is not a known task, expected one of image-classification, text-cl"):
        get_task("text")
