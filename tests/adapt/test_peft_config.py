from __future__ import annotations

import pytest
import torch

from frostline.adapt.apply import adapt
from frostline.adapt.peft_config import inject, is_config
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
