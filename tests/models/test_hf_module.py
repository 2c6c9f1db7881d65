from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from frostline.data.dataset import Schema
from frostline.errors import ModelError
from frostline.models.hf_module import (
    NO_LIMIT,
    BodyWithHead,
    body_name,
    build_transformers,
    from_state,
    parse_config,
    positions_of,
    quiet,
    task_class,
)
from tests.models import tiny


def _config(kind: str) -> dict[str, Any]:
    return tiny.image_config(kind).to_dict()


@pytest.mark.parametrize("kind", ["vit", "resnet", "convnext"])
def test_the_mean_over_positions(kind: str) -> None:
    network = build_transformers(schema=tiny.IMAGES, config=_config(kind), head=["dense 4"], pool="mean", pooler=True).eval()
    assert isinstance(network, BodyWithHead)
    inputs = tiny.image_inputs(32)
    hidden = network.body(**inputs).last_hidden_state
    features = hidden.mean((2, 3)) if hidden.dim() == 4 else hidden.mean(1)
    if kind == "convnext":
        features = network.body.layernorm(features)
        torch.testing.assert_close(features, network.body(**inputs).pooler_output)  # its own pooling is the same mean
    torch.testing.assert_close(network(**inputs), network.head(features))


def test_without_pool_and_pooler_the_first_position_counts() -> None:
    network = build_transformers(schema=tiny.IMAGES, config=_config("vit"), head=["dense 4"], pool=None, pooler=False).eval()
    inputs = tiny.image_inputs(32)
    torch.testing.assert_close(network(**inputs), network.head(network.body(**inputs).last_hidden_state[:, 0]))
    assert body_name(network) == "body"


def test_settings_of_transformers_and_of_the_hub_are_put_back() -> None:
    from transformers.utils import logging as of_transformers

    hub = logging.getLogger("huggingface_hub")
    before = of_transformers.get_verbosity(), hub.level, of_transformers.is_progress_bar_enabled()
    with pytest.raises(KeyError), quiet():
        assert not of_transformers.is_progress_bar_enabled() and not hub.isEnabledFor(logging.ERROR)
        raise KeyError
    assert (of_transformers.get_verbosity(), hub.level, of_transformers.is_progress_bar_enabled()) == before


def test_configurations_that_cannot_be() -> None:
    with pytest.raises(ModelError, match=r"model_type got 'None', expected an architecture that transformers itself brings"):
        parse_config({})
    with pytest.raises(ModelError, match=r"configuration of 'vit' is not valid"):
        parse_config({"model_type": "vit", "hidden_size": "large"})


def test_shapes_that_do_not_fit_are_told_not_raised() -> None:
    from transformers import ViTModel

    config = parse_config(_config("vit"))
    _, info = from_state(ViTModel, config, {"embeddings.cls_token": torch.zeros(1, 1, 5), "other": torch.zeros(1)})
    assert {name for name, *_ in info["mismatched_keys"]} == {"embeddings.cls_token"}
    assert info["unexpected_keys"] == {"other"}


@pytest.mark.parametrize(
    ("kind", "task", "name"),
    [
        ("llama", "chat", "LlamaForCausalLM"),
        ("gpt2", "translation", "GPT2LMHeadModel"),
        ("t5", "translation", "T5ForConditionalGeneration"),
        ("bert", "token-classification", "BertForTokenClassification"),
        ("bert", "text-classification", "BertForSequenceClassification"),
        ("llama", "reward", "LlamaForSequenceClassification"),
        ("bert", "embedding", "BertModel"),
        ("vit", "image-classification", "ViTForImageClassification"),
    ],
)
def test_the_class_for_a_task(kind: str, task: str, name: str) -> None:
    assert task_class(parse_config({"model_type": kind}), Schema(task=task)).__name__ == name  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "task", "message"),
    [
        ("vit", "chat", r"model_type 'vit': cannot do 'chat'"),
        ("bart", "preference", r"model_type 'bart': an encoder-decoder, which cannot do 'preference'"),
        ("gpt2", "image-classification", r"model_type 'gpt2': cannot do 'image-classification'. Give a model that can"),
    ],
)
def test_architectures_that_cannot(kind: str, task: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        task_class(parse_config({"model_type": kind}), Schema(task=task))  # type: ignore[arg-type]


def test_positions_of_a_network() -> None:
    import transformers as hf

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 20}
    bert = hf.BertModel(hf.BertConfig(**small, max_position_embeddings=30))
    roberta = hf.RobertaModel(hf.RobertaConfig(**small, max_position_embeddings=30, pad_token_id=1))
    assert positions_of(bert) == 30 and positions_of(roberta) == 28
    roberta.embeddings.position_embeddings.padding_idx = None  # as where the end token pads too
    assert positions_of(roberta) == 28
    assert positions_of(hf.T5Model(hf.T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))) == NO_LIMIT
    assert positions_of(torch.nn.Linear(2, 2)) == NO_LIMIT
