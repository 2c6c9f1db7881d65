from __future__ import annotations

import json

import pytest

from frostline.errors import ModelError
from frostline.models.net import Net


def test_plain_values() -> None:
    net = Net(outputs=3, head=("dense 8 relu",), pool="mean")
    values = json.loads(json.dumps(net.to_dict()))
    assert Net(**{**values, "head": tuple(values["head"])}) == net


@pytest.mark.parametrize(("name", "value"), [("outputs", 0), ("width", 1), ("depth", 0), ("depth", 2.5)])
def test_sizes_that_cannot_be(name: str, value: float) -> None:
    with pytest.raises(ModelError, match=rf"model.{name} got {value!r}, expected a whole number"):
        Net(**{"outputs": 2, name: value})  # type: ignore[arg-type]


def test_dropout_is_a_share() -> None:
    with pytest.raises(ModelError, match=r"model.dropout got 1.0, expected a share from 0 to below 1"):
        Net(outputs=2, dropout=1.0)
