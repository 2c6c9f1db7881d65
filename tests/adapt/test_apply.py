"""The conformance harness: every method passes the same battery, on both networks. A new method joins METHODS.

Methods that need a network of Transformers pass the one in test_methods.py.
"""

from __future__ import annotations

import copy

import pytest
import torch

from frostline.adapt.apply import _METHODS, adapt, resolve_method
from frostline.adapt.freeze import frozen_hash, frozen_names, is_frozen
from frostline.adapt.gradual import thaw
from frostline.adapt.groups import parameter_groups
from frostline.errors import ModelError, RecipeError
from frostline.recipe import AdaptRecipe, TrainRecipe
from frostline.train.optimizers import build_optimizer

METHODS = ["head", "last 1", "last 3", "full", "lora", "gradual", "bitfit", "norms"]
ELSEWHERE = {"vera", "ia3", "adapter", "prefix", "prompt", "p-tuning", "peft"}


def recipe_of(method: str) -> AdaptRecipe:
    name, _, blocks = method.partition(" ")
    return AdaptRecipe(method=name, last=int(blocks or 2))


def train(model, make_batch, recipe: AdaptRecipe, optimizer: str, steps: int = 5) -> None:
    groups = parameter_groups(model, recipe, lr=0.05, weight_decay=0.1)
    stepper = build_optimizer(groups, TrainRecipe(optimizer=optimizer))
    for step in range(steps):
        model.module.train()
        stepper.zero_grad()
        logits = model.module(**make_batch(model, 6, seed=step))
        torch.nn.functional.cross_entropy(logits, torch.arange(6) % 3).backward()
        stepper.step()


def test_the_harness_covers_every_method():
    assert {method.split()[0] for method in METHODS} == set(_METHODS) - ELSEWHERE


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_frozen_changes_by_a_bit_and_all_that_learns_changes(make_model, make_batch, method, optimizer):
    model = adapt(make_model(), method)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    frozen, digest = set(frozen_names(model.module)), frozen_hash(model.module)
    train(model, make_batch, recipe_of(method), optimizer)
    assert frozen_hash(model.module) == digest
    changed = {name for name, tensor in model.module.state_dict().items() if not torch.equal(tensor, before[name])}
    learning = {name for name, parameter in model.module.named_parameters() if parameter.requires_grad}
    assert learning <= changed and not changed & frozen
    assert all(model.in_head(name) for name in changed) == (method in ("head", "gradual"))


@pytest.mark.parametrize("method", METHODS)
def test_frozen_parts_stay_in_evaluation_mode(make_model, method):
    module = adapt(make_model(), method).module
    module.train()
    for name, part in module.named_modules():
        parameters = list(part.parameters())
        if parameters:
            assert part.training == any(p.requires_grad for p in parameters) == (not is_frozen(part)), name


@pytest.mark.parametrize("method", METHODS)
def test_the_frozen_prefix_gives_a_row_the_same_whatever_its_mates(make_model, make_batch, method):
    model = adapt(make_model(), method)
    model.module.train()
    prefix = model.module.get_submodule("stem" if model.card.name == "convnet" else "embedding")
    rows = next(iter(make_batch(model, 6).values()))
    if not is_frozen(prefix):
        assert method in ("full", "lora", "bitfit", "norms")
        return
    torch.testing.assert_close(prefix(rows)[:2], prefix(rows[:2]))
    assert torch.equal(prefix(rows), prefix(rows))


@pytest.mark.parametrize("method", METHODS)
def test_a_second_call_changes_nothing(make_model, method):
    model = adapt(make_model(), method)
    state = copy.deepcopy(model.module.state_dict())
    names = frozen_names(model.module)
    assert adapt(model, method) is model
    assert frozen_names(model.module) == names and list(model.module.state_dict()) == list(state)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("later", METHODS)
def test_a_later_method_replaces_an_earlier_one(make_model, method, later):
    expected = adapt(make_model(), later)
    model = adapt(adapt(make_model(), method), later)
    learning = [name for name, p in model.module.named_parameters() if p.requires_grad]
    wanted = [name for name, p in expected.module.named_parameters() if p.requires_grad]
    if method == "lora":  # its wrappers stay, frozen unless what stands there learns
        learning = [name.replace(".base.", ".") for name in learning if later == "lora" or "lora_" not in name]
    assert learning == wanted


@pytest.mark.parametrize("method", METHODS)
def test_the_output_at_the_beginning_is_that_of_the_plain_model(make_model, make_batch, method):
    plain, model = make_model(), adapt(make_model(), method)
    plain.module.eval(), model.module.eval()
    assert torch.equal(plain.module(**make_batch(plain, 4)), model.module(**make_batch(model, 4)))


def test_auto_is_head_for_pretrained_weights_and_full_otherwise(make_model):
    assert resolve_method(make_model(), AdaptRecipe()) == "head"
    assert resolve_method(make_model(pretrained=False), AdaptRecipe()) == "full"
    headless = make_model()
    headless.head = []
    assert resolve_method(headless, AdaptRecipe()) == "full"
    assert resolve_method(headless, AdaptRecipe(method="lora")) == "lora"
    model = adapt(make_model())
    assert all(p.requires_grad == model.in_head(name) for name, p in model.module.named_parameters())


def test_options_in_every_form(make_text_model):
    for given in (("last 1",), (AdaptRecipe(method="last", last=1),), ("last",)):
        model = adapt(make_text_model(), *given, **({"last": 1} if given == ("last",) else {}))
        assert not model.module.layers[1].up.weight.requires_grad and model.module.layers[2].up.weight.requires_grad
    with pytest.raises(RecipeError, match="rang"):
        adapt(make_text_model(), "lora", rang=4)
    with pytest.raises(RecipeError, match="'sideways', expected one of"):
        adapt(make_text_model(), "sideways")


def test_a_refused_model_is_left_as_it_was(make_text_model):
    model = make_text_model()
    with pytest.raises(ModelError):
        adapt(model, "last 9")
    assert all(p.requires_grad for p in model.module.parameters()) and not any(is_frozen(part) for part in model.module.modules())


def test_refusals_about_depth(make_text_model):
    model = make_text_model()
    with pytest.raises(ModelError, match=r"lr_decay: got 1\.5, expected a factor above 0 and up to 1"):
        adapt(model, "full", lr_decay=1.5)
    model.blocks = []
    with pytest.raises(ModelError, match=r"lr_decay: got 0\.5, but no blocks are known of the model 'textnet'"):
        adapt(model, "full", lr_decay=0.5)


def test_thaw_is_only_for_gradual(make_model):
    model = adapt(make_model(), "head")
    assert not thaw(model, AdaptRecipe(method="head"), 5)


def test_modules_to_save_learn_beside_an_adapter_and_need_one(make_text_model):
    model = adapt(make_text_model(), "lora", targets=["up"], modules_to_save=["embedding", "layers.[01].norm"])
    learning = {
        name for name, parameter in model.module.named_parameters() if parameter.requires_grad and not name.startswith("classifier")
    }
    assert {name for name in learning if "lora" not in name} == {
        "embedding.weight", *(f"layers.{n}.norm.{leaf}" for n in (0, 1) for leaf in ("weight", "bias"))
    }  # fmt: skip
    with pytest.raises(ModelError, match=r"modules_to_save: got \['embedding'\] with 'head', which has no adapter"):
        adapt(make_text_model(), "head", modules_to_save=["embedding"])


def test_a_base_in_few_bits_where_nothing_of_it_learns(make_text_model):
    model = adapt(make_text_model(), "head", base="int8")
    assert model.card.arguments["adapt"]["base"] == "int8" and type(model.module.classifier) is torch.nn.Linear
    adapt(model, "head", base="int8")
    with pytest.raises(ModelError, match=r"adapt\.base: got 'full' with 'full', but the model 'textnet' holds its base in 'int8'"):
        adapt(model, "full")
    with pytest.raises(ModelError, match=r"adapt\.base: got 'nf4' with 'full', whose layers learn"):
        adapt(make_text_model(), "full", base="nf4")
    with pytest.raises(ModelError, match=r"adapt\.base: got 'nf4', but textnet holds an adapter already|holds an adapter already"):
        adapt(adapt(make_text_model(), "lora"), "lora", base="nf4")
