"""Metrics equal scikit-learn's and what is worked out by hand; batches do not matter; what is not known is left out."""

import math

import numpy as np
import pytest
import sklearn.metrics as sk
import torch

from frostline.data.dataset import Schema
from frostline.errors import ModelError, RecipeError
from frostline.tasks import get_task, metrics
from frostline.tasks.metrics import epoch_metrics, higher_is_better, metric_notes, split_metrics

AVERAGES = ("macro", "micro", "weighted")


def schema(classes=4, target="class"):
    labels = () if target == "number" else tuple(f"类{i}" for i in range(classes))
    return Schema(task="text-classification", target=target, labels=labels)


def class_data(rows=300, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, classes)) + 1.5 * np.eye(classes)[labels]
    return torch.tensor(logits).softmax(1).float().numpy(), labels


def several_data(rows=200, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random((rows, classes)) < [0.1, 0.3, 0.5, 0.7, 0.9]).astype(np.float32)
    return (1 / (1 + np.exp(-(rng.normal(size=labels.shape) + labels * 2 - 1)))).astype(np.float32), labels


def number_data(rows=50, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.normal(size=(rows, 1)).astype(np.float32)
    return (labels + rng.normal(size=(rows, 1)) / 3).astype(np.float32), labels


DATA = {"class": class_data, "multi-label": several_data, "number": number_data}


def schema_of(target):
    return schema(5 if target == "multi-label" else 4, target)


def sk_averages(labels, predicted, **more):
    found = {}
    for average in AVERAGES:
        values = sk.precision_recall_fscore_support(labels, predicted, average=average, zero_division=0, **more)
        found |= {f"{name}_{average}": value for name, value in zip(("precision", "recall", "f1"), values)}
    return found


@pytest.mark.parametrize("classes", [2, 4, 9])
def test_class_metrics_are_scikit_learns(classes):
    scores, labels = class_data(classes=classes)
    predicted = scores.argmax(1)
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        **sk_averages(labels, predicted),
        "log_loss": sk.log_loss(labels, scores),
        "roc_auc": sk.roc_auc_score(labels, scores[:, 1] if classes == 2 else scores, multi_class="ovr", average="macro"),
    }
    if classes > 5:
        expected["top5_accuracy"] = sk.top_k_accuracy_score(labels, scores, k=5)
    got = split_metrics(schema(classes), scores, labels)
    error = got.pop("calibration_error")
    assert 0 < error < 1
    assert got == pytest.approx(expected, rel=1e-6)
    assert next(iter(got)) == "accuracy" and all(type(value) is float for value in got.values())


def test_several_labels_are_scikit_learns():
    scores, labels = several_data()
    given = scores >= 0.5
    got = split_metrics(schema(5, "multi-label"), scores, labels)
    expected = {
        "subset_accuracy": sk.accuracy_score(labels, given),
        "hamming_loss": sk.hamming_loss(labels, given),
        **sk_averages(labels, given),
        "roc_auc": sk.roc_auc_score(labels, scores, average="macro"),
    }
    assert got == pytest.approx(expected, rel=1e-6)


def test_numbers_are_scikit_learns():
    scores, labels = number_data()
    got = split_metrics(schema(target="number"), scores, labels)
    assert got == pytest.approx(
        {
            "mse": sk.mean_squared_error(labels, scores),
            "rmse": sk.root_mean_squared_error(labels, scores),
            "mae": sk.mean_absolute_error(labels, scores),
            "r2": sk.r2_score(labels, scores),
        },
        rel=1e-6,
    )


def test_by_hand():
    scores = np.array([[0.75, 0.25], [0.5, 0.5], [0.25, 0.75], [0.25, 0.75]], dtype=np.float32)
    labels = np.array([0, 1, 1, 0])
    got = split_metrics(schema(2), scores, labels)
    assert got["accuracy"] == 0.5
    assert got["f1_macro"] == pytest.approx((2 * 1 / (2 + 2) + 2 * 1 / (2 + 2)) / 2)
    assert got["log_loss"] == pytest.approx(-(math.log(0.75) + math.log(0.5) + math.log(0.75) + math.log(0.25)) / 4)
    # class 1 against class 0: 0.5 > 0.25, 0.5 < 0.75, 0.75 > 0.25, 0.75 = 0.75 → (1 + 0 + 1 + ½) / 4
    assert got["roc_auc"] == pytest.approx(2.5 / 4)
    # bins: 0.5 (row 1, wrong), 0.75 (rows 0, 2, 3; two right)
    assert got["calibration_error"] == pytest.approx(1 / 4 * 0.5 + 3 / 4 * abs(2 / 3 - 0.75))


def test_roc_auc_with_ties_is_scikit_learns():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 5, 200) / 4
    labels = rng.random(200) < 0.2 + 0.5 * scores
    area = metrics.roc_areas(scores[:, None], labels[:, None])[0]
    assert area == pytest.approx(sk.roc_auc_score(labels, scores), rel=1e-12)


@pytest.mark.parametrize("target", DATA)
@pytest.mark.parametrize("batch", [1, 3, 7, 1000])
def test_batches_do_not_matter(target, batch):
    task = get_task("text-classification")
    scores, labels = DATA[target]()
    logits = torch.tensor(scores)
    whole = task.metrics(schema_of(target), task.scores(schema_of(target), logits).numpy(), labels)
    parts = [task.scores(schema_of(target), part).numpy() for part in logits.split(batch)]
    assert task.metrics(schema_of(target), np.concatenate(parts), labels) == pytest.approx(whole, rel=1e-6)
    assert len(whole) > 3


@pytest.mark.parametrize("target", DATA)
def test_the_epochs_metrics_are_among_the_splits_and_lead_with_the_same(target):
    scores, labels = DATA[target]()
    quick, full = epoch_metrics(schema_of(target), scores, labels), split_metrics(schema_of(target), scores, labels)
    assert quick == {name: full[name] for name in quick}
    assert next(iter(quick)) == next(iter(full))
    for name in full:
        assert higher_is_better(name) == (name not in ("log_loss", "calibration_error", "hamming_loss", "mse", "rmse", "mae"))


def test_absent_classes_are_left_out_with_a_note():
    scores, labels = class_data(classes=4)
    kept = labels < 2
    scores, labels = scores[kept], labels[kept]
    scores[:, 3] = 0.0
    got = split_metrics(schema(4), scores, labels)
    predicted = scores.argmax(1)
    assert set(predicted) == {0, 1, 2}
    assert got["f1_macro"] == pytest.approx(sk.f1_score(labels, predicted, average="macro", zero_division=0))
    areas = [sk.roc_auc_score(labels == index, scores[:, index]) for index in (0, 1)]
    assert got["roc_auc"] == pytest.approx(np.mean(areas))
    notes = metric_notes(schema(4), scores, labels)
    assert len(notes) == 1 and "2 of 4 classes have no row" in notes[0] and "类2, 类3" in notes[0]


def test_one_class_only_has_no_roc_auc():
    scores, labels = class_data(classes=2)
    got = split_metrics(schema(2), scores[labels == 0], labels[labels == 0])
    assert "roc_auc" not in got and "accuracy" in got
    notes = metric_notes(schema(2), scores[labels == 0], labels[labels == 0])
    assert any("Every row of this split is 类0" in note for note in notes)


def test_equal_numbers_have_no_r2():
    assert set(split_metrics(schema(target="number"), np.array([1.0, 2.0]), np.array([1.0, 1.0]))) == {"mse", "rmse", "mae"}
    assert metric_notes(schema(target="number"), np.zeros(2), np.ones(2)) == ["R² is left out: all labels of this split are equal."]


@pytest.mark.parametrize("target", DATA)
def test_rows_without_a_label_are_not_counted(target):
    scores, labels = DATA[target]()
    whole = split_metrics(schema_of(target), scores[5:], labels[5:])
    labels = labels.copy()
    labels[:5] = np.nan if target == "number" else -100
    scores[:5] = np.nan
    assert split_metrics(schema_of(target), scores, labels) == whole
    assert split_metrics(schema_of(target), scores[:5], labels[:5]) == {}
    assert epoch_metrics(schema_of(target), scores[:0], labels[:0]) == {}
    assert "No row" in metric_notes(schema_of(target), scores[:5], labels[:5])[0]


def test_outputs_that_are_not_finite_are_an_error():
    scores, labels = class_data()
    scores[7, 0] = np.nan
    with pytest.raises(ModelError, match=r"nan.* in row 7, 1 of 300 rows are not finite, expected numbers.*train\.lr"):
        split_metrics(schema(), scores, labels)


def test_log_loss_of_a_probability_of_zero_is_finite():
    got = split_metrics(schema(2), np.array([[1.0, 0.0], [0.5, 0.5]], dtype=np.float32), np.array([1, 0]))
    assert 7 < got["log_loss"] < 9


def test_an_unknown_metric_is_named_with_the_known_ones():
    with pytest.raises(RecipeError, match=r"train\.best_by: 'acuracy' is not a metric, expected one of loss, accuracy"):
        higher_is_better("acuracy")


def test_counts_take_leading_dimensions():
    scores, labels = class_data()
    counts = [metrics.count_classes(labels[rows], scores[rows].argmax(1), 4) for rows in (slice(0, 100), slice(100, 300))]
    both = metrics.Counts(**{name: np.stack([getattr(c, name) for c in counts]) for name in ("right", "predicted", "actual")})
    for name, values in metrics.averages(both).items():
        assert values.shape == (2,)
        assert values.tolist() == pytest.approx([float(metrics.averages(c)[name]) for c in counts])
