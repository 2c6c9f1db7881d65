"""A long text and its summary: the request is one for a summary, and what is cut is the text."""

from __future__ import annotations

import numpy as np

import frostline as fl
from frostline.data.encode import split_source
from frostline.recipe import DataRecipe
from tests import small


def test_a_long_text_is_cut_and_its_summary_is_whole():
    rows = [{"article": f"{n} 雪下了一整夜。" * 20, "summary": f"雪 {n}"} for n in range(20)]
    data = fl.prepare(rows, task="summarisation")
    assert data.task.task == "summarisation"
    table = data.splits["train"]
    model = small.llama(
        data.task, ["Summarise 总结:\nuserassistant", *table["source"].to_pylist(), *table["target"].to_pylist()], max_length=90
    )
    source = split_source(table, data.task, model.card.preprocess, recipe=DataRecipe(**data.recipe | {"augment": DataRecipe().augment}))
    batch, tokenizer = source.encode(np.array([0]), None), model.card.preprocess.tokenizer
    labels = batch.labels[0]
    assert tokenizer.decode(labels[labels != -100]) == f"{source.table['target'][0]}<|im_end|>"
    assert "Summarise 总结:" in tokenizer.decode(batch.inputs["input_ids"][0]) and batch.inputs["input_ids"].shape[1] <= 90
    assert source.truncated == 1 and "sources were cut so that the target fits in as well" in source.warnings[0]
