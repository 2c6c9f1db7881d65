"""What we save PEFT loads with equal logits, and the reverse, on an encoder, decoders and encoder-decoders."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from frostline.adapt.adapters import add_adapter, merge_into_base, use_adapters
from frostline.adapt.apply import adapt
from frostline.adapt.peft_files import base_state, load_adapter, save_adapter
from frostline.errors import ModelError
from tests.adapt import tiny

METHODS = {
    "lora": {},
    "rslora": {"method": "lora", "rslora": True, "rank_pattern": {"q_proj": 3, "query": 3, "c_attn": 3, "q": 3}},
    "dora": {"method": "lora", "dora": True, "alpha_pattern": {"q_proj": 3, "query": 3, "c_attn": 3, "q": 3}},
    "pissa": {"method": "lora", "init": "pissa", "rslora": True},
    "embedding": {"method": "lora", "dora": True},
    "ia3": {},
    "vera": {},
    "prompt": {"tokens": 3},
    "p-tuning": {"tokens": 3, "encoder_width": 8},
    "prefix": {"tokens": 3},
    "prefix by a network": {"method": "prefix", "tokens": 3, "encoder_width": 8},
}


def adapted(kind: str, name: str):
    options = dict(METHODS[name])
    method = options.pop("method", name)
    if name == "embedding":
        options["targets"] = ["all-linear", tiny.EMBEDDING[kind]]
    if "rank_pattern" in options or "alpha_pattern" in options:
        key = "rank_pattern" if "rank_pattern" in options else "alpha_pattern"
        own = {"bert": "query", "llama": "q_proj", "gpt2": "c_attn", "t5": "q", "bart": "q_proj"}[kind]
        options[key] = {own: options[key][own]}
    return tiny.stir(adapt(tiny.model(kind), method, **options), spread=0.2 if "prefix" not in name else 2.0)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_both_ways_with_peft(kind, name, tmp_path):
    import peft

    ours = adapted(kind, name)
    expected = tiny.outputs(ours, kind)
    close = {"atol": 1e-4 if name == "pissa" else 1e-5, "rtol": 1e-5}  # pissa: two updates are summed in another order
    assert not torch.allclose(expected, tiny.outputs(tiny.model(kind), kind), atol=1e-4)
    save_adapter(ours, tmp_path / "适配器")
    again = tiny.model(kind)
    load_adapter(again, tmp_path / "适配器")
    torch.testing.assert_close(tiny.outputs(again, kind), expected, **close)
    adapt(again, again.recipe.adapt)  # as a plan does, to go on from there
    if kind == "bert" and "prefix" in name:
        return  # peft looks for an argument past_key_values, which this version of Transformers calls otherwise
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(tiny.network(kind), tmp_path / "适配器")
        theirs.save_pretrained(tmp_path / "theirs")
    found = tiny.outputs(theirs, kind)
    torch.testing.assert_close(found[:, -expected.shape[1] :], expected, **close)  # peft gives logits at prompts too
    back = tiny.model(kind)
    load_adapter(back, tmp_path / "theirs")
    torch.testing.assert_close(tiny.outputs(back, kind), expected, **close)


def test_a_second_adapter_is_saved_and_loaded_under_its_name(tmp_path):
    ours = tiny.stir(adapt(tiny.model("llama"), "lora"))
    first = tiny.outputs(ours, "llama")
    add_adapter(ours, "乙", rank=2)
    use_adapters(ours, "乙")
    second = tiny.outputs(tiny.stir(ours, seed=2), "llama")
    save_adapter(ours, tmp_path / "a", "default")
    save_adapter(ours, tmp_path / "b", "乙")
    again = tiny.model("llama")
    load_adapter(again, tmp_path / "a")
    load_adapter(again, tmp_path / "b", "乙")
    assert torch.equal(tiny.outputs(again, "llama"), first)
    use_adapters(again, "乙")
    assert torch.equal(tiny.outputs(again, "llama"), second)
    with pytest.raises(ModelError, match=r"got 'lora' under the name '乙', but the model holds 'lora' already"):
        load_adapter(again, tmp_path / "b", "乙")


def test_an_adapter_for_another_base_names_the_first_difference(tmp_path):
    save_adapter(tiny.stir(adapt(tiny.model("llama"), "lora")), tmp_path / "a")
    other = tiny.model("llama")
    other.module.model.layers[1].mlp.up_proj.weight.data[0, 0] += 1
    before = tiny.outputs(other, "llama")
    with pytest.raises(ModelError, match=r"adapter for another base: 'model.layers.1.mlp.up_proj.weight' is float32 \(32, 16\), hash"):
        load_adapter(other, tmp_path / "a")
    assert torch.equal(tiny.outputs(other, "llama"), before) and "adapt" not in other.card.arguments
    with pytest.raises(ModelError, match=r"adapter for another base: 'lm_head\.weight'"):
        load_adapter(tiny.model("llama", num_hidden_layers=1), tmp_path / "a")


def test_merged_and_loaded_again_is_another_base(tmp_path):
    model = tiny.stir(adapt(tiny.model("llama"), "lora"))
    save_adapter(model, tmp_path / "a")
    merge_into_base(model)
    with pytest.raises(ModelError, match="adapter for another base"):
        load_adapter(model, tmp_path / "a")


def test_the_base_has_the_names_that_it_has_without_an_adapter():
    plain = {name for name, _ in tiny.model("bert").module.state_dict().items() if not name.startswith("classifier.")}
    for method in ("lora", "vera", "ia3", "adapter", "prompt"):
        assert set(base_state(adapt(tiny.model("bert"), method))) == plain


def test_never_trained_or_not_finite_is_not_saved(tmp_path):
    for method in ("lora", "ia3", "vera"):
        with pytest.raises(ModelError, match="never trained"):
            save_adapter(adapt(tiny.model("llama"), method), tmp_path / "a")
    model = tiny.stir(adapt(tiny.model("llama"), "lora"))
    model.module.model.layers[0].mlp.up_proj.lora_B.data[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"'base_model.model.model.layers.0.mlp.up_proj.lora_B.weight' holds NaN"):
        save_adapter(model, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_method_without_a_place_in_the_format(tmp_path):
    with pytest.raises(ModelError, match="got 'adapter', which PEFT's format has no place for"):
        save_adapter(tiny.stir(adapt(tiny.model("llama"), "adapter")), tmp_path / "a")


@pytest.fixture
def foreign(tmp_path):
    """A folder as PEFT writes it, without a manifest: (folder, change(configuration, tensors))."""
    save_adapter(tiny.stir(adapt(tiny.model("llama"), "lora", targets=["q_proj"])), tmp_path / "a")
    (tmp_path / "a" / "manifest.json").unlink()
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")

    def change(values=None, **moved):
        (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({**config, **(values or {})}))
        save_file({**tensors, **moved}, tmp_path / "a" / "adapter_model.safetensors")
        return tmp_path / "a"

    return change


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("values", "tensors", "message"),
    [
        ({"peft_type": "LOHA"}, {}, "got the peft_type 'LOHA', expected one of LORA"),
        ({"bias": "all"}, {}, "got bias 'all', which no layer here has"),
        ({"megatron_config": {"x": 1}}, {}, "got megatron_config"),
        ({"init_lora_weights": "pissa_niter_4"}, {}, "got init_lora_weights 'pissa_niter_4', with which the base was changed"),
        ({"alpha_pattern": {"(a+)+$": 4}}, {}, r"alpha_pattern has '\(a\+\)\+\$', expected plain names"),
        ({"lora_alpha": None}, {}, r"adapt.alpha: got None, expected a number"),
        ({}, {KEY: torch.zeros(3, 3)}, r"lora_B.weight' is \(3, 3\) in the file and \(16, 8\) in the model"),
        (
            {},
            {"base_model.model.x.lora_B.weight": torch.zeros(3, 3)},
            r"x.lora_B.weight' is \(3, 3\) in the file and 'nothing' in the model",
        ),
        ({}, {"base_model.model.../../x.lora_A.weight": torch.zeros(3, 3)}, "'../../x' is no such module"),
        ({}, {KEY: torch.full((16, 8), torch.inf)}, "holds NaN or infinite numbers"),
    ],
)
def test_refusals_of_files(foreign, values, tensors, message):
    model = tiny.model("llama")
    before = tiny.outputs(model, "llama")
    with pytest.raises(ModelError, match=message):
        load_adapter(model, foreign(values, **tensors))
    assert torch.equal(tiny.outputs(model, "llama"), before)
    assert list(model.module.state_dict()) == list(tiny.network("llama").state_dict())


def test_a_changed_file_is_told(tmp_path):
    save_adapter(tiny.stir(adapt(tiny.model("llama"), "lora")), tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    save_file({key: tensor + 1 for key, tensor in load_file(path).items()}, path)
    with pytest.raises(ModelError, match=r"is not what manifest\.json describes"):
        load_adapter(tiny.model("llama"), tmp_path / "a")


def test_modules_to_save_travel(tmp_path):
    import peft

    ours = tiny.stir(adapt(tiny.model("llama", tie_word_embeddings=False), "lora", modules_to_save=["lm_head"]))
    expected = tiny.outputs(ours, "llama")
    save_adapter(ours, tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(tiny.network("llama", tie_word_embeddings=False), tmp_path / "a")
    torch.testing.assert_close(tiny.outputs(theirs, "llama"), expected)
    again = tiny.model("llama", tie_word_embeddings=False)
    load_adapter(again, tmp_path / "a")
    assert torch.equal(tiny.outputs(again, "llama"), expected) and again.module.lm_head.weight.requires_grad


def test_without_a_name_the_one_that_is_on_is_saved(tmp_path):
    model = tiny.stir(adapt(tiny.model("llama"), "lora", dropout=0.25))
    add_adapter(model, "乙", rank=2)
    use_adapters(model, "乙")
    expected = tiny.outputs(tiny.stir(model, seed=2), "llama")
    save_adapter(model, tmp_path / "a")
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["r"] == 2
    again = tiny.model("llama")
    load_adapter(again, tmp_path / "a")
    assert torch.equal(tiny.outputs(again, "llama"), expected)
    use_adapters(model, "default", "乙")
    with pytest.raises(ModelError, match=r"got the adapters \['default', '乙'\] switched on, expected one of default, 乙"):
        save_adapter(model, tmp_path / "b")
    with pytest.raises(ModelError, match="got 'c', expected one of default, 乙"):
        save_adapter(model, tmp_path / "b", "c")
    with pytest.raises(ModelError, match="got 'c', expected one of default"):
        save_adapter(tiny.stir(adapt(tiny.model("llama"), "ia3")), tmp_path / "b", "c")


@pytest.mark.parametrize(("kind", "method"), [("llama", "vera"), ("bart", "prompt"), ("llama", "prefix"), ("bert", "ia3")])
def test_a_load_that_fails_leaves_no_trace(kind, method, tmp_path):
    save_adapter(tiny.stir(adapt(tiny.model(kind), method)), tmp_path / "a")
    (tmp_path / "a" / "manifest.json").unlink()
    path = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(path)
    model, before = tiny.model(kind), tiny.outputs(tiny.model(kind), kind)
    save_file({**tensors, "base_model.model.more": torch.ones(1)}, path)
    with pytest.raises(ModelError, match=r"'base_model.model.more' is \(1,\) in the file and 'nothing' in the model"):
        load_adapter(model, tmp_path / "a")
    assert list(model.module.state_dict()) == list(tiny.network(kind).state_dict())
    assert torch.equal(tiny.outputs(model, kind), before) and "adapt" not in model.card.arguments
    save_file(tensors, path)
    load_adapter(model, tmp_path / "a")
    assert not torch.equal(tiny.outputs(model, kind), before)


@pytest.mark.parametrize("method", ["lora", "ia3", "vera"])
def test_a_target_without_its_tensors_is_told(method, tmp_path):
    """A folder of PEFT has no manifest, and names its targets by their ends."""
    options = {"feedforward": ["down_proj"]} if method == "ia3" else {}
    save_adapter(tiny.stir(adapt(tiny.model("llama"), method, targets=["v_proj", "down_proj"], **options)), tmp_path / "a")
    (tmp_path / "a" / "manifest.json").unlink()
    config, path = json.loads((tmp_path / "a" / "adapter_config.json").read_text()), tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({key: tensor for key, tensor in tensors.items() if "layers.1.mlp" not in key}, path)
    for targets in (config["target_modules"], ["v_proj", "down_proj"]):
        (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({**config, "target_modules": targets}))
        with pytest.raises(ModelError, match=r"got no tensors for 'model\.layers\.1\.mlp\.down_proj', which adapter_config\.json lists"):
            load_adapter(tiny.model("llama"), tmp_path / "a")
    narrowed = {**config, "target_modules": ["v_proj", "down_proj", "not_here"], "exclude_modules": ["model.layers.1.mlp.down_proj"]}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(narrowed))
    load_adapter(tiny.model("llama"), tmp_path / "a")
