"""The rate finder: a rate that trains, the weights as before, and a picture that stands alone."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest
import torch

import frostline as fl
from frostline.errors import TrainingStopped
from frostline.train.find_lr import FoundRate, _suggestion, find_lr
from tests.train.small import cnn, plan


def mlp(data):
    return fl.load("mlp", data=data, width=64, depth=1)


def test_a_rate_that_trains(digits, tmp_path):
    made = plan(mlp(digits), digits, tmp_path / "none", optimizer="adam", batch=32)
    found = find_lr(made)
    assert 1e-4 < found.suggestion < 0.3 and found.suggestion < (found.diverges_at or 1.0) <= 1.0
    assert found.lrs == sorted(found.lrs) and found.lrs[0] == pytest.approx(1e-6) and len(found.lrs) == len(found.losses)
    assert found.losses[0] == pytest.approx(math.log(10), rel=0.2)  # ten classes, nothing learned yet
    run = fl.train(plan(mlp(digits), digits, tmp_path / "run", optimizer="adam", batch=32, lr=found.suggestion, epochs=4), quiet=True)
    assert run.history[-1]["val_accuracy"] > 0.75
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("options", [{"adapt": "full"}, {"adapt": "head", "cache": "on"}, {"ema": 0.9, "channels_last": "on"}])
def test_the_weights_come_back_bit_for_bit(digits, tmp_path, options):
    made = plan(cnn(digits), digits, tmp_path, **options)
    before = {name: tensor.clone() for name, tensor in made.model.module.state_dict().items()}
    first = find_lr(made, steps=30)
    after = made.model.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in made.model.module.parameters())
    second = find_lr(made, steps=30)
    assert first == second


def test_the_weights_come_back_after_an_error_too(digits, tmp_path, monkeypatch):
    made = plan(cnn(digits), digits, tmp_path)
    before = {name: tensor.clone() for name, tensor in made.model.module.state_dict().items()}
    losses, loss = [], type(made).loss

    def broken(self, logits, labels):
        losses.append(1)
        if len(losses) == 5:
            raise KeyboardInterrupt
        return loss(self, logits, labels)

    monkeypatch.setattr(type(made), "loss", broken)
    with pytest.raises(KeyboardInterrupt):
        find_lr(made, steps=30)
    assert all(torch.equal(made.model.module.state_dict()[name], tensor) for name, tensor in before.items())


def test_up_to_the_highest_rate_where_nothing_blows_up(digits, tmp_path):
    found = find_lr(plan(mlp(digits), digits, tmp_path), lowest=1e-5, highest=1e-2, steps=20)
    assert len(found.lrs) == 20 and found.diverges_at is None and found.lrs[-1] == pytest.approx(1e-2)


def test_nothing_to_be_seen(digits, tmp_path, monkeypatch):
    made = plan(cnn(digits), digits, tmp_path)
    monkeypatch.setattr(type(made), "loss", lambda self, logits, labels: (logits.sum() * float("nan"), torch.tensor(1.0)))
    with pytest.raises(TrainingStopped, match=r"find-lr: the loss blew up after 0 batches, expected 10.*frostline check"):
        find_lr(made)


@pytest.mark.parametrize("losses", [[2.3, 2.0, 1.5, 1.4, 3.0], [1.0] * 5])
def test_the_picture(losses):
    found = FoundRate(lrs=[1e-5, 1e-4, 1e-3, 1e-2, 1e-1], losses=losses, suggestion=1e-3, diverges_at=0.1)
    root = ElementTree.fromstring(found.svg())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "1e-3" in texts and "learning rate" in texts and "1.0e-03" in texts
    line = next(root.iter("{http://www.w3.org/2000/svg}polyline")).attrib["points"].split()
    points = [tuple(map(float, point.split(","))) for point in line]
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert len(points) == 5 and all(0 <= x <= width and 0 <= y <= height for x, y in points)
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert not [element for element in root.iter() if any("http" in value for value in element.attrib.values())]


def test_the_first_losses_and_those_beside_the_lowest_suggest_nothing():
    lrs = [10 ** (-6 + index / 10) for index in range(50)]
    losses = [3.0, 2.0, 2.6, *[2.5] * 22, *[2.5 - 0.1 * index for index in range(20)], *[0.6] * 5]
    suggestion = _suggestion(lrs, losses)
    assert lrs[25] <= suggestion <= lrs[losses.index(min(losses))] / 10 * 1.001
