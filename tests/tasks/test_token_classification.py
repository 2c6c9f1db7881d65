"""The numbers are seqeval's, whatever the batches; losses are sums over labelled tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval import metrics as seqeval

from frostline.data.dataset import Schema
from frostline.recipe import TrainRecipe
from frostline.tasks import get_task
from frostline.tasks.task import LossOptions
from frostline.tasks.token_classification import named_entities

TASK = get_task("token-classification")
BIO = ("O", "B-人", "B-LOC", "I-人", "I-LOC")
BIOES = ("O", *(f"{letter}-{kind}" for letter in "BIES" for kind in ("a", "b")))


def schema_of(names):
    return Schema(task="token-classification", target="tags", labels=tuple(names))


def logits_for(tags, names, width):
    """Logits whose likeliest tags are these, one list a row; padding anything."""
    logits = torch.randn(len(tags), width, len(names), generator=torch.Generator().manual_seed(1))
    for row, own in enumerate(tags):
        for place, tag in enumerate(own):
            logits[row, place, tag] = 9.0
    return logits


def padded(tags, width):
    return torch.tensor([[*own, *[-100] * (width - len(own))] for own in tags])


def pairs(names):
    tags = st.integers(0, len(names) - 1)
    row = st.lists(st.tuples(tags, tags), min_size=1, max_size=9)
    return st.lists(row, min_size=1, max_size=6).map(
        lambda rows: [[[t for t, _ in row] for row in rows], [[g for _, g in row] for row in rows]]
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("names", [BIO, BIOES, tuple("OBIES")])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_against_seqeval(names, data):
    truth, guess = data.draw(pairs(names))
    schema = schema_of(names)
    parts = [TASK.scores(schema, logits_for([g], names, 9), padded([t], 9)) for t, g in zip(truth, guess)]
    assert torch.equal(torch.cat(parts), TASK.scores(schema, logits_for(guess, names, 9), padded(truth, 9)))
    found = TASK.metrics(schema, torch.cat(parts).numpy(), np.zeros(0))
    spelled = [[[names[tag] for tag in row] for row in rows] for rows in (truth, guess)]
    for name, score in (("f1", seqeval.f1_score), ("precision", seqeval.precision_score), ("recall", seqeval.recall_score)):
        assert found[name] == pytest.approx(score(*spelled, zero_division=0))
        if any(tag != "O" for rows in spelled for row in rows for tag in row):
            assert found[f"{name}_macro"] == pytest.approx(score(*spelled, average="macro", zero_division=0))
    assert found["token_accuracy"] == pytest.approx(seqeval.accuracy_score(*spelled))
    if len(names) == 5 and any(tag != "O" for rows in spelled for row in rows for tag in row) and names is BIO:
        report = seqeval.classification_report(*spelled, output_dict=True, zero_division=0)
        assert {name: found[f"f1_{name}"] for name in ("人", "LOC") if name in report} == {
            name: pytest.approx(report[name]["f1-score"]) for name in ("人", "LOC") if name in report}  # fmt: skip


def test_plain_tags_are_measured_token_by_token():
    schema = schema_of(("NOUN", "VERB"))
    found = TASK.metrics(schema, TASK.scores(schema, logits_for([[0, 0, 1]], "ab", 3), padded([[0, 1, 1]], 3)).numpy(), np.zeros(0))
    assert found["f1"] == found["token_accuracy"] == pytest.approx(2 / 3) and found["f1_NOUN"] == pytest.approx(2 / 3)


def test_tokens_without_a_label_count_nothing():
    schema = schema_of(BIO)
    labels = torch.tensor([[-100, 1, -100, 3, 0]])
    scores = TASK.scores(schema, logits_for([[2, 1, 2, 3, 0]], BIO, 5), labels).numpy()
    assert TASK.metrics(schema, scores, np.zeros(0))["f1"] == 1 and scores[0, -2:].tolist() == [3, 3]
    assert TASK.running(schema, logits_for([[2, 1, 2, 3, 0]], BIO, 5), labels) == (3, 3)


def test_the_loss_is_a_sum_over_labelled_tokens():
    options = LossOptions(recipe=TrainRecipe(label_smoothing=0.1), schema=schema_of(BIO), class_weights=torch.tensor([0.5, 1, 2, 1, 1]))
    logits, labels = logits_for([[1, 2], [3]], BIO, 3).requires_grad_(), torch.tensor([[1, 0, -100], [-100, 3, -100]])
    total, count = TASK.loss(logits, labels, options)
    expected = torch.nn.functional.cross_entropy(logits.reshape(-1, 5), labels.reshape(-1), options.class_weights, label_smoothing=0.1)
    assert (total / count).item() == pytest.approx(expected.item()) and count.item() == 2.5
    parts = [TASK.loss(logits[row : row + 1], labels[row : row + 1], options) for row in range(2)]
    assert sum(part[0].item() for part in parts) == pytest.approx(total.item())


def test_scores_without_labels_are_tags_and_become_entities():
    schema = schema_of(BIO)
    tags = TASK.scores(schema, logits_for([[0, 2, 4, 1]], BIO, 4), None)
    assert tags.tolist() == [[0, 2, 4, 1]] and tags.dtype == torch.float32
    assert named_entities(schema, ["to", "New", "York", "王"], [0, 2, 4, 1]) == [
        {"text": "New York", "label": "LOC", "start": 1, "end": 3}, {"text": "王", "label": "人", "start": 3, "end": 4}]  # fmt: skip
    assert named_entities(schema, ["a", "b"], [2, None]) == [{"text": "a", "label": "LOC", "start": 0, "end": 1}]
    assert [one["label"] for one in named_entities(schema_of(("N", "V")), ["a", "b"], [0, 1])] == ["N", "V"]


def test_a_row_is_shown_by_its_metrics():
    schema = schema_of(BIO)
    row = TASK.scores(schema, logits_for([[1, 3]], BIO, 2), padded([[1, 3]], 2)).numpy()[0]
    assert TASK.decode(schema, row)["f1"] == 1 and TASK.best_by(schema) == "f1" and TASK.running_name(schema) == "token_accuracy"
    assert TASK.epoch_metrics(schema, row[None], np.zeros(0)).keys() < TASK.metrics(schema, row[None], np.zeros(0)).keys()


def test_a_whole_run(tmp_path):
    import frostline as fl
    from tests.models import tiny

    lines = "\n".join(f"a O\ngood{number % 3} B-片\nfilm I-片\n这 O\n" for number in range(40))
    (tmp_path / "a.conll").write_text(lines, encoding="utf-8")
    data = fl.prepare(str(tmp_path / "a.conll"), task="token-classification")
    model = fl.load(str(tiny.text_folder("bert", tmp_path / "bert")), data=data)
    run = fl.train(fl.plan(model, data, out=str(tmp_path / "run"), epochs=2, batch=8, lr=1e-2, adapt="full"), quiet=True)
    metrics = fl.evaluate(run).metrics
    assert metrics["f1"] == metrics["f1_片"] == 1
