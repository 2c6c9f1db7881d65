"""Models of transformers, unchanged and with random weights: without padding they compute what they compute with it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostline.data.dataset import Schema
from frostline.data.preprocess import TextPreprocess
from frostline.kernels import unpad
from frostline.kernels.unpad import can_unpad, unpad_deviation, unpadded
from frostline.models.model import Card, Model
from tests.kernels.transformers_models import DECODERS, ENCODERS, VOCABULARY, build

LENGTHS, WIDTH = [7, 12, 3, 12, 1], 12


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(WIDTH) < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.randint(3, VOCABULARY, mask.shape, generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask}


def output_of(module: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    output = module(**inputs)
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


def per_sequence(module: nn.Module, inputs: dict[str, Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Each sequence's outputs, and all gradients of a loss that takes them all."""
    module.zero_grad()
    output = output_of(module, inputs)
    output[inputs["attention_mask"].bool()].sin().sum().backward()
    sequences = [row[:length].detach() for row, length in zip(output, LENGTHS)]
    return sequences, {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def model_of(module: nn.Module, blocks: list[str]) -> Model:
    card = Card(name="custom", schema=Schema(task="text-classification"), preprocess=TextPreprocess(tokenizer=None))
    return Model(module=module, card=card, blocks=blocks)


@pytest.mark.parametrize(("fills_up", "filled"), [(False, []), (True, [29])], ids=["", "filled up"])
@pytest.mark.parametrize("kind", [*DECODERS, *ENCODERS])
def test_outputs_and_gradients_equal_those_of_the_padded_batch(
    kind: str, fills_up: bool, filled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, blocks = build(kind)
    inputs = batch()
    expected, gradients = per_sequence(module, inputs)
    seen: list[list[int]] = []
    attention = unpad.varlen_attention
    monkeypatch.setattr(unpad, "varlen_attention", lambda q, k, v, lengths, rule: seen.append(lengths) or attention(q, k, v, lengths, rule))
    with unpadded(module, blocks, inputs["attention_mask"], fills_up):
        ours, own_gradients = per_sequence(module, inputs)
    assert seen == [[*LENGTHS, *filled]] * 3
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
    assert own_gradients.keys() == gradients.keys()
    for name, theirs in gradients.items():
        torch.testing.assert_close(own_gradients[name], theirs, rtol=1e-4, atol=1e-5 * max(1.0, float(theirs.abs().max())), msg=name)
    assert can_unpad(model_of(module, blocks)) is None
    assert unpad_deviation(model_of(module, blocks), inputs) < 1e-5


@pytest.mark.parametrize("lengths", [[6, 4, 2], [12, 12], [12, 0, 3]], ids=str)
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_any_lengths(kind: str, lengths: list[int]) -> None:
    """Among them as many tokens in all as the batch is wide, no padding at all, and a row without tokens."""
    module, blocks = build(kind)
    mask = (torch.arange(WIDTH) < torch.tensor(lengths)[:, None]).long()
    inputs = {"input_ids": torch.randint(3, VOCABULARY, mask.shape), "attention_mask": mask}
    assert unpad_deviation(model_of(module, blocks), inputs) < 1e-5


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_padding_on_the_left(kind: str) -> None:
    module, blocks = build(kind)
    inputs = {name: value.flip(1) for name, value in batch().items()}
    assert unpad_deviation(model_of(module, blocks), inputs) < 1e-5


def test_one_row() -> None:
    module, blocks = build("llama")
    inputs = {name: value[:1] for name, value in batch().items()}
    assert unpad_deviation(model_of(module, blocks), inputs) < 1e-5


def test_blocks_that_hold_adapters() -> None:
    from frostline.adapt.lora_layers import LoRALinear

    module, blocks = build("llama")
    module.requires_grad_(False)
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.Linear) and name.startswith("model.layers."):
            parent, _, child = name.rpartition(".")
            wrapper = LoRALinear(layer, 2, 4.0, 0.0, torch.Generator().manual_seed(0))
            nn.init.normal_(wrapper.lora_B, std=0.3)
            setattr(module.get_submodule(parent), child, wrapper)
    inputs = batch()
    expected, gradients = per_sequence(module, inputs)
    with unpadded(module, blocks, inputs["attention_mask"]):
        ours, own_gradients = per_sequence(module, inputs)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
    assert own_gradients.keys() == gradients.keys() and all(".lora_" in name for name in gradients)
    for name, theirs in gradients.items():
        torch.testing.assert_close(own_gradients[name], theirs, rtol=1e-4, atol=1e-5 * max(1.0, float(theirs.abs().max())), msg=name)


def test_blocks_that_are_recomputed_in_the_backward_pass() -> None:
    module, blocks = build("llama")
    inputs = batch()
    _, gradients = per_sequence(module, inputs)
    module.train()
    module.gradient_checkpointing_enable()  # type: ignore[operator]
    with unpadded(module, blocks, inputs["attention_mask"]):
        _, own_gradients = per_sequence(module, inputs)
    for name, theirs in gradients.items():
        torch.testing.assert_close(own_gradients[name], theirs, rtol=1e-4, atol=1e-5 * max(1.0, float(theirs.abs().max())), msg=name)


def test_the_model_is_afterwards_as_it_was(tmp_path: Path) -> None:
    module, blocks = build("llama")
    before = output_of(module, batch())
    implementation = module.config._attn_implementation  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="on purpose"), unpadded(module, blocks, batch()["attention_mask"]):
        raise RuntimeError("on purpose")
    with unpadded(module, blocks, batch()["attention_mask"]):
        output_of(module, batch())
    assert module.config._attn_implementation == implementation == "sdpa"  # type: ignore[union-attr]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert torch.equal(output_of(module, batch()), before)
    module.save_pretrained(tmp_path)  # type: ignore[operator]
    assert "frostline" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))


def test_attention_outside_the_blocks_stays_that_of_transformers() -> None:
    module, blocks = build("bert")
    inputs = batch()
    expected = output_of(module, inputs)[inputs["attention_mask"].bool()]
    with unpadded(module, blocks[:2], inputs["attention_mask"]):  # the third shares their configuration
        ours = output_of(module, inputs)[inputs["attention_mask"].bool()]
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_dropout_of_attention_is_drawn() -> None:
    module, blocks = build("bert")
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    module.encoder.layer[0].attention.self.dropout.p = 0.5  # type: ignore[union-attr, index]
    module.train()
    with unpadded(module, blocks, batch()["attention_mask"]):
        assert not torch.equal(output_of(module, batch()), output_of(module, batch()))


def test_models_that_cannot_are_told_apart() -> None:
    from transformers import AutoConfig, AutoModel

    from frostline.models.net import Net
    from frostline.models.transformer import build_transformer

    t5 = AutoModel.from_config(AutoConfig.for_model("t5", vocab_size=40, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4))
    assert can_unpad(model_of(t5, ["encoder.block.0", "encoder.block.1"])) == "its blocks attend to a second sequence"
    own = build_transformer(Net(width=16, depth=2, outputs=2), 40, 64)
    reason = "its attention does not go through the attention interface of transformers"
    assert can_unpad(model_of(own, ["blocks.0", "blocks.1"])) == reason
    assert can_unpad(model_of(own, [])) == "it names no repeated blocks"
    module, blocks = build("llama")
    mixed = copy.deepcopy(module)
    mixed.config.layer_types = ["full_attention", "linear_attention", "full_attention"]  # type: ignore[union-attr]
    assert "'linear_attention', which mix tokens by other means" in str(can_unpad(model_of(mixed, blocks)))


def test_the_deviation_shows_what_no_configuration_does(monkeypatch: pytest.MonkeyPatch) -> None:
    module, blocks = build("llama")
    model = model_of(module, blocks)

    def mix(_part: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output + output.mean(1, keepdim=True)

    handle = module.get_submodule(blocks[1]).register_forward_hook(mix)
    assert unpad_deviation(model, batch()) > 1e-2
    handle.remove()
    assert unpad_deviation(model, batch()) < 1e-5
    monkeypatch.setattr(unpad, "varlen_attention", lambda *_: torch.full((1, sum(LENGTHS), 4, 8), torch.nan))
    assert unpad_deviation(model, batch()) == float("inf")
    module.get_submodule(blocks[1]).register_forward_pre_hook(lambda _part, args: (args[0].view(len(LENGTHS), WIDTH, -1),))
    assert unpad_deviation(model, batch()) == float("inf")  # it does not run


def test_an_attention_argument_that_is_not_understood_is_refused() -> None:
    from frostline.errors import ModelError

    module, blocks = build("bert")
    first = module.encoder.layer[0].attention.self  # type: ignore[union-attr, index]
    first.register_forward_pre_hook(lambda _part, args, kwargs: (args, {**kwargs, "position_bias": torch.zeros(1)}), with_kwargs=True)
    with (
        pytest.raises(ModelError, match=r"BertSelfAttention got 'position_bias', .* plan.pack=off"),
        unpadded(module, blocks, batch()["attention_mask"]),
    ):
        output_of(module, batch())
