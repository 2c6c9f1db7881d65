from __future__ import annotations

from typing import Any

import pytest
import torch

from frostline.errors import ModelError
from frostline.models.output import body_and_output, check_causal, decoder_start, hidden_of, trial_inputs, writes_from_source

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20}


def _module(kind: str) -> Any:
    import transformers as hf

    torch.manual_seed(0)
    both = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    both |= {
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "vocab_size": 20,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "max_position_embeddings": 32,
    }
    if kind == "t5":
        made = hf.T5ForConditionalGeneration(
            hf.T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=20, decoder_start_token_id=0)
        )
    elif kind in ("bart", "marian"):
        make, config = {
            "bart": (hf.BartForConditionalGeneration, hf.BartConfig), "marian": (hf.MarianMTModel, hf.MarianConfig)
        }[kind]  # fmt: skip
        made = make(config(**both))
        if kind == "marian":
            made.final_logits_bias += 0.5
    else:
        make, config = {
            "llama": (hf.LlamaForCausalLM, hf.LlamaConfig), "gemma2": (hf.Gemma2ForCausalLM, hf.Gemma2Config),
            "cohere": (hf.CohereForCausalLM, hf.CohereConfig), "granite": (hf.GraniteForCausalLM, hf.GraniteConfig),
            "bert": (hf.BertLMHeadModel, hf.BertConfig), "gpt_neox": (hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig),
        }[kind]  # fmt: skip
        more = {"granite": {"logits_scaling": 4.0}, "gemma2": {"head_dim": 8, "num_key_value_heads": 2}}.get(kind, {})
        made = make(config(**SMALL, **more, pad_token_id=0, bos_token_id=1, eos_token_id=2))
    return made.eval()


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("llama", ("model", "lm_head")),
        ("gpt_neox", ("gpt_neox", "lm_head")),
        ("bart", ("model", "lm_head")),
        ("marian", ("", "")),
        ("gemma2", ("", "")),
        ("cohere", ("", "")),
        ("granite", ("", "")),
        ("t5", ("", "")),
        ("bert", ("", "")),
    ],
)
def test_the_names_hold_or_are_empty(kind: str, names: tuple[str, str]) -> None:
    module = _module(kind)
    assert body_and_output(module) == names
    if names[0]:
        inputs = trial_inputs(module)
        hidden = hidden_of(module.get_submodule(names[0])(**inputs))
        assert torch.equal(module.get_submodule(names[1])(hidden), module(**inputs).logits)


def test_an_encoder_is_no_causal_model() -> None:
    check_causal(_module("llama"), "x")
    with pytest.raises(ModelError, match=r"model 'x': a BertLMHeadModel sees the tokens that it is to predict"):
        check_causal(_module("bert"), "x")


def test_what_a_target_begins_with() -> None:
    module = _module("t5")
    assert (writes_from_source(module), decoder_start(module, None)) == (True, 0)
    assert not writes_from_source(_module("llama"))
    for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
        setattr(module.config, name, None)
    with pytest.raises(ModelError, match=r"decoder_start_token_id None, expected the token that a target begins with"):
        decoder_start(module, None)
