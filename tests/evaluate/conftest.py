"""A report of each kind, made from invented scores."""

import numpy as np
import pytest

from frostline.data.dataset import Schema
from frostline.data.report import DataReport
from frostline.evaluate.report import build_report

HOSTILE = "<script>alert('1')</script>"
HISTORY = [
    {"epoch": 1, "step": 5, "loss": 1.0, "accuracy": 0.5, "val_loss": 1.1, "val_accuracy": 0.4, "lr": 1e-3},
    {"epoch": 2, "step": 10, "loss": 0.5, "accuracy": 0.7, "val_loss": float("nan"), "val_accuracy": 0.6, "lr": 1e-3, "best": True},
]
COST = {
    "predicted": {"seconds": 10.0, "peak_bytes": 2_000_000, "disk_bytes": 1000, "parts": {"step": 8.0}},
    "actual": {"seconds": 12.5, "peak_bytes": 1_500_000, "disk_bytes": 2000, "parts": {}},
    "whole_run": True,
}


def scores_and_labels(target, classes, rows=60):
    rng = np.random.default_rng(0)
    if target == "number":
        labels = rng.normal(size=(rows, 1)).astype(np.float32)
        return labels + 0.3 * rng.normal(size=(rows, 1)).astype(np.float32), labels
    if target == "multi-label":
        labels = (rng.random((rows, classes)) < 0.4).astype(np.float32)
        return (labels * 0.4 + rng.random((rows, classes)) * 0.6).astype(np.float32), labels
    labels = rng.integers(0, classes, rows)
    scores = rng.dirichlet(np.ones(classes), rows) * 0.9 + 0.1 * np.eye(classes)[labels]
    return scores.astype(np.float32), labels


@pytest.fixture
def make_report():
    def make(target="class", names=("猫", "dog", HOSTILE), task="text-classification", origins=None):
        schema = Schema(task=task, target=target, labels=() if target == "number" else names)
        scores, labels = scores_and_labels(target, len(names))
        origins = origins or [f"第{row}行 {HOSTILE}" for row in range(len(labels))]
        data = DataReport(source=HOSTILE, task=task, target=target, rows={"train": 50, "test": 60}, notes=[HOSTILE])
        return build_report(schema, scores, labels, origins, split="test", history=HISTORY, cost=COST, data_report=data.to_dict())

    return make
