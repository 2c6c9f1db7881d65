"""The report holds what the scores say, survives JSON, and prints with and without each of its parts."""

import json

import numpy as np
import pytest

from frostline.data.dataset import Schema
from frostline.evaluate.report import Report, build_report, cost_rows
from frostline.tasks.metrics import split_metrics

TARGETS = ["class", "multi-label", "number"]
SCHEMA = Schema(task="text-classification", labels=("猫", "狗"))


@pytest.mark.parametrize("target", TARGETS)
def test_json_round_trip(make_report, target):
    report = make_report(target)
    again = Report.from_dict(json.loads(report.to_json()))
    assert again.to_dict() == report.to_dict()
    assert str(again) == str(report)
    assert again.intervals == report.intervals and all(type(ends) is tuple for ends in again.intervals.values())
    assert again.history[1]["val_loss"] is None
    assert "猫" in report.to_json() or target == "number"


def test_by_hand():
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.45, 0.55], [0.2, 0.8]], dtype=np.float32)
    labels = np.array([0, 1, 1, 0, -100])
    report = build_report(SCHEMA, scores, labels, list("abcde"), split="validation")
    assert (report.split, report.rows, report.labels) == ("validation", 4, ["猫", "狗"])
    assert report.metrics == split_metrics(SCHEMA, scores[:4], labels[:4])
    assert report.confusion == [[1, 1], [1, 1]]
    assert [(one["origin"], one["true"], one["predicted"], one["probability"]) for one in report.mistakes] == [
        ("b", "狗", "猫", pytest.approx(0.8)),
        ("d", "猫", "狗", pytest.approx(0.55)),
    ]
    first = report.per_class[0]
    assert (first["label"], first["rows"], first["predicted"], first["precision"]) == ("猫", 2, 2, 0.5)
    assert sum(part["rows"] for part in report.calibration) == 4


def test_classes_that_are_absent_are_unknown_not_zero():
    scores = np.array([[0.9, 0.1, 0.0], [0.3, 0.7, 0.0]], dtype=np.float32)
    report = build_report(Schema(task="text-classification", labels=("a", "b", "缺")), scores, np.array([0, 0]), ["x", "y"], split="test")
    absent = report.per_class[2]
    assert [absent[key] for key in ("rows", "precision", "recall", "f1", "roc_auc")] == [0, None, None, None, None]
    assert any("缺" in note for note in report.notes) and "note: 2 of 3 classes" in str(report)


def test_mistakes_of_several_labels_and_numbers():
    schema = Schema(task="text-classification", target="multi-label", labels=("a", "b", "c"))
    scores = np.array([[0.9, 0.9, 0.1], [0.1, 0.2, 0.4]])
    report = build_report(schema, scores, np.array([[1, 0, 0], [0, 1, 0]]), ["x", "y"], split="test")
    assert report.mistakes[0] == {"origin": "x", "true": "a", "predicted": "a, b", "probability": pytest.approx(0.9)}
    assert report.mistakes[1] == {"origin": "y", "true": "b", "predicted": "(none)", "probability": pytest.approx(0.8)}
    number = Schema(task="text-classification", target="number")
    report = build_report(number, np.array([1.0, 5.0, 2.0]), np.array([1.0, 2.0, 2.5]), ["x", "y", "z"], split="test")
    assert [(one["origin"], one["true"], one["predicted"]) for one in report.mistakes] == [
        ("y", "2.0000", "5.0000"),
        ("z", "2.5000", "2.0000"),
    ]
    assert sorted(report.points) == [(1.0, 1.0), (2.0, 5.0), (2.5, 2.0)]


def test_at_most_twenty_mistakes_the_most_confident_first(make_report):
    report = make_report()
    sure = [one["probability"] for one in report.mistakes]
    assert len(sure) == 20 and sure == sorted(sure, reverse=True)


@pytest.mark.parametrize("target", TARGETS)
def test_the_text_shows_every_part(make_report, target):
    shown = str(make_report(target))
    name, value = next(iter(make_report(target).metrics.items()))
    assert shown.startswith(f"test: 60 rows, {name} {value:.4f} (")
    assert "errors:" in shown and "actual / predicted" in shown and "12.5 s" in shown and "1.25" in shown
    assert ("true \\ predicted" in shown) == (target == "class")


def test_a_split_without_labels_is_a_report_that_says_so():
    report = build_report(SCHEMA, np.zeros((2, 2), dtype=np.float32), np.array([-100, -100]), ["a", "b"], split="test")
    assert report.rows == 0 and report.metrics == {} and report.mistakes == []
    assert "test: 0 rows" in str(report) and "nothing to measure" in str(report)
    assert Report.from_dict(json.loads(report.to_json())).to_dict() == report.to_dict()


def test_cost_without_a_prediction_or_a_measurement():
    assert cost_rows({}) == [] and cost_rows({"predicted": {}, "actual": {}}) == []
    assert cost_rows({"predicted": {"seconds": 2.0, "parts": {"step": 2.0}}}) == [
        ["seconds", "2.0 s", "–", "–"],
        ["  step", "2.0 s", "–", "–"],
    ]
