"""Law 1 for validation: the same numbers for every batch size, with and without the store."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch

import frostline as fl
from frostline.data.dataset import Schema
from frostline.plan.passes.cache_prefix import fill_stores
from frostline.tasks.classification import running
from frostline.tasks.metrics import split_metrics
from frostline.train.validate import validate
from tests.train.small import cnn, plan


def results(data, tmp_path, model, batch, cache, **options):
    made = plan(model, data, tmp_path, adapt="head", cache=cache, batch=batch, **options)
    if cache == "on":
        fill_stores(made.recipe, made.execution, quiet=True)
        assert "validation" in made.execution.stores
    return validate(made)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"class_weights": "balanced"}, {"loss": "focal"}])
def test_images(digits, tmp_path, options):
    reference = results(digits, tmp_path, cnn(digits), 1, "off", **options)
    assert set(reference) == {"val_loss", "val_accuracy", "val_f1_macro"} and np.isfinite(list(reference.values())).all()
    for batch, cache in [(1, "on"), (3, "off"), (3, "on"), (7, "off"), (7, "on"), (1000, "off"), (1000, "on")]:
        found = results(digits, tmp_path, cnn(digits), batch, cache, **options)
        assert found.pop("val_loss") == pytest.approx(reference["val_loss"], rel=1e-5)
        assert found == {name: value for name, value in reference.items() if name != "val_loss"}


@pytest.mark.parametrize("name", ["gru", "transformer"])
def test_texts_which_come_in_another_order(texts, tmp_path, name):
    model = fl.load(name, data=texts, width=16, depth=1)
    reference = results(texts, tmp_path, model, 1, "off")
    for batch, cache in [(3, "off"), (7, "on"), (1000, "off")]:
        assert results(texts, tmp_path, model, batch, cache) == pytest.approx(reference, rel=1e-4)


def as_numbers(data):
    def column(table):
        at = table.column_names.index("label")
        return table.set_column(at, "label", pa.array(np.asarray(table["label"], dtype=np.float64)))

    splits = {name: column(table) for name, table in data.splits.items()}
    return dataclasses.replace(data, schema=dataclasses.replace(data.schema, target="number", labels=()), splits=splits)


def test_numbers(digits, tmp_path):
    data = as_numbers(digits)
    found = [results(data, tmp_path, cnn(data), batch, cache) for batch, cache in [(1, "off"), (3, "on"), (7, "off"), (1000, "on")]]
    assert {"val_loss", "val_mae", "val_rmse"} <= set(found[0])
    assert all(other == pytest.approx(found[0], rel=1e-4) for other in found[1:])
    assert found[0]["val_loss"] == pytest.approx(found[0]["val_mse"], rel=1e-4)


def test_the_numbers_are_those_of_all_rows_at_once(digits, tmp_path):
    made = plan(cnn(digits), digits, tmp_path, batch=7)
    source, module = made.execution.sources["validation"], made.model.module
    batch = source.encode(np.arange(source.rows), None)
    module.eval()
    with torch.no_grad():
        logits = module(**batch.inputs)
    module.train()
    found = validate(made)
    assert module.training
    assert found["val_loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, batch.labels)), rel=1e-5)
    expected = split_metrics(digits.schema, logits.softmax(1).numpy(), batch.labels.numpy())
    assert found["val_accuracy"] == expected["accuracy"] and found["val_f1_macro"] == pytest.approx(expected["f1_macro"])


def test_the_running_score():
    schema = Schema(task="text-classification", target="class", labels=("a", "b"))
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    assert running(schema, logits, torch.tensor([0, 0, 0])) == (2, 3)
    assert running(schema, logits, torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])) == (2, 3)  # mixed labels
    several = dataclasses.replace(schema, target="multi-label")
    assert running(several, torch.tensor([[1.0, -1.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])) == (1.5, 2)
    number = dataclasses.replace(schema, target="number", labels=())
    assert running(number, torch.tensor([[1.0], [2.0]]), torch.tensor([[1.5], [0.0]])) == (2.5, 2)
