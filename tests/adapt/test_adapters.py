from __future__ import annotations

import copy
import json

import pytest
import torch

from frostline.adapt.adapters import (
    adapter_names,
    adapters_off,
    add_adapter,
    combine,
    merge,
    merge_into_base,
    merge_into_few_bits,
    unmerge,
    use_adapters,
)
from frostline.adapt.apply import adapt
from frostline.adapt.lora import inject
from frostline.adapt.quantize import QuantizedLinear
from frostline.adapt.rebuild import rebuild
from frostline.errors import ModelError
from tests.adapt import tiny


@pytest.fixture
def two():
    """A Llama with two trained adapters, the second of another rank; the first one is on."""
    model = tiny.stir(adapt(tiny.model("llama"), "lora", rank=4), seed=1)
    add_adapter(model, "second", rank=3, alpha=6.0, seed=5)
    use_adapters(model, "second")
    tiny.stir(model, seed=2)
    use_adapters(model, "default")
    return model


def outputs(model) -> torch.Tensor:
    return tiny.outputs(model, "llama")


def deltas(model) -> dict[str, dict[str, torch.Tensor]]:
    from frostline.adapt.wrapper import wrappers

    return {
        name: {a: part.piece(a).scaling * part.piece(a).delta().detach() for a in ("default", "second")}
        for name, part in wrappers(model.module)
    }


def with_weights(model, first: float, second: float) -> torch.Tensor:
    plain = tiny.model("llama")
    for name, change in deltas(model).items():
        plain.module.get_submodule(name).weight.data += first * change["default"] + second * change["second"]
    return outputs(plain)


def test_switching_and_stacking(two):
    assert adapter_names(two) == ["default", "second"]
    for names, weights in ((("default",), (1, 0)), (("second",), (0, 1)), (("default", "second"), (1, 1)), ((), (0, 0))):
        use_adapters(two, *names)
        torch.testing.assert_close(outputs(two), with_weights(two, *weights), rtol=1e-5, atol=1e-5)
        learning = [name for name, parameter in two.module.named_parameters() if parameter.requires_grad]
        assert len(learning) == len(names) * 2 * 14 and all(
            ("second" in name) == (names == ("second",)) for name in learning if len(names) == 1
        )


def test_a_new_adapter_changes_nothing_and_does_not_learn():
    model = tiny.stir(adapt(tiny.model("llama"), "lora"))
    before = outputs(model)
    add_adapter(model, "乙")
    assert torch.equal(outputs(model), before)
    assert not any(parameter.requires_grad for name, parameter in model.module.named_parameters() if "乙" in name)


def test_the_card_builds_them_all_again(two):
    use_adapters(two, "default", "second")
    again = tiny.network("llama")
    inject(again, json.loads(json.dumps(two.card.arguments["adapt"])))
    again.load_state_dict(two.module.state_dict(), strict=True)
    assert torch.equal(tiny.outputs(again, "llama"), outputs(two))
    assert torch.equal(tiny.outputs(copy.deepcopy(two.module), "llama"), outputs(two))


@pytest.mark.parametrize(("method", "options"), [
    ("lora", {"dropout": 0.3}), ("lora", {"init": "pissa"}), ("lora", {"dora": True}), ("vera", {}), ("ia3", {}),
    ("adapter", {"placement": "parallel"}), ("prompt", {"tokens": 3}), ("prefix", {"tokens": 3}),
])  # fmt: skip
def test_switched_off_it_is_the_base_bit_for_bit(method, options):
    model = tiny.stir(adapt(tiny.model("llama"), method, **options))
    tuned = outputs(model)
    with adapters_off(model.module):
        assert torch.equal(outputs(model), outputs(tiny.model("llama")))
    assert torch.equal(outputs(model), tuned) and not torch.equal(tuned, outputs(tiny.model("llama")))


def test_switched_off_with_peft():
    import peft

    model = tiny.stir(adapt(tiny.model("llama"), peft.LoraConfig(target_modules=["q_proj"])))
    with adapters_off(model.module):
        assert torch.equal(outputs(model), outputs(tiny.model("llama")))
    assert not torch.equal(outputs(model), outputs(tiny.model("llama")))


def test_switching_off_comes_back_after_an_error():
    model = tiny.stir(adapt(tiny.model("llama"), "lora"))
    tuned = outputs(model)
    with pytest.raises(RuntimeError), adapters_off(model.module):
        raise RuntimeError
    assert torch.equal(outputs(model), tuned)


def test_without_the_base_in_it_nothing_is_switched_off():
    model = adapt(tiny.model("llama", tie_word_embeddings=False), "lora", modules_to_save=["lm_head"])
    with pytest.raises(ModelError, match=r"'lm_head\.weight' learns beside the adapter"), adapters_off(model.module):
        pass
    with pytest.raises(ModelError, match="got a model without an adapter"), adapters_off(tiny.network("llama")):
        pass


@pytest.mark.parametrize("weights", [None, {"default": 0.7, "second": -0.3}])
def test_merge_and_unmerge(two, weights):
    before = {name: tensor.clone() for name, tensor in two.module.state_dict().items()}
    tuned = outputs(two)
    merge(two.module, weights)
    expected = tuned if weights is None else with_weights_of(before, two, weights)
    torch.testing.assert_close(outputs(two), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ModelError, match="a second time would add it twice"):
        merge(two.module)
    with pytest.raises(ModelError, match="a second time would add it twice"):
        merge_into_base(two)
    unmerge(two.module)
    after = two.module.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(outputs(two), tuned)
    with pytest.raises(ModelError, match="got a model that is not merged"):
        unmerge(two.module)


def with_weights_of(before, model, weights) -> torch.Tensor:
    again = tiny.network("llama")
    inject(again, model.card.arguments["adapt"])
    again.load_state_dict(before)
    return with_weights(type(model)(module=again, card=model.card), weights["default"], weights["second"])


def test_merged_for_good_it_is_an_ordinary_model(two):
    tuned = outputs(two)
    merge_into_base(two)
    assert "adapt" not in two.card.arguments and list(two.module.state_dict()) == list(tiny.network("llama").state_dict())
    torch.testing.assert_close(outputs(two), tuned, rtol=1e-5, atol=1e-5)


def test_concatenated_it_is_the_weighted_sum(two):
    combine(two, "both", {"default": 0.7, "second": -0.3})
    expected = with_weights(two, 0.7, -0.3)
    use_adapters(two, "both")
    torch.testing.assert_close(outputs(two), expected, rtol=1e-5, atol=1e-5)
    part = two.module.model.layers[0].self_attn.q_proj
    assert len(part.piece("both").lora_A) == 7


def test_linear_combination_is_that_of_the_factors(two):
    with pytest.raises(
        ModelError, match=r"got the ranks \[4, 3\] of default, second at 'model.layers.0.self_attn.q_proj'.*expected one rank"
    ):
        combine(two, "both", {"default": 0.5, "second": 0.5}, how="linear")
    combine(two, "halved", {"default": 0.5}, how="linear")
    expected = with_weights(two, 0.5, 0.0)
    use_adapters(two, "halved")
    torch.testing.assert_close(outputs(two), expected, rtol=1e-5, atol=1e-5)


def test_errors_of_use():
    model = adapt(tiny.model("llama"), "lora")
    with pytest.raises(ModelError, match="never trained"):
        merge(model.module)
    with pytest.raises(ModelError, match="never trained"):
        merge_into_base(model)
    tiny.stir(model)
    with pytest.raises(ModelError, match="got 'default' and 'default' at once, which are the same"):
        use_adapters(model, "default", "default")
    combine(model, "copy", {"default": 1.0})
    add_adapter(model, "other")
    for place in ("lora_A", "lora_B"):
        for part in (p for p in model.module.modules() if hasattr(p, "others") and "base" in p._modules):
            getattr(part.piece("other"), place).data.copy_(getattr(part, place))
    with pytest.raises(ModelError, match="got 'default' and 'other' at once, which are the same"):
        use_adapters(model, "default", "other")
    with pytest.raises(ModelError, match="got 'third', expected one of those that the model holds: default, copy, other"):
        use_adapters(model, "third")
    for name in ("../x", "a.b", "default", "", "keys"):
        with pytest.raises(ModelError, match="got the name"):
            add_adapter(model, name)
    model.module.model.layers[1].mlp.down_proj.lora_A.data[0, 0] = float("inf")
    with pytest.raises(ModelError, match=r"'model.layers.1.mlp.down_proj.lora_A' holds NaN or infinite numbers"):
        merge(model.module)
    with pytest.raises(ModelError, match="holds no LoRA adapter"):
        add_adapter(tiny.model("llama"), "a")


def test_doras_do_not_add_up():
    model = tiny.stir(adapt(tiny.model("llama"), "lora", dora=True))
    add_adapter(model, "second")
    with pytest.raises(ModelError, match="DoRA's updates do not add up"):
        use_adapters(model, "default", "second")
    with pytest.raises(ModelError, match="got a DoRA adapter"):
        combine(model, "x", {"default": 1.0})


def test_what_no_weight_can_take_up():
    with pytest.raises(ModelError, match="holds a 'Bottleneck', which no weight can take up"):
        merge(tiny.stir(adapt(tiny.model("llama"), "adapter")).module)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_merging_into_a_quantised_base_leaves_no_layer_in_few_bits(kind):
    model = tiny.stir(adapt(tiny.model("llama"), "lora", rank=2, targets=["q_proj"], base=kind), seed=1)
    before = outputs(model)
    assert any(isinstance(part, QuantizedLinear) for part in model.module.modules())
    merge_into_base(model)
    assert not any(isinstance(part, QuantizedLinear) for part in model.module.modules())
    torch.testing.assert_close(outputs(model), before, rtol=1e-4, atol=1e-4)


def test_trained_or_not_is_judged_by_what_is_merged(two):
    add_adapter(two, "fresh")
    tuned = outputs(two)
    with pytest.raises(ModelError, match="never trained"):
        merge(two.module, {"fresh": 1.0})
    assert torch.equal(outputs(two), tuned)
    use_adapters(two, "fresh")  # what is on changes nothing, what is merged does
    merge(two.module, {"second": 1.0})
    torch.testing.assert_close(outputs(two), outputs_of_one(two, "second"), rtol=1e-5, atol=1e-5)
    unmerge(two.module)
    for weights in ({"third": 1.0}, {"default": float("nan")}):
        with pytest.raises(ModelError, match=r"merge: got '.*' with the weight .*, expected a number for one of default, second, fresh"):
            merge(two.module, weights)
    assert not any("kept" in part.__dict__ for part in two.module.modules())
    with pytest.raises(ModelError, match="got weights for a 'IA3'"):
        merge(tiny.stir(adapt(tiny.model("llama"), "ia3")).module, {"default": 1.0})


def outputs_of_one(model, name: str) -> torch.Tensor:
    unmerge(model.module)
    use_adapters(model, name)
    alone = outputs(model)
    use_adapters(model, "fresh")
    merge(model.module, {name: 1.0})
    return alone


def test_doras_are_not_merged_together():
    model = tiny.stir(adapt(tiny.model("llama"), "lora", dora=True))
    add_adapter(model, "second")
    with pytest.raises(ModelError, match=r"DoRA's updates do not add up\. Merge one of them"):
        merge(model.module, {"default": 1.0, "second": 1.0})
    merge(model.module, {"default": 1.0})


@pytest.mark.parametrize("method", ["lora", "vera", "ia3"])
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_merged_and_back_in_few_bits(kind, method):
    model = tiny.stir(adapt(tiny.model("bert"), method, base=kind), spread=0.5)
    quantized = model.card.arguments["adapt"]["quantized"]
    tuned, learned = tiny.outputs(model, "bert"), model.module.bert.encoder.layer[0].attention.self.key.weight.detach().clone()
    before = model.module.bert.encoder.layer[0].attention.self.key.base.weight
    shares = merge_into_few_bits(model)
    assert model.card.arguments["adapt"] == {"base": kind, "quantized": quantized}
    assert {name for name, part in model.module.named_modules() if isinstance(part, QuantizedLinear)} == set(quantized)
    left = model.module.bert.encoder.layer[0].attention.self.key.weight - before
    share = float(((learned - before) * left).sum() / (learned - before).square().sum())
    assert shares["bert.encoder.layer.0.attention.self.key"] == pytest.approx(share, rel=1e-4) and 0.5 < shares["total"] < 1.5
    error = (tiny.outputs(model, "bert") - tuned).abs().max() / tuned.abs().max()
    assert error < (0.15 if kind == "int8" else 0.6)
    again = rebuild(tiny.network("bert"), json.loads(json.dumps(model.card.arguments["adapt"])))
    again.load_state_dict(model.module.state_dict(), strict=True)
    assert torch.equal(tiny.outputs(again, "bert"), tiny.outputs(model, "bert"))
    adapt(model, "lora", base=kind)  # and on from there


def test_what_few_bits_would_erase_stays_as_it_is():
    model = tiny.stir(adapt(tiny.model("bert"), "lora", base="int4"), spread=1e-3)
    tuned, settings, names = tiny.outputs(model, "bert"), copy.deepcopy(model.card.arguments["adapt"]), list(model.module.state_dict())
    with pytest.raises(ModelError, match=r"after 'int4' only -?\d+% of what was learned would be left, expected at least 50%"):
        merge_into_few_bits(model)
    assert torch.equal(tiny.outputs(model, "bert"), tuned)
    assert model.card.arguments["adapt"] == settings and list(model.module.state_dict()) == names
    assert merge_into_few_bits(model, limit=-10.0)["total"] < 0.5
    with pytest.raises(ModelError, match="got a model without one"):
        merge_into_few_bits(model)
    with pytest.raises(ModelError, match=r"'bert' holds its base in 'full', expected int8, int4 or nf4. Use: merge_into_base\(model\)"):
        merge_into_few_bits(tiny.stir(adapt(tiny.model("bert"), "lora")))
    with pytest.raises(ModelError, match="never trained"):
        merge_into_few_bits(adapt(tiny.model("bert"), "lora", base="int8"))
