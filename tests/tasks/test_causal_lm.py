"""Documents through a small network: bits per byte from first principles, whatever the batch; and a whole run."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
import torch

import frostline as fl
from frostline.data.dataset import Schema
from frostline.data.encode import split_source
from frostline.kernels.outputs import outputs_of
from frostline.tasks import get_task
from tests import small

SCHEMA, TASK = Schema(task="causal-lm", target="none"), get_task("causal-lm")
TEXTS = ["雪下了一整夜。", "The snow fell all night.", "雪 and ice"]


def test_bits_per_byte(tmp_path):
    model = small.llama(SCHEMA, TEXTS, max_length=9, chat=False)
    tokenizer = model.card.preprocess.tokenizer
    source = split_source(pa.table({"id": list("abc"), "text": TEXTS}), SCHEMA, model.card.preprocess)
    found = []
    with torch.no_grad():
        for size in (1, 2, 100):
            batches = [np.arange(source.rows)[start : start + size] for start in range(0, source.rows, size)]
            parts = [
                TASK.scores(SCHEMA, outputs_of(TASK, model, batch), batch.labels)
                for batch in (source.encode(rows, None) for rows in batches)
            ]
            found.append(TASK.metrics(SCHEMA, torch.cat(parts).numpy(), source.labels.numpy()))
        end = tokenizer.eos_token_id
        stream = [end, *(token for text in TEXTS for token in [*tokenizer(text)["input_ids"], end])]
        bits = 0.0
        for start in range(0, len(stream) - 1, 9):
            ids = torch.tensor([stream[start : start + 9][: len(stream) - 1 - start]])
            labels = torch.tensor(stream[start + 1 : start + 10])
            bits += torch.nn.functional.cross_entropy(model.module(ids).logits[0], labels, reduction="sum").item() / math.log(2)
    expected = bits / sum(len(text.encode()) for text in TEXTS)
    assert [one["bits_per_byte"] for one in found] == [pytest.approx(expected, rel=1e-5)] * 3
    assert found[0]["perplexity"] == pytest.approx(2 ** (bits / (len(stream) - 1)), rel=1e-5)


def test_a_whole_run(tmp_path):
    path = tmp_path / "书.txt"
    path.write_text("\n\n".join(f"第{n}段 snow fell and fell again, 雪下了 {n * 7 % 13}" for n in range(120)), encoding="utf-8")
    data = fl.prepare(str(path), task="causal-lm")
    model = fl.load("gpt", data=data, width=32, depth=1, tokenizer="char", max_length=32)
    run = fl.train(fl.plan(model, data, out=str(tmp_path / "run"), epochs=2, batch=8, lr=1e-2), quiet=True)
    metrics = fl.evaluate(run).metrics
    assert next(iter(metrics)) == "bits_per_byte" and 0 < metrics["bits_per_byte"] < 4 and metrics["token_accuracy"] > 0.3
