"""Blocks without padding: the same step as with it, and decided by how much padding there would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import frostline as fl
from frostline import api
from frostline.data.dataset import Dataset
from frostline.data.encode import SplitSource
from frostline.kernels import unpad
from frostline.plan import execution
from frostline.plan.decision import Decision
from frostline.plan.passes import pack
from frostline.plan.passes.pack import padded_share
from frostline.plan.plan import Plan
from frostline.train import loop
from frostline.train.interrupt import Interrupted
from tests import small
from tests.plan.small import bert, llama, talks
from tests.train.small import first_rows, plan, saved, stopping


def decision(made: Plan) -> Decision | None:
    return next((one for one in made.decisions if one.what == "pack"), None)


def gradients(made: Plan, rows: np.ndarray) -> tuple[float, dict[str, Tensor]]:
    """The loss and the gradients of one step, without dropout."""
    module = made.model.module.eval()
    module.zero_grad()
    batch = made.execution.sources["train"].encode(rows, None)
    total, count = made.loss(made.execution.forward(batch), batch.labels)
    (total / count).backward()
    return float(total.detach()), {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["chat", "classes"])
def test_a_step_is_the_same_on_as_off(kind: str, texts: Dataset, tmp_path: Path) -> None:
    data = talks() if kind == "chat" else first_rows(texts, 24)
    found = []
    for wish in ("on", "off"):
        model = llama(data) if kind == "chat" else bert(data, tmp_path / wish)
        made = plan(model, data, tmp_path / f"run-{wish}", adapt="full", batch=6, pack=wish)
        assert made.execution.pack == (wish == "on") and decision(made).on == (wish == "on")  # type: ignore[union-attr]
        found.append(gradients(made, np.arange(6)))
    (loss, ours), (expected, theirs) = found
    assert loss == pytest.approx(expected, rel=1e-5) and set(ours) == set(theirs) and len(ours) > 10
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5 * largest, msg=name)


def test_the_plan_says_how_much_is_padding(tmp_path: Path) -> None:
    made = plan(llama(talks()), talks(), tmp_path / "run", adapt="full", batch=6)
    share = padded_share(made.execution.sources["train"], 6)
    assert decision(made) == Decision(what="pack", on=True, why=f"{share:.0%} of a batch would be padding") and share > pack.WORTHWHILE
    assert made.execution.pack and decision(made).exact  # type: ignore[union-attr]


def test_the_padded_share_by_hand(tmp_path: Path) -> None:
    def source(*lengths: int) -> SplitSource:
        table: Any = np.zeros(len(lengths))  # only its rows are counted
        made = SplitSource(table=table, schema=talks().schema, encode=lambda rows, epoch: pytest.fail("encoded"))
        made.lengths = np.array(lengths)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SplitSource, "rows", property(lambda self: len(self.table)))
        assert padded_share(source(1, 4), 2) == pytest.approx(3 / 8)
        assert padded_share(source(5, 5, 5), 2) == 0
        assert padded_share(source(1, 1, 4, 4), 2) == 0, "rows of like length meet"


def test_off_where_little_would_be_padding_unless_forced(tmp_path: Path) -> None:
    rows = [[{"role": "user", "content": f"{n:03d}"}, {"role": "assistant", "content": "yes"}] for n in range(12)]
    data = fl.prepare([{"messages": row} for row in rows], task="chat", workers=0)
    for wish, on, why in (("auto", False, "only 0.0% of a batch would be padding"), ("on", True, "0% of a batch would be padding")):
        model = small.llama(data.task, ["0123456789 user assistant yes"])
        made = plan(model, data, tmp_path / wish, adapt="full", batch=6, pack=wish)
        assert decision(made) == Decision(what="pack", on=on, why=why) and made.execution.pack == on


def test_off_in_the_recipe_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "unpad_deviation", lambda *args: pytest.fail("proved"))
    made = plan(llama(talks()), talks(), tmp_path / "run", adapt="full", batch=6, pack="off")
    assert decision(made).why == "switched off in the recipe" and not made.execution.pack  # type: ignore[union-attr]


@pytest.mark.parametrize("wish", ["auto", "on"])
def test_off_where_attention_cannot_be_reached(wish: str, texts: Dataset, tmp_path: Path) -> None:
    data = first_rows(texts, 24)
    made = plan(fl.load("transformer", data=data, width=16, depth=1), data, tmp_path / "run", adapt="full", batch=6, pack=wish)
    assert not made.execution.pack and not decision(made).on  # type: ignore[union-attr]
    assert "attention" in decision(made).why  # type: ignore[union-attr]


@pytest.mark.parametrize("difference", [1.0, float("inf"), float("nan")])
def test_off_where_the_proof_fails(difference: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "unpad_deviation", lambda *args: difference)
    made = plan(llama(talks()), talks(), tmp_path / "run", adapt="full", batch=6, pack="on")
    assert not made.execution.pack and "the blocks give other outputs without padding" in decision(made).why  # type: ignore[union-attr]


def test_not_proposed_for_images(digits: Dataset, tmp_path: Path) -> None:
    assert decision(plan(fl.load("mlp", data=digits, width=8), digits, tmp_path / "run")) is None


def test_a_run_that_goes_on_packs_as_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chosen once: the plan of a resumed run measures nothing."""
    data, options = talks(), {"adapt": "full", "batch": 6, "pack": "on", "epochs": 2}

    def made(name: str) -> Plan:
        return plan(fl.load("gpt", data=data, width=16, depth=1, tokenizer="char", max_length=128), data, tmp_path / name, **options)

    whole = fl.train(made("whole"), quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_on_interrupt", stopping(1))
        with pytest.raises(Interrupted):
            fl.train(made("stopped"), quiet=True)
    used: list[int] = []

    def counted(*args: Any) -> Any:
        used.append(1)
        return unpad.unpadded(*args)

    monkeypatch.setattr(execution, "unpadded", counted)
    monkeypatch.setattr(pack, "propose", lambda *args: pytest.fail("planned anew"))
    again = api.resume(str(tmp_path / "stopped"), quiet=True)
    assert used and all(torch.equal(a, b) for a, b in zip(saved(whole).values(), saved(again).values(), strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rows_fill_up_where_products_are_compiled_for_their_number(precision: str, tmp_path: Path) -> None:
    made = plan(fl.load("gpt", data=talks(), width=16, depth=1, tokenizer="char", max_length=128), talks(), tmp_path / "run",
                adapt="full", pack="on", prepack="off", precision=precision)  # fmt: skip
    seen: list[int] = []
    block = made.model.module.get_submodule(made.model.blocks[0])
    norm = next(part for name, part in block.named_modules() if name and not list(part.children()))
    handle = norm.register_forward_hook(lambda _part, _args, output: seen.append(output.shape[:-1].numel()))
    batch = made.execution.sources["train"].encode(np.arange(3), None)
    made.execution.forward(batch)
    handle.remove()
    real = int(batch.inputs["attention_mask"].sum())
    assert real % 32 and seen == [real if precision == "fp32" else real + -real % 32]
