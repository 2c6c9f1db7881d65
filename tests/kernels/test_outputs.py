"""Scores of labelled tokens against torch's cross-entropy on all logits; and that nobody ever makes all logits (law 6)."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import frostline as fl
from frostline.data.dataset import Schema
from frostline.data.encode import split_source
from frostline.data.loader import Batch
from frostline.evaluate.score import score_split
from frostline.kernels import outputs as outputs_module
from frostline.kernels.cross_entropy import linear_cross_entropy
from frostline.kernels.outputs import outputs_of, passing_through
from frostline.models.model import Model, logits_of
from frostline.tasks import get_task
from frostline.tasks.tokens import TokenScores
from tests import small

SCHEMA, TASK = Schema(task="chat", target="none"), get_task("chat")
ROWS = [json.dumps(row["messages"], ensure_ascii=False) for row in small.talks(8)]


def model(kind: str) -> Model:
    """tied: output and embedding are one weight. untied: a layer of its own, with a bias. lora: tied, with an adapter on the layer."""
    made = small.llama(SCHEMA, ["user assistant", *ROWS], max_length=128)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if kind == "untied":
            made.module.lm_head = nn.Linear(16, made.module.config.vocab_size)
        if kind.startswith("lora"):
            made = fl.adapt(made, "lora", targets=["lm_head", "q_proj"], dropout=0.0)
            for name, parameter in made.module.named_parameters():
                if name.endswith("lora_B"):
                    nn.init.normal_(parameter, std=0.1)
        for name, parameter in made.module.named_parameters():
            if "embed_tokens" in name or name == "lm_head.weight":
                parameter.data.mul_(20)  # as they start, all tokens are equally likely
    return made


def batch(made: Model, rows: list[int]) -> Batch:
    table = pa.table({"messages": ROWS, "tools": [None] * len(ROWS)})
    return split_source(table, SCHEMA, made.card.preprocess).encode(np.array(rows), None)


def learning(made: Model) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in made.module.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("named", [True, False], ids=["output-named", "output-unknown"])
@pytest.mark.parametrize("kind", ["tied", "untied", "lora"])
def test_equals_cross_entropy_on_all_logits(kind: str, named: bool) -> None:
    made = model(kind)
    one = batch(made, [3, 0, 6])
    where = one.labels != -100
    weights = torch.linspace(0.5, 1.5, int(where.sum()))
    logits = logits_of(made.module(**one.inputs))[where]
    expected = functional.cross_entropy(logits, one.labels[where], reduction="none")
    gradients = torch.autograd.grad((expected * weights).sum(), list(learning(made).values()))
    outputs = outputs_of(TASK, made if named else dataclasses.replace(made, output=""), one)
    ours = torch.autograd.grad((outputs.nll * weights).sum(), list(learning(made).values()))
    torch.testing.assert_close(outputs.nll, expected, rtol=1e-5, atol=1e-5)
    assert len(ours) == len(learning(made)) > 2
    for name, a, b in zip(learning(made), ours, gradients, strict=True):
        assert b.any(), name
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()), msg=name)
    assert torch.equal(outputs.correct, logits.argmax(1) == one.labels[where]) and outputs.correct.dtype == torch.bool
    assert outputs.row.tolist() == where.nonzero()[:, 0].tolist() and outputs.rows == 3


def test_an_adapter_that_is_switched_off_is_off_at_the_output_too() -> None:
    made = model("lora")
    one, layer = batch(made, [0, 1]), made.module.get_submodule("lm_head")
    with_adapter = outputs_of(TASK, made, one).nll
    layer.off = True
    expected = outputs_of(TASK, dataclasses.replace(made, output=""), one).nll
    torch.testing.assert_close(outputs_of(TASK, made, one).nll, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(with_adapter, expected, rtol=1e-3)


@pytest.mark.parametrize("method", ["lora", "vera"])
def test_an_adapters_dropout_acts_on_the_output_layer_too(method: str) -> None:
    made = fl.adapt(model("untied"), method, targets=["lm_head"], dropout=0.5)
    for name, parameter in made.module.named_parameters():
        if name.endswith(("lora_B", "vera_lambda_b")):
            nn.init.normal_(parameter, std=0.5)
    one, layer = batch(made, [3, 0, 6]), made.module.get_submodule("lm_head")
    where = one.labels != -100
    made.module.train()
    with passing_through(TASK, made):
        hidden = logits_of(made.module(**one.inputs))[where]
    torch.manual_seed(5)
    expected = functional.cross_entropy(layer(hidden), one.labels[where], reduction="none")
    torch.manual_seed(5)
    found = outputs_of(TASK, made, one).nll
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    pairs = [torch.autograd.grad(nll.sum(), list(learning(made).values())) for nll in (found, expected)]
    assert pairs[0][0].any() and all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*pairs, strict=True))
    made.module.eval()
    torch.testing.assert_close(outputs_of(TASK, made, one).nll, outputs_of(TASK, dataclasses.replace(made, output=""), one).nll)


def test_a_row_without_labels_and_a_batch_without_any() -> None:
    made = model("tied")
    one = batch(made, [0, 1])
    one.labels[0] = -100
    outputs = outputs_of(TASK, made, one)
    assert set(outputs.row.tolist()) == {1} and outputs.row_sums(outputs.nll)[0] == 0
    one.labels[:] = -100
    none = outputs_of(TASK, made, one)
    assert len(none.nll) == len(none.correct) == 0 and none.rows == 2
    none.nll.sum().backward()  # an empty micro-batch changes nothing
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in made.module.parameters())


def test_what_runs_the_network_may_be_handed_over() -> None:
    made = model("tied")
    one = batch(made, [0, 1])
    hidden = torch.randn(*one.labels.shape, 16, generator=torch.Generator().manual_seed(0))
    outputs = outputs_of(TASK, made, one, run=lambda: made.module.lm_head(hidden))
    where = one.labels != -100
    expected = functional.cross_entropy(hidden[where] @ made.module.lm_head.weight.T, one.labels[where], reduction="none")
    torch.testing.assert_close(outputs.nll, expected, rtol=1e-5, atol=1e-5)


class _Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


@pytest.mark.parametrize(("given", "expected"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2])
def test_a_task_with_one_label_a_row_gets_its_logits(given: torch.dtype, expected: torch.dtype) -> None:
    made = dataclasses.replace(model("tied"), module=_Halves())
    one = Batch(inputs={"x": torch.ones(2, 3, dtype=given)}, labels=torch.zeros(2, dtype=torch.int64), rows=torch.arange(2))
    outputs = outputs_of(get_task("text-classification"), made, one)
    assert outputs.dtype == expected and torch.equal(outputs, torch.full((2, 3), 0.5, dtype=expected))


class TestTheLayerIsAsBefore:
    @pytest.mark.parametrize("kind", ["tied", "lora"])
    def test_afterwards(self, kind: str) -> None:
        made = model(kind)
        one = batch(made, [0, 1])
        before = logits_of(made.module(**one.inputs))
        outputs_of(TASK, made, one)
        assert "forward" not in vars(made.module.lm_head) and torch.equal(logits_of(made.module(**one.inputs)), before)

    def test_within_it_passes_hidden_states_on(self) -> None:
        made = model("tied")
        one = batch(made, [0, 1])
        with passing_through(TASK, made):
            assert torch.equal(logits_of(made.module(**one.inputs)), made.module.model(**one.inputs).last_hidden_state)
        with passing_through(get_task("text-classification"), made):
            assert logits_of(made.module(**one.inputs)).shape[-1] == made.module.config.vocab_size

    def test_after_an_error(self) -> None:
        made = model("tied")

        def fail() -> Tensor:
            assert "forward" in vars(made.module.lm_head)
            raise ValueError("no such token")

        with pytest.raises(ValueError, match="no such token"):
            outputs_of(TASK, made, batch(made, [0]), run=fail)
        assert "forward" not in vars(made.module.lm_head)


class Watched(TorchDispatchMode):
    """Sees each tensor that any operation gives, in the forward and the backward pass."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.vocabulary = vocabulary
        self.rows = 0
        """The most rows of a tensor that has the vocabulary as one of its dimensions; a weight has as many as its width."""
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        self.operations += 1
        for tensor in given if isinstance(given, tuple | list) else [given]:
            if isinstance(tensor, Tensor) and self.vocabulary in tensor.shape:
                self.rows = max(self.rows, tensor.numel() // self.vocabulary)
        return given


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Logits of at most that many rows at a time, as a real vocabulary has them."""
    rows = 20
    short = functools.partial(linear_cross_entropy, chunk_bytes=rows * 4 * 80)
    monkeypatch.setattr(outputs_module, "linear_cross_entropy", short)
    yield rows


@pytest.mark.parametrize("method", ["full", "lora"])
def test_no_tensor_of_tokens_by_vocabulary_in_a_whole_run(tmp_path: Path, small_chunks: int, method: str) -> None:
    """Training with its validation, the proof of the saved model, and the scoring of a split (law 6)."""
    data = fl.prepare(small.talks(24), task="chat", workers=0)
    alphabet = "".join(chr(0x4E00 + place) for place in range(60))
    made = small.llama(data.task, [alphabet, "user assistant", *ROWS], max_length=128)
    vocabulary = made.module.config.vocab_size
    assert vocabulary > 80
    plan = fl.plan(made, data, adapt=method, epochs=1, batch=8, out=str(tmp_path / "run"))
    source = plan.execution.sources["train"]
    tokens = int(source.lengths[source.lengths.argsort()[:8]].sum())
    assert tokens > 8 * small_chunks and "validation" in plan.execution.sources
    with Watched(vocabulary) as seen:
        fl.train(plan, quiet=True)
        assert seen.operations > 500 and 0 < seen.rows <= small_chunks
        score_split(plan.model, data.schema, source, 8)
    assert seen.rows <= small_chunks


def test_the_watch_sees_what_it_is_to_see() -> None:
    made = dataclasses.replace(model("tied"), output="")
    one = batch(made, [0, 1])
    with Watched(made.module.config.vocab_size) as seen:
        outputs_of(TASK, made, one).nll.sum().backward()
    assert seen.rows >= one.labels.numel()


def test_flat_in_tokens_without_a_label() -> None:
    made, most = model("tied"), []
    for words in (1, 60):
        messages = [{"role": "user", "content": "说" * words}, {"role": "assistant", "content": "yes, 可以"}]
        table = pa.table({"messages": [json.dumps(messages, ensure_ascii=False)] * 8, "tools": [None] * 8})
        one = split_source(table, SCHEMA, made.card.preprocess).encode(np.arange(8), None)
        with Watched(made.module.config.vocab_size) as seen:
            outputs = outputs_of(TASK, made, one)
            outputs.nll.sum().backward()
        assert isinstance(outputs, TokenScores) and len(outputs.nll) < one.labels.numel()
        most.append(seen.rows)
    assert most[0] == most[1] > 0
