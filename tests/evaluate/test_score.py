"""Scores of a split: whatever the batch size, in the table's order, with the module's modes as they were."""

import numpy as np
import pytest

import frostline as fl
from frostline.data.encode import split_source
from frostline.evaluate.score import score_split


@pytest.mark.parametrize("batch", [1, 3, 7, 1000])
def test_scores_do_not_depend_on_the_batch_and_keep_the_order(texts, batch):
    model = fl.load("gru", data=texts, width=16, depth=1)
    source = split_source(texts.splits["train"], texts.schema, model.card.preprocess)
    assert len(set(source.lengths.tolist())) > 1  # rows are sorted by length within
    scores = score_split(model, texts.schema, source, batch)
    one_by_one = [p["probabilities"] for p in fl.predict(model, [], texts=source.table["text"].to_pylist(), batch=1)]
    expected = np.array([[row[label] for label in texts.schema.labels] for row in one_by_one])
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_modes_are_put_back(texts):
    model = fl.adapt(fl.load("gru", data=texts, width=16, depth=1), "head")
    model.module.train()
    before = [part.training for part in model.module.modules()]
    assert len(set(before)) == 2  # the frozen part stays in evaluation mode
    score_split(model, texts.schema, split_source(texts.splits["test"], texts.schema, model.card.preprocess), 8)
    assert [part.training for part in model.module.modules()] == before
