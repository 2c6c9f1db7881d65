"""The whole road of a language model, from a file of conversations to an answer; and a stopped run that goes on bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import frostline as fl
from frostline import api
from frostline.adapt.wrapper import wrappers
from frostline.data.chat_template import prompt_ids
from frostline.data.dataset import Dataset
from frostline.plan.plan import Plan
from frostline.train import loop
from frostline.train.interrupt import Interrupted
from tests import small
from tests.models.language import folder_of
from tests.train.small import saved, stopping

Make = Callable[[str], Plan]


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    """Twelve short conversations as a file, its name Chinese."""
    path = tmp_path / "对话.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in small.talks(12)), encoding="utf-8")
    return path


@pytest.fixture
def data(conversations: Path) -> Dataset:
    return fl.prepare(str(conversations), workers=0)


@pytest.fixture(params=["from zero", "adapter"])
def make(request: pytest.FixtureRequest, data: Dataset, tmp_path: Path) -> Make:
    """``make(name)``: the same plan again, for another folder; with dropout, that chance takes part."""
    if request.param == "adapter":
        folder = str(folder_of("llama", tmp_path / "llama", max_position_embeddings=200))
        options: dict[str, Any] = {"adapt": {"method": "lora", "rank": 2, "dropout": 0.2}, "lr": 1e-2}
        return lambda name: _plan(fl.load(folder, data=data, max_length=160), data, tmp_path / name, options)
    sizes: dict[str, Any] = {"width": 16, "depth": 1, "dropout": 0.2, "tokenizer": "char", "max_length": 160}
    return lambda name: _plan(fl.load("gpt", data=data, **sizes), data, tmp_path / name, {"lr": 1e-2})


def _plan(model: Any, data: Dataset, folder: Path, options: dict[str, Any]) -> Plan:
    """Whether the embedding is stored would be chosen by timing, and dropout draws otherwise then."""
    return fl.plan(model, data, out=str(folder), epochs=2, batch=4, cache="off", **options)


def test_the_whole_road(make: Make, data: Dataset, tmp_path: Path) -> None:
    assert data.task.task == "chat" and sum(table.num_rows for table in data.splits.values()) == 12
    plan = make("run")
    assert plan.decision("label_logits") and "label_logits" in str(plan)
    run = fl.train(plan, quiet=True)
    assert [epoch["step"] for epoch in run.history] == [3, 6] and run.history[1]["val_loss"] < run.history[0]["val_loss"]
    report = fl.evaluate(run)
    assert report.split == "test" and {"loss", "perplexity", "token_accuracy", "exact_match"} <= set(report.metrics)
    (example,) = report.examples
    assert example["input"].startswith("第") and example["expected"] in ("好的", "yes, 可以", "no")
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert example["expected"] in page and "Examples 样例" in page
    assert (run.folder / "report.json").read_text(encoding="utf-8") == report.to_json()
    (answered,) = fl.predict(run, ["第3问 好的"], max_new_tokens=8)
    assert answered["input"] == "第3问 好的" and isinstance(answered["text"], str)
    assert fl.predict(run.folder, ["第3问 好的"], max_new_tokens=8) == [answered]


def test_what_was_saved_is_what_was_trained(make: Make, data: Dataset) -> None:
    plan = make("run")
    run = fl.train(plan, quiet=True)
    again = fl.load(run)
    messages = [{"role": "user", "content": "第3问 好的"}]
    tokenizers = [model.card.preprocess.tokenizer for model in (plan.model, again)]  # type: ignore[union-attr]
    ids = [prompt_ids(messages, None, tokenizer) for tokenizer in tokenizers]
    assert ids[0] == ids[1] and tokenizers[0].chat_template == tokenizers[1].chat_template
    inputs = {"input_ids": torch.tensor(ids[:1]), "attention_mask": torch.ones(1, len(ids[0]), dtype=torch.int64)}
    with torch.no_grad():
        first, second = (model.module.eval()(**inputs).logits for model in (plan.model, again))
    assert torch.equal(first, second)
    assert (again.body, again.output, again.blocks) == (plan.model.body, plan.model.output, plan.model.blocks)


@pytest.mark.parametrize("step", [1, 3, 5])
def test_stopped_anywhere_it_goes_on_bit_for_bit(make: Make, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of an epoch and at its end (law 2)."""
    whole = fl.train(make("whole"), quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_on_interrupt", stopping(step))
        with pytest.raises(Interrupted):
            fl.train(make("stopped"), quiet=True)
    resumed = api.resume(str(tmp_path / "stopped"), quiet=True)
    expected, found = saved(whole), saved(resumed)
    assert list(found) == list(expected) and all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    times = ("seconds", "rows_per_second")
    assert [{k: v for k, v in one.items() if k not in times} for one in resumed.history] == [
        {k: v for k, v in one.items() if k not in times} for one in whole.history
    ]


def test_only_the_adapter_learned(data: Dataset, tmp_path: Path) -> None:
    folder = str(folder_of("llama", tmp_path / "llama", max_position_embeddings=200))
    before = fl.load(folder, data=data, max_length=160).module.state_dict()
    plan = _plan(fl.load(folder, data=data, max_length=160), data, tmp_path / "run", {"adapt": "lora", "lr": 1e-2})
    module = fl.load(fl.train(plan, quiet=True)).module
    places = list(wrappers(module))
    assert places and all(part.lora_B.any() for _, part in places)
    after = {name.replace(".base.", "."): tensor for name, tensor in module.state_dict().items() if "lora_" not in name}
    assert set(after) == set(before) and all(torch.equal(after[name], tensor) for name, tensor in before.items())
