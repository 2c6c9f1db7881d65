"""The battery: every method passes the same tests on networks of Transformers, the small ones of conftest.py are in test_apply.py."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from frostline.adapt.apply import _METHODS, adapt
from frostline.adapt.freeze import frozen_hash, frozen_names
from frostline.adapt.groups import parameter_groups
from frostline.adapt.rebuild import rebuild
from frostline.adapt.wrapper import fold
from frostline.models.output import hidden_of
from frostline.recipe import TrainRecipe
from frostline.train.optimizers import build_optimizer
from tests.adapt import tiny

EVERY = {
    "head": {}, "last": {"last": 1}, "full": {}, "gradual": {}, "bitfit": {}, "norms": {}, "vera": {"dropout": 0.1}, "ia3": {},
    "lora": {"dropout": 0.1}, "lora dora": {"dora": True}, "lora pissa": {"init": "pissa", "rslora": True},
    "adapter pfeiffer": {"bottleneck": 4}, "adapter houlsby": {"bottleneck": 4, "placement": "houlsby"},
    "adapter parallel": {"bottleneck": 4, "placement": "parallel"}, "prompt": {"tokens": 3}, "p-tuning": {"tokens": 3},
    "prefix": {"tokens": 3}, "prefix by a network": {"tokens": 3, "encoder_width": 8}, "peft": {},
}  # fmt: skip
IMPOSSIBLE = {("llama", "head"), ("llama", "gradual"), ("llama", "bitfit"), ("gpt2", "head"), ("gpt2", "gradual")}
KINDS = ("bert", "llama", "gpt2")
CASES = [(kind, method) for kind in KINDS for method in EVERY if (kind, method) not in IMPOSSIBLE]
BEGINS_AS_THE_BASE = [case for case in CASES if not case[1].startswith(("p-", "prompt", "prefix", "peft"))]
FOLDS = [case for case in CASES if case[1].split()[0] in ("lora", "vera", "ia3")]


def made(kind: str, method: str, seed: int = 0, base: str = "full"):
    if method == "peft":
        import peft

        own = {"bert": "query", "llama": "q_proj", "gpt2": "c_attn"}[kind]
        config = (
            peft.LoKrConfig(r=2, target_modules=[own])
            if kind != "gpt2"
            else peft.LoraConfig(r=2, target_modules=[own], fan_in_fan_out=True)
        )
        return adapt(tiny.model(kind), config, seed=seed)
    options = {} if base == "full" else {"base": base}
    return adapt(tiny.model(kind), method.split()[0], seed=seed, **EVERY[method], **options)


def train(model, kind: str, steps: int = 3) -> None:
    groups = parameter_groups(model, model.recipe.adapt, lr=0.05, weight_decay=0.1)
    stepper = build_optimizer(groups, TrainRecipe())
    torch.manual_seed(0)
    for _ in range(steps):
        model.module.train()
        stepper.zero_grad()
        logits = model.module(**tiny.inputs(kind)).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, -2), torch.arange(logits[..., 0].numel()) % 3).backward()
        stepper.step()


def test_the_battery_covers_every_method():
    assert {method.split()[0] for method in EVERY} == set(_METHODS)


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_what_is_frozen_stays_and_what_learns_changes(kind, method):
    model = made(kind, method)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    frozen, digest = set(frozen_names(model.module)), frozen_hash(model.module)
    buffers = {name: buffer.clone() for name, buffer in model.module.named_buffers()}
    train(model, kind)
    assert frozen_hash(model.module) == digest
    changed = {name for name, tensor in model.module.state_dict().items() if not torch.equal(tensor, before[name])}
    learning = {name for name, parameter in model.module.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    assert changed <= learning and not changed & frozen and all(torch.equal(b, buffers[n]) for n, b in model.module.named_buffers())
    still = {name for name in learning - changed if "key.bias" not in name and "k_proj.bias" not in name and "position" not in name}
    assert not still or method == "peft"  # a bias of the keys moves all scores of a query alike
    learns = sum(model.module.get_parameter(name).numel() for name in learning)
    assert method in ("full", "last") or learns < sum(p.numel() for p in model.module.parameters()) / 2


@pytest.mark.parametrize(("kind", "method"), BEGINS_AS_THE_BASE)
def test_it_begins_as_its_base(kind, method):
    assert torch.equal(tiny.outputs(made(kind, method), kind), tiny.outputs(tiny.model(kind), kind))


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_the_card_builds_the_same_network_again(kind, method):
    model = tiny.stir(made(kind, method))
    again = tiny.network(kind)
    settings = model.card.arguments.get("adapt")
    if settings is not None:
        assert rebuild(again, json.loads(json.dumps(settings))) is again
    again.load_state_dict(model.module.state_dict(), strict=True)
    assert torch.equal(tiny.outputs(again, kind), tiny.outputs(model, kind))
    assert torch.equal(tiny.outputs(copy.deepcopy(model.module), kind), tiny.outputs(model, kind))


@pytest.mark.parametrize("base", ["int8", "int4", "nf4"])
@pytest.mark.parametrize("method", ["lora", "vera", "ia3", "adapter houlsby", "prompt", "prefix", "norms", "bitfit"])
def test_on_a_base_in_few_bits(base, method):
    model = made("bert", method, base=base)
    digest = frozen_hash(model.module)
    train(model, "bert")
    assert frozen_hash(model.module) == digest
    again = tiny.network("bert")
    rebuild(again, json.loads(json.dumps(model.card.arguments["adapt"])))
    again.load_state_dict(model.module.state_dict(), strict=True)
    assert torch.equal(tiny.outputs(again, "bert"), tiny.outputs(model, "bert"))


@pytest.mark.parametrize(("kind", "method"), FOLDS)
def test_folded_it_is_the_same(kind, method):
    model = tiny.stir(made(kind, method), spread=0.1)
    tuned = tiny.outputs(model, kind)
    fold(model.module)
    assert set(tiny.network(kind).state_dict()) <= set(model.module.state_dict())
    torch.testing.assert_close(tiny.outputs(model, kind), tuned, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "vera", "adapter pfeiffer", "prompt", "p-tuning", "prefix", "peft"])
def test_the_seed_decides(method):
    first, second, other = (made("llama", method, seed=seed).module.state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_a_second_call_changes_nothing(kind, method):
    model = made(kind, method)
    names, learning = list(model.module.state_dict()), frozen_names(model.module)
    adapt(model, model.recipe.adapt)
    assert list(model.module.state_dict()) == names and frozen_names(model.module) == learning


@pytest.mark.parametrize(("kind", "method"), [case for case in CASES if case[0] != "bert"])
def test_the_output_layer_on_the_bodys_output_is_the_whole(kind, method):
    model = tiny.stir(made(kind, method))
    model.module.eval()
    with torch.no_grad():
        hidden = hidden_of(model.module.get_submodule(model.body)(**tiny.inputs(kind)))
        apart = model.module.get_submodule(model.output)(hidden)
    assert hidden.shape[:2] == tiny.IDS.shape and torch.equal(apart, tiny.outputs(model, kind))


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_padding_changes_nothing(kind, method):
    model = tiny.stir(made(kind, method))
    model.module.eval()
    with torch.no_grad():
        alone = model.module(input_ids=tiny.IDS[1:, :4], attention_mask=tiny.MASK[1:, :4]).logits
    padded = tiny.outputs(model, kind)[1:]
    torch.testing.assert_close(padded if kind == "bert" else padded[:, :4], alone, rtol=1e-4, atol=1e-5)
