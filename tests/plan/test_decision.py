"""A decision goes through JSON unchanged, as a resumed run needs it."""

import dataclasses
import json

import pytest

from frostline.plan.decision import Decision


def test_round_trip_through_json():
    decision = Decision(what="cache_prefix", on=True, why="冻结部分只运行一次", saves_seconds=1.25, costs="3 MB", exact=False)
    assert Decision(**json.loads(json.dumps(dataclasses.asdict(decision)))) == decision


def test_plain_ones_are_exact_and_final():
    decision = Decision(what="x", on=False, why="y")
    assert decision.exact and decision.saves_seconds == 0 and decision.costs == ""
    with pytest.raises(dataclasses.FrozenInstanceError):
        decision.on = True
