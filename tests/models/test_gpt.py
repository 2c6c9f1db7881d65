from __future__ import annotations

from typing import Any

import pytest
import torch

from frostline.data.dataset import Schema
from frostline.errors import ModelError
from frostline.models.gpt import gpt_config
from frostline.models.hf_module import build_transformers
from frostline.models.model import logits_of
from frostline.models.output import body_and_output, trial_inputs
from frostline.models.tokenizer import train_tokenizer
from tests.models import tiny

TASKS = {"gpt": "causal-lm", "gpt2": "causal-lm", "transformer": "translation"}


def _network(name: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    schema = Schema(task=TASKS[name], target="none")  # type: ignore[arg-type]
    tokenizer = train_tokenizer(tiny.WORDS, "word", 100, "seq2seq" if name == "transformer" else "causal")
    sizes: dict[str, Any] = {"width": 32, "depth": None, "dropout": None, **options}
    config = gpt_config(name, tokenizer, 64, **sizes)
    torch.manual_seed(0)
    return build_transformers(schema=schema, config=config, head=[], pool=None, pooler=True).eval(), config


@pytest.mark.parametrize("name", TASKS)
def test_a_language_model_of_that_size(name: str) -> None:
    module, config = _network(name)
    assert logits_of(module(**trial_inputs(module))).shape[-1] == config["vocab_size"]
    assert body_and_output(module) == ("transformer" if name == "gpt2" else "model", "lm_head")
    assert module.get_output_embeddings().weight is module.get_input_embeddings().weight
    assert module.config._attn_implementation == "sdpa"
    again, _ = _network(name)
    assert all(torch.equal(one, two) for one, two in zip(module.state_dict().values(), again.state_dict().values(), strict=True))


def test_sizes_follow_from_the_width() -> None:
    with torch.device("meta"):
        module, config = _network("gpt", width=None)
    assert (config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]) == (384, 6, 6)
    assert (config["num_key_value_heads"], config["intermediate_size"]) == (2, 1024)
    body = sum(parameter.numel() for name, parameter in module.named_parameters() if "embed" not in name)
    assert 9.0e6 < body < 9.8e6
    assert _network("gpt", width=64, depth=5)[1]["num_hidden_layers"] == 5
    assert _network("transformer", width=256, depth=None)[1]["decoder_layers"] == 2


def test_sizes_that_cannot_be() -> None:
    with pytest.raises(ModelError, match=r"model.width got 33, expected an even number for gpt, as in model.width=34"):
        _network("gpt", width=33)
    with pytest.raises(ModelError, match=r"model.depth got 0, expected a whole number from 1 on"):
        _network("gpt2", depth=0)
