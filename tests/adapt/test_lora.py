from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from frostline.adapt.apply import adapt
from frostline.adapt.lora import inject, merge
from frostline.adapt.lora_layers import LoRAConv, LoRALinear
from frostline.errors import ModelError
from tests.adapt import tiny

CONVOLUTIONS = {
    "plain": nn.Conv2d(4, 6, 3),
    "stride and padding": nn.Conv2d(4, 6, (3, 5), stride=2, padding=(1, 2)),
    "groups": nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "depthwise": nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "dilation, no bias": nn.Conv2d(4, 6, 3, dilation=2, bias=False),
    "same, reflect": nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect"),
    "1 × 1": nn.Conv2d(4, 6, 1),
    "one dimension": nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2),
}


def settings(*targets: str, **changes) -> dict:
    return {"method": "lora", "rank": 3, "alpha": 6.0, "dropout": 0.0, "targets": list(targets), "seed": 0, **changes}


def stir(module: nn.Module) -> None:
    """Give every B values, as training would."""
    for name, parameter in module.named_parameters():
        if name.endswith("lora_B"):
            nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))


def test_the_linear_update_is_what_the_paper_writes():
    base = nn.Linear(5, 4)
    wrapper = LoRALinear(base, rank=2, alpha=3.0, dropout=0.0)
    stir(nn.ModuleDict({"x": wrapper}))
    x = torch.randn(7, 5)
    expected = x @ base.weight.T + base.bias + 3.0 / 2 * (x @ wrapper.lora_A.T @ wrapper.lora_B.T)
    torch.testing.assert_close(wrapper(x), expected)


def test_a_begins_as_peft_draws_it_and_b_as_zeros():
    wrapper = LoRALinear(nn.Linear(300, 20), rank=50, alpha=1.0, dropout=0.0)
    bound = 1 / 300**0.5  # Kaiming uniform with a = √5
    assert wrapper.lora_A.abs().max() <= bound and wrapper.lora_A.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not wrapper.lora_B.any()


@pytest.mark.parametrize("base", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_convolutions_begin_as_their_base_and_merge(base):
    module = nn.Sequential(copy.deepcopy(base))
    x = torch.randn(2, 4, 9, 9) if isinstance(base, nn.Conv2d) else torch.randn(2, 4, 9)
    inject(module, settings("0"))
    assert isinstance(module[0], LoRAConv) and torch.equal(module(x), base(x))
    stir(module)
    tuned = module(x)
    assert (tuned - base(x)).abs().max() > 0.05
    merge(module)
    assert type(module[0]) is type(base)
    torch.testing.assert_close(module(x), tuned, rtol=1e-5, atol=1e-5)


def test_models_merge(make_model, make_batch):
    model = adapt(make_model(), "lora", rank=2)
    names = list(make_model().module.state_dict())
    stir(model.module)
    model.module.eval()
    tuned = model.module(**make_batch(model, 4))
    merge(model.module)
    assert list(model.module.state_dict()) == names
    torch.testing.assert_close(model.module(**make_batch(model, 4)), tuned, rtol=1e-5, atol=1e-5)


def test_gpt2_conv1d():
    from transformers.pytorch_utils import Conv1D

    module = nn.Sequential(Conv1D(6, 4))
    base = copy.deepcopy(module)
    inject(module, settings("0"))
    stir(module)
    x = torch.randn(3, 5, 4)
    assert module[0].lora_A.shape == (3, 4) and module[0].lora_B.shape == (6, 3)
    tuned = module(x)
    assert not torch.allclose(tuned, base(x))
    merge(module)
    torch.testing.assert_close(module(x), tuned)


def test_code_that_reads_the_weight_instead_of_calling_the_layer_sees_the_update():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    inject(layer, settings("self_attn.out_proj", "linear1", "linear2"))
    stir(layer)
    x = torch.randn(2, 3, 8)
    plain = layer.train()(x)
    plain.sum().backward()
    assert all(layer.get_parameter(f"{name}.lora_A").grad.any() for name in ("self_attn.out_proj", "linear1", "linear2"))
    layer.eval()
    with torch.no_grad():  # the fast path
        torch.testing.assert_close(layer(x), plain)
        merge(layer)
        torch.testing.assert_close(layer(x), plain)


def test_every_linear_and_convolution_outside_the_head_by_default(make_image_model, make_text_model):
    model = adapt(make_image_model(), "lora")
    assert model.card.arguments["adapt"]["targets"] == ["stem.0", "blocks.0.0", "blocks.1.0", "blocks.2.0"]
    model = adapt(make_text_model(), "lora")
    assert model.card.arguments["adapt"]["targets"] == [f"layers.{n}.{part}" for n in range(3) for part in ("up", "down")]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["up"], ["layers.0.up", "layers.1.up", "layers.2.up"]),
        (["layers.1.up"], ["layers.1.up"]),
        (["layers.[02].*"], ["layers.0.up", "layers.0.down", "layers.2.up", "layers.2.down"]),
        (["1.down", "*.2.up"], ["layers.1.down", "layers.2.up"]),
    ],
)
def test_targets_by_name_and_glob(make_text_model, targets, expected):
    model = adapt(make_text_model(), "lora", targets=targets)
    assert model.card.arguments["adapt"]["targets"] == expected
    assert [name for name, part in model.module.named_modules() if isinstance(part, LoRALinear)] == expected


def test_only_the_updates_and_the_head_learn(make_model):
    model = adapt(make_model(), "lora")
    for name, parameter in model.module.named_parameters():
        assert parameter.requires_grad == (model.in_head(name) or name.endswith(("lora_A", "lora_B"))), name


def test_the_card_builds_the_same_network_again(make_model, make_batch):
    model = adapt(make_model(), "lora", rank=2, dropout=0.5)
    stir(model.module)
    saved = json.loads(json.dumps(model.card.arguments["adapt"]))
    again = make_model()
    assert inject(again.module, saved) is again.module
    again.module.load_state_dict(model.module.state_dict(), strict=True)
    model.module.eval(), again.module.eval()
    assert torch.equal(model.module(**make_batch(model, 4)), again.module(**make_batch(model, 4)))


def test_what_a_begins_as_depends_on_seed_and_name_alone(make_text_model):
    def first(seed: int, targets: list[str]) -> torch.Tensor:
        torch.rand(3)
        return adapt(make_text_model(), "lora", seed=seed, targets=targets).module.layers[1].up.lora_A

    assert torch.equal(first(5, ["up"]), first(5, ["up", "down"]))
    assert not torch.equal(first(5, ["up"]), first(6, ["up"]))


def test_a_module_in_two_places_has_one_update():
    shared = nn.Linear(4, 4)
    module = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    inject(module, settings("a", "b.0"))
    assert module["a"] is module["b"][0]
    stir(module)
    x = torch.randn(2, 4)
    tuned = module["a"](x)
    merge(module)
    assert module["a"] is module["b"][0] is shared
    torch.testing.assert_close(shared(x), tuned)


def test_dropout_is_on_the_updates_input_alone():
    module = nn.Sequential(nn.Linear(4, 4))
    inject(module, settings("0", dropout=0.5))
    x = torch.randn(50, 4)
    assert torch.equal(module(x), module[0].base(x))
    stir(module)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


def test_the_base_module_is_the_one_that_was_there(make_text_model):
    model = make_text_model()
    base = model.module.layers[0].up
    adapt(model, "lora")
    assert model.module.layers[0].up.base is base and model.module.layers[0].up.bias is base.bias


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, r"adapt\.rank: got 0, expected a whole number from 1 to 4096\. Use: adapt\.rank=8"),
        ({"rank": 10**12}, r"adapt\.rank: got 1000000000000"),
        ({"dropout": 1.0}, r"adapt\.dropout: got 1\.0, expected a share from 0 to below 1"),
        ({"targets": ["upp"]}, r"adapt\.targets: got 'upp', which is no linear layer.* Near it: .*up"),
        ({"targets": ["up", "norm"]}, r"adapt\.targets: got 'norm'"),
        ({"targets": ["classifier"]}, r"got 'classifier', which is no linear layer, convolution or embedding outside the head"),
        ({"targets": ["查询"]}, r"got '查询'.* Targets of this model end in: embedding, up, down, positions"),
        ({"init": "pissa", "targets": ["up", "embedding"]}, r"adapt\.init: got 'pissa', but the target 'embedding' is no linear layer"),
        ({"lora_plus": 0.0}, r"adapt\.lora_plus: got 0\.0, expected a factor above 0"),
        ({"rank_pattern": {"upp": 4}}, r"adapt\.rank_pattern: got 'upp', which matches none of the targets\. Near it: .*up"),
        ({"alpha_pattern": {"(": 4}}, r"got '\(', which is no regular expression"),
        ({"rank_pattern": {"up": 0}}, r"adapt\.rank: got 0, expected a whole number"),
        ({"modules_to_save": ["embeding"]}, r"adapt\.modules_to_save: got 'embeding', which names no module\. Near it: embedding"),
    ],
)
def test_refusals(make_text_model, options, message):
    model = make_text_model()
    with pytest.raises(ModelError, match=message):
        adapt(model, "lora", **options)
    assert "adapt" not in model.card.arguments


def test_a_model_with_nothing_to_wrap(make_text_model):
    model = make_text_model()
    model.head = ["layers", "classifier"]
    with pytest.raises(ModelError, match="got 'lora', but the model 'textnet' has no linear layer, convolution or embedding outside"):
        adapt(model, "lora")


def test_other_settings_than_are_in_place(make_text_model):
    model = adapt(make_text_model(), "lora", rank=4)
    with pytest.raises(ModelError, match=r"got lora with rank 8.* already holds lora with rank 4"):
        adapt(model, "lora", rank=8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ["layers.9.up"]}, "'layers.9.up' is no such module"),
        ({"targets": ["final_norm"]}, "'final_norm' is LayerNorm, expected a linear layer"),
        ({"ranks": {"layers.0.up": 10**9}}, "got 1000000000, expected a whole number from 1 to 4096"),
        ({"dora": "yes"}, r"adapt\.dora: got 'yes', expected one of"),
        ({"rank": "8"}, "got '8', expected a whole number"),
        ({"alpha": float("inf")}, "got inf, expected a number"),
    ],
)
def test_settings_from_a_file_that_do_not_fit(make_text_model, changes, message):
    with pytest.raises(ModelError, match=message):
        inject(make_text_model().module, settings("layers.0.up") | changes)


def test_all_linear_is_every_linear_layer_but_head_and_output_layer(make_image_model):
    with pytest.raises(ModelError, match="no linear layer"):
        adapt(make_image_model(), "lora", targets=["all-linear"])
    for kind in ("llama", "gpt2", "bert"):
        model = adapt(tiny.model(kind), "lora", targets=["all-linear"])
        import peft

        theirs = peft.inject_adapter_in_model(peft.LoraConfig(target_modules="all-linear"), tiny.network(kind))
        expected = [name for name, part in theirs.named_modules() if isinstance(part, peft.tuners.lora.LoraLayer)]
        assert model.card.arguments["adapt"]["targets"] == [name for name in expected if name != "classifier"]


def test_patterns_give_layers_numbers_of_their_own(make_text_model):
    patterns = {"rank_pattern": {r"layers\.[01]\.up": 2, "up": 5}, "alpha_pattern": {"down": 3.0}}
    layers = adapt(make_text_model(), "lora", rank=4, alpha=8.0, **patterns).module.layers
    assert [len(layer.up.lora_A) for layer in layers] == [2, 2, 5] and {len(layer.down.lora_A) for layer in layers} == {4}
    assert [layer.up.scaling for layer in layers] == [4.0, 4.0, 1.6] and {layer.down.scaling for layer in layers} == {0.75}


@pytest.mark.parametrize("named", [False, True])
def test_a_tied_output_layer(named):
    """Outside the targets unless named; named, its update is its own, and merging takes the pair apart."""
    plain = tiny.model("llama", tie_word_embeddings=True)
    before = plain.module.model.embed_tokens.weight.detach().clone()
    model = adapt(tiny.model("llama", tie_word_embeddings=True), "lora", targets=["lm_head", "q_proj"] if named else [])
    tied = model.module.lm_head.base if named else model.module.lm_head
    assert isinstance(model.module.lm_head, LoRALinear) == named and tied.weight is model.module.model.embed_tokens.weight
    tiny.stir(model)
    tuned = tiny.outputs(model, "llama")
    assert not torch.allclose(tuned, tiny.outputs(plain, "llama"))
    merge(model.module)
    torch.testing.assert_close(tiny.outputs(model, "llama"), tuned, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.module.model.embed_tokens.weight, before)
    assert model.module.config.tie_word_embeddings == (not named)


def test_a_tied_embedding_among_the_targets():
    model = tiny.stir(adapt(tiny.model("llama", tie_word_embeddings=True), "lora", targets=["embed_tokens"]))
    tuned, head = tiny.outputs(model, "llama"), model.module.lm_head.weight.detach().clone()
    merge(model.module)
    torch.testing.assert_close(tiny.outputs(model, "llama"), tuned, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.module.lm_head.weight, head)
