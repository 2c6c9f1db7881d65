from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from frostline.errors import ModelError
from frostline.models.from_zero import training_texts
from frostline.models.generate import generate
from frostline.models.hf_module import quiet
from frostline.models.load import default_name, load, preprocess_of
from frostline.models.model import logits_of
from frostline.models.save import save_model
from frostline.recipe import Recipe
from tests.models.language import data_of, inputs_of, schema

MODELS = [("gpt", "causal-lm"), ("gpt", "chat"), ("gpt2", "preference"), ("seq2seq", "translation"), ("transformer", "summarisation")]
SIZES = {"width": 32, "depth": 2, "vocabulary": 300}


@pytest.mark.parametrize(("name", "task"), MODELS)
def test_made_and_saved(name: str, task: str, tmp_path: Path) -> None:
    import transformers

    data = data_of(task)
    model = load(name, data=data, seed=3, **SIZES)
    assert not model.card.pretrained
    assert (model.head, len(model.blocks), model.output) == ([], 4 if name == "transformer" else 2, "lm_head")
    inputs = inputs_of(model)
    logits = logits_of(model.module.eval()(**inputs))
    hidden = model.module.get_submodule(model.body)(**inputs)
    hidden = getattr(hidden, "last_hidden_state", hidden)
    assert torch.equal(model.module.get_submodule(model.output)(hidden), logits)
    again = load(name, data=data, seed=3, **SIZES).module.state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in model.module.state_dict().items())
    save_model(model, tmp_path / "model", inputs)
    assert "lm_head.weight" not in load_file(tmp_path / "model" / "model.safetensors")
    read = load(tmp_path / "model")
    module: Any = read.module
    assert torch.equal(logits_of(module(**inputs)), logits)
    assert module.get_submodule("lm_head").weight is dict(module.named_parameters(remove_duplicate=False))["lm_head.weight"]
    assert len(list(module.parameters())) == len(list(model.module.parameters()))
    assert (read.blocks, read.body, read.output, read.card) == (model.blocks, model.body, model.output, read.card)
    assert read.card.arguments == model.card.arguments or name != "seq2seq"
    assert generate(read, [[5, 6], [7]], max_new_tokens=3, stop=[]) == generate(model, [[5, 6], [7]], max_new_tokens=3, stop=[])
    if name != "seq2seq":
        auto = transformers.AutoModelForSeq2SeqLM if name == "transformer" else transformers.AutoModelForCausalLM
        with quiet():
            theirs: Any = auto.from_pretrained(tmp_path / "model").eval()
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
        assert torch.equal(theirs(**inputs).logits, logits)
        own: Any = model.card.preprocess.tokenizer  # type: ignore[union-attr]
        assert theirs.generation_config.eos_token_id == own.eos_token_id
        assert tokenizer("a good 电影")["input_ids"] == own("a good 电影")["input_ids"]
        assert tokenizer.chat_template == own.chat_template


def test_a_chat_model_has_a_template() -> None:
    tokenizer: Any = load("gpt", data=data_of("chat"), **SIZES).card.preprocess.tokenizer  # type: ignore[union-attr]
    messages = [{"role": "user", "content": "Good 电影?"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "<|im_start|>user\nGood 电影?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert ids.count(tokenizer.eos_token_id) == 1
    assert load("gpt", data=data_of("causal-lm"), **SIZES).card.preprocess.tokenizer.chat_template is None  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["word", "char", "wordpiece", "unigram"])
def test_every_kind_of_vocabulary(kind: str, tmp_path: Path) -> None:
    for name, task in (("gpt", "chat"), ("transformer", "translation")):
        model = load(name, data=data_of(task), width=32, depth=1, vocabulary=100, tokenizer=kind)
        save_model(model, tmp_path / name)
        assert load(tmp_path / name).card.preprocess.max_length == (1024 if name == "gpt" else 512)


def test_the_preprocessing_is_known_before() -> None:
    recipe = Recipe().with_values({"model.name": "seq2seq", "model.vocabulary": 300, "data.max_length": 12})
    values = preprocess_of(recipe, data_of("translation"))
    assert (values.max_length, values.start, values.inputs[-1]) == (12, 2, "decoder_attention_mask")  # type: ignore[union-attr]
    assert {default_name(schema(task)) for task in ("chat", "causal-lm", "preference")} == {"gpt"}
    assert (default_name(schema("translation")), default_name(schema("reward"))) == ("seq2seq", None)


def test_texts_of_the_training_rows() -> None:
    assert list(training_texts(data_of("chat")))[:2] == ["user\n这部电影 good?", "assistant\na good film"]
    assert list(training_texts(data_of("translation")))[-1] == "好 好"
    assert len(list(training_texts(data_of("preference")))) == 9


def test_refusals() -> None:
    with pytest.raises(ModelError, match=r"model 'gpt' got data None, .* fl.load\('gpt', data=data\)"):
        load("gpt", task=schema("chat"))
    with pytest.raises(ModelError, match=r"model.name got 'gtp2'; did you mean 'gpt2'"):
        load("gtp2", data=data_of("chat"))
    with pytest.raises(ModelError, match=r"model.name got 'seq2seq', which is not for 'chat'; expected one of gpt, gpt2, or a folder"):
        load("seq2seq", data=data_of("chat"))
    with pytest.raises(ModelError, match=r"model.head got \['dense 8'\] with model.name 'gpt', which takes only tokenizer"):
        load("gpt", data=data_of("chat"), head=["dense 8"])
