from __future__ import annotations

import pytest

from frostline.adapt.apply import adapt
from frostline.adapt.peft_keys import config_of, places_of, settings_from, tensors_of
from frostline.errors import ModelError
from tests.adapt import tiny


def test_names_are_pefts():
    import peft

    model = adapt(tiny.model("llama"), "lora", targets=["q_proj", "embed_tokens"], dora=True)
    theirs = peft.get_peft_model(tiny.network("llama"), peft.LoraConfig(target_modules=["q_proj", "embed_tokens"], use_dora=True))
    expected = {key: tensor.shape for key, tensor in peft.get_peft_model_state_dict(theirs, save_embedding_layers=False).items()}
    assert {key: tensor.shape for key, tensor in tensors_of(model, "default").items()} == expected


@pytest.mark.parametrize(
    ("kind", "method", "options", "task"),
    [("bert", "lora", {}, "SEQ_CLS"), ("llama", "ia3", {}, "CAUSAL_LM"), ("t5", "prefix", {"tokens": 3}, "SEQ_2_SEQ_LM")],
)
def test_there_and_back(kind, method, options, task):
    model = adapt(tiny.model(kind), method, **options)
    config = config_of(model, "default")
    assert config["task_type"] == task and config["modules_to_save"] == (["classifier"] if kind == "bert" else None)
    settings = settings_from(config, tensors_of(model, "default"), tiny.model(kind))
    present = model.card.arguments["adapt"]
    assert {key: settings[key] for key in settings if key != "seed"} == {key: present[key] for key in settings if key != "seed"}
    assert list(places_of(model, "default")) == list(tensors_of(model, "default"))


def test_pissa_is_saved_as_a_plain_update_of_twice_the_rank():
    model = adapt(tiny.model("llama"), "lora", init="pissa", rank=2, alpha=3.0, rslora=True, targets=["q_proj"])
    config = config_of(model, "default")
    assert config["r"] == 4 and config["init_lora_weights"] is True
    assert config["lora_alpha"] / 4**0.5 == pytest.approx(3.0 / 2**0.5)


def test_layers_with_numbers_of_their_own_are_named_in_full():
    config = config_of(adapt(tiny.model("llama"), "lora", rank_pattern={"layers.0.self_attn.q_proj": 3}), "default")
    assert config["r"] == 8 and config["rank_pattern"] == {"model.layers.0.self_attn.q_proj": 3}
    assert config["alpha_pattern"] == {}


def test_grouped_convolutions_have_no_place(make_image_model):
    with pytest.raises(ModelError, match=r"'blocks\.1\.0' is a grouped convolution, which PEFT adapts otherwise"):
        config_of(adapt(make_image_model(), "lora"), "default")
