from __future__ import annotations

import pytest
import torch

from frostline.adapt.apply import adapt
from frostline.adapt.peft_config import _READS_OTHER_MODELS, inject, is_config
from frostline.errors import ModelError
from tests.adapt import tiny

peft = pytest.importorskip("peft")


@pytest.mark.parametrize(
    "config",
    [
        peft.LoHaConfig(r=2, target_modules=["q_proj"]),
        peft.OFTConfig(oft_block_size=4, r=0, target_modules=["q_proj"]),
        peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    ],
    ids=lambda config: type(config).__name__,
)
def test_it_is_used_as_it_is(config):
    model = adapt(tiny.model("llama", tie_word_embeddings=False), config)
    learning = [name for name, parameter in model.module.named_parameters() if parameter.requires_grad]
    theirs = peft.inject_adapter_in_model(config, tiny.network("llama", tie_word_embeddings=False))
    assert learning == [name for name, parameter in theirs.named_parameters() if parameter.requires_grad]
    assert model.recipe.adapt.method == "peft"
    tiny.stir(model)
    again = inject(tiny.network("llama", tie_word_embeddings=False), model.card.arguments["adapt"])
    again.load_state_dict(model.module.state_dict(), strict=True)
    assert torch.equal(tiny.outputs(again, "llama"), tiny.outputs(model, "llama"))


def test_what_is_one():
    assert is_config(peft.LoHaConfig()) and not is_config("lora") and not is_config(None)


def test_refusals():
    with pytest.raises(ModelError, match="got 'peft', but 'llama' holds no adapter of that package"):
        adapt(tiny.model("llama"), "peft")
    with pytest.raises(ModelError, match="got a PromptTuningConfig, expected a method that changes layers"):
        adapt(tiny.model("llama"), peft.PromptTuningConfig(num_virtual_tokens=3))
    with pytest.raises(ModelError, match=r"got \{'rank': 3\} beside a LoHaConfig, which says everything"):
        adapt(tiny.model("llama"), peft.LoHaConfig(), rank=3)
    with pytest.raises(ModelError, match="got a LoHaConfig, which peft refuses: Target modules"):
        adapt(tiny.model("llama"), peft.LoHaConfig(target_modules=["no_such"]))
    with pytest.raises(ModelError, match="got a LoHaConfig, but 'llama' holds an adapter already"):
        adapt(adapt(tiny.model("llama"), "lora"), peft.LoHaConfig(target_modules=["q_proj"]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "EVIL"}, "got the peft_type 'EVIL', which the installed peft does not know"),
        (
            {"megatron_config": {"a": 1}, "megatron_core": "evil"},
            "got megatron_config .*, expected none: a file must not name code",
        ),
        ({"corda_config": {"cache_file": "/x"}}, "got corda_config"),
        ({"target_modules": ["no_such"]}, "which peft refuses"),
    ],
)
def test_configurations_of_files(values, message):
    config = {"peft_type": "LORA", "target_modules": ["q_proj"], **values}
    with pytest.raises(ModelError, match=message):
        inject(tiny.network("llama"), {"method": "peft", "config": config, "learning": []})


class Own(peft.LoHaConfig):
    """A configuration that no file can name."""


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (peft.XLoraConfig(adapters={"a": "/x"}, hidden_size=16), "got the peft_type 'XLORA', which reads further models"),
        (peft.LoraConfig(target_modules=["q_proj"], layer_replication=[(0, 2)]), "got layer_replication .*, expected none"),
        (peft.LoraConfig(target_modules=["q_proj"], megatron_config={"a": 1}), "got megatron_config .*, expected none"),
        (peft.LoHaConfig(target_modules=["q_proj"], rank_pattern={"q_proj": torch.ones(2)}), "got rank_pattern tensor.* cannot be saved"),
        (Own(target_modules=["q_proj"]), "got a Own, which is read back as a LoHaConfig"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_read_back_is_refused_when_it_is_handed_over(config, message):
    model = tiny.model("llama")
    with pytest.raises(ModelError, match=message):
        adapt(model, config)
    assert "adapt" not in model.card.arguments and list(model.module.state_dict()) == list(tiny.network("llama").state_dict())


def test_every_method_of_the_package_is_known_to_be_read_back_or_not():
    """One that reads further models has a setting for them; there are two."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    for name in _READS_OTHER_MODELS:
        assert name in PEFT_TYPE_TO_CONFIG_MAPPING
        with pytest.raises(ModelError, match="which reads further models"):
            inject(tiny.network("llama"), {"method": "peft", "config": {"peft_type": name}, "learning": []})


def test_on_the_output_layer_the_network_makes_its_logits_itself():
    model = adapt(tiny.model("llama", tie_word_embeddings=False), peft.LoraConfig(target_modules=["lm_head"]))
    assert (model.body, model.output) == ("", "")
    assert adapt(tiny.model("llama"), peft.LoraConfig(target_modules=["q_proj"])).output == "lm_head"
