from __future__ import annotations

from frostline.adapt.apply import adapt
from frostline.adapt.freeze import frozen_names


def test_everything_learns_and_trains(make_model):
    model = adapt(adapt(make_model(), "head"), "full")
    model.module.train()
    assert frozen_names(model.module) == []
    assert all(part.training for part in model.module.modules())
