"""Pairs through small networks with and without an encoder: the loss is that of the target's tokens alone."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch

import frostline as fl
from frostline.data.dataset import Schema
from frostline.data.encode import split_source
from frostline.data.preprocess import TextPreprocess
from frostline.evaluate import answers
from frostline.kernels.outputs import outputs_of
from frostline.models.model import Card, Model
from frostline.models.seq2seq import build_seq2seq
from frostline.models.tokenizer import train_tokenizer
from frostline.recipe import DataRecipe, TrainRecipe
from frostline.tasks import get_task
from frostline.tasks.task import LossOptions
from tests import small
from tests.models.language import folder_of

SCHEMA, TASK = Schema(task="translation", target="none"), get_task("translation")
TEXTS = ["Translate 翻译: snow and ice rain 雪和冰雨\nuserassistant"] * 2
TABLE = pa.table({"id": ["1", "2"], "source": ["snow and ice", "rain"], "target": ["雪和冰", "雨"]})


def with_encoder():
    tokenizer = train_tokenizer(TEXTS, "char", 90, "seq2seq")
    names = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")
    preprocess = TextPreprocess(tokenizer=tokenizer, max_length=32, inputs=names, start=tokenizer.bos_token_id)
    torch.manual_seed(0)
    module = build_seq2seq(vocabulary=len(tokenizer), width=8, depth=1, dropout=0.0)
    return Model(module=module, card=Card(name="custom", schema=SCHEMA, preprocess=preprocess), body="model", output="lm_head")


@pytest.mark.parametrize("make", [with_encoder, lambda: small.llama(SCHEMA, TEXTS, max_length=128)], ids=["encoder-decoder", "decoder"])
def test_the_loss_is_the_targets(make):
    model = make()
    source = split_source(TABLE, SCHEMA, model.card.preprocess, recipe=DataRecipe(task="translation"))
    batch = source.encode(np.array([0, 1]), None)
    options = LossOptions(recipe=TrainRecipe(), schema=SCHEMA)
    total, count = TASK.loss(outputs_of(TASK, model, batch), batch.labels, options)
    logits = model.module(**batch.inputs).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="sum")
    assert count == len("雪和冰") + len("雨") + 2 and total.item() == pytest.approx(expected.item(), rel=1e-5)
    alone = [
        TASK.loss(outputs_of(TASK, model, one), one.labels, options)[0].item()
        for one in (source.encode(np.array([r]), None) for r in (0, 1))
    ]
    assert sum(alone) == pytest.approx(total.item(), rel=1e-5)


def test_a_whole_run(tmp_path):
    rows = [{"source": f"snow {n}", "target": f"雪 {n}"} for n in range(40)]
    data = fl.prepare(rows, task="translation")
    model = fl.load("seq2seq", data=data, width=32, depth=1, tokenizer="char", max_length=64)
    run = fl.train(fl.plan(model, data, out=str(tmp_path / "run"), epochs=1, batch=8, lr=1e-2), quiet=True)
    metrics = fl.evaluate(run).metrics
    assert metrics["loss"] < 5 and {"bleu", "chrf"} <= set(metrics)


def test_a_model_folder_alone_asks_as_it_was_trained(tmp_path, monkeypatch):
    """Without the run around it there is no recipe: the request stands in the card."""
    rows = [{"source": f"snow {n}", "target": f"雪 {n}"} for n in range(12)]
    data = fl.prepare(rows, task="translation", prompt="Say: {source}")
    model = fl.load(str(folder_of("llama", tmp_path / "llama", max_position_embeddings=200)), data=data, max_length=160)
    options = {"epochs": 1, "batch": 8, "lr": 1e-3, "cache": "off", "adapt": {"method": "lora", "rank": 2}}
    run = fl.train(fl.plan(model, data, out=str(tmp_path / "run"), **options), quiet=True)
    shutil.copytree(run.model_folder, tmp_path / "alone")
    asked = []
    monkeypatch.setattr(answers, "generate", lambda model, prompts, **rest: [asked.append(prompt) or [] for prompt in prompts])
    fl.predict(str(tmp_path / "alone"), ["rain"])
    fl.predict(run, ["rain"])
    assert asked[0] == asked[1] and "Say: rain" in model.card.preprocess.tokenizer.decode(asked[0])
