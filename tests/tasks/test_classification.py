"""Scores and what is shown of them, for both tasks and the three kinds of label."""

import numpy as np
import pytest
import torch

from frostline.data.dataset import Schema
from frostline.tasks.classification import decode, scores

LABELS = ("猫", "dog", "<b>")


def schema(target):
    return Schema(task="image-classification", target=target, labels=() if target == "number" else LABELS)


def test_scores_are_float32_probabilities_or_numbers():
    logits = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.0, 0.0]], dtype=torch.bfloat16)
    soft = scores(schema("class"), logits)
    assert soft.dtype == torch.float32 and torch.equal(soft, logits.float().softmax(1))
    assert torch.equal(scores(schema("multi-label"), logits), logits.float().sigmoid())
    assert torch.equal(scores(schema("number"), logits[:, :1]), logits[:, :1].float())


def test_a_class_is_shown_with_all_probabilities_largest_first():
    shown = decode(schema("class"), np.array([0.2, 0.7, 0.1], dtype=np.float32))
    assert (shown["label"], shown["probability"]) == ("dog", pytest.approx(0.7))
    assert list(shown["probabilities"]) == ["dog", "猫", "<b>"]
    assert all(type(value) is float for value in shown["probabilities"].values())


def test_several_labels_and_numbers():
    shown = decode(schema("multi-label"), np.array([0.5, 0.2, 0.9]))
    assert shown["label"] == ["<b>", "猫"] and list(shown["probabilities"]) == ["<b>", "猫", "dog"]
    assert decode(schema("multi-label"), np.zeros(3))["label"] == []
    assert decode(schema("number"), np.array([1.5], dtype=np.float32)) == {"label": 1.5}
