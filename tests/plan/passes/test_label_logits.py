"""What is decided of a vocabulary's logits; that they are nowhere else is shown in tests/kernels/test_outputs.py."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import frostline as fl
from frostline.plan.passes import label_logits
from frostline.plan.plan import Plan
from tests import small
from tests.train.small import first_rows, plan


@pytest.fixture
def made(tmp_path: Any) -> Plan:
    data = fl.prepare(small.talks(12), task="chat", workers=0)
    texts = ["user assistant", *(message["content"] for row in small.talks(12) for message in row["messages"])]
    return plan(small.llama(data.task, texts, max_length=128), data, tmp_path / "run", adapt="full", batch=4)


def test_on_with_the_share_that_has_a_label(made: Plan) -> None:
    (decision,) = [one for one in made.decisions if one.what == "label_logits"]
    source = made.execution.sources["train"]
    labels = source.encode(list(range(source.rows)), None).labels
    share = float((labels != -100).sum()) / labels.numel()
    assert decision.on and decision.exact and 0 < share < 0.5
    assert decision.why.startswith(f"{share:.0%} of the positions have a label; a row's logits would take ")


def test_off_where_the_network_makes_its_logits_itself(made: Plan) -> None:
    made.execution.model = dataclasses.replace(made.model, output="")
    decision = label_logits.propose(made.execution)
    assert decision is not None and not decision.on and "the network makes its logits itself" in decision.why


def test_not_proposed_where_there_is_no_vocabulary(texts: Any, tmp_path: Any) -> None:
    other = plan(fl.load("mlp", data=texts, width=8, depth=1), first_rows(texts, 20), tmp_path / "run")
    assert label_logits.propose(other.execution) is None and "label_logits" not in {one.what for one in other.decisions}
