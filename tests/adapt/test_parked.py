"""Each adapter's own head and modules_to_save: loaded, switched, trained, saved and read back, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch

import frostline as fl
from frostline.adapt.adapters import add_adapter, combine, merge_into_base, use_adapters
from frostline.adapt.apply import adapt
from frostline.adapt.freeze import frozen_hash
from frostline.adapt.peft_files import load_adapter, save_adapter
from frostline.adapt.rebuild import rebuild
from frostline.errors import ModelError
from frostline.models.save import save_model
from tests.adapt import tiny

OPTIONS = {
    "bert": {},
    "llama": {"modules_to_save": ["lm_head"]},
    "llama tied": {"modules_to_save": ["lm_head", "embed_tokens"]},
}


def plain(case: str):
    kind, _, tied = case.partition(" ")
    return tiny.model(kind, tie_word_embeddings=bool(tied)) if kind == "llama" else tiny.model(kind)


def trained(case: str, seed: int):
    return tiny.stir(adapt(plain(case), "lora", **OPTIONS[case]), seed=seed)


@pytest.fixture(params=OPTIONS)
def case(request):
    return request.param


@pytest.fixture
def folders(case, tmp_path):
    """Two adapters that were trained apart, and what each answers."""
    answers = {}
    for seed, name in enumerate(("one", "two"), 1):
        model = trained(case, seed)
        save_adapter(model, tmp_path / name)
        answers[name] = tiny.outputs(model, case.split()[0])
    return tmp_path, answers


def test_loaded_side_by_side_each_keeps_its_own(case, folders):
    (path, answers), kind = folders, case.split()[0]
    model = plain(case)
    load_adapter(model, path / "one")
    load_adapter(model, path / "two", "second")
    assert torch.equal(tiny.outputs(model, kind), answers["one"])
    for name, answer in (("second", "two"), ("default", "one"), ("second", "two")):
        use_adapters(model, name)
        assert torch.equal(tiny.outputs(model, kind), answers[answer])
    for name, answer in (("default", "one"), ("second", "two")):  # the one that is parked is saved as it is
        save_adapter(model, path / "again", name)
        again = plain(case)
        load_adapter(again, path / "again")
        assert torch.equal(tiny.outputs(again, kind), answers[answer])
    rebuilt = rebuild(plain(case).module, copy.deepcopy(model.card.arguments["adapt"]))
    rebuilt.load_state_dict(model.module.state_dict(), strict=True)
    assert torch.equal(tiny.outputs(rebuilt, kind), answers["two"])


def test_what_one_learns_does_not_reach_the_other(case):
    kind = case.split()[0]
    model = trained(case, 1)
    first = tiny.outputs(model, kind)
    add_adapter(model, "second")
    assert torch.equal(tiny.outputs(model, kind), first)
    use_adapters(model, "second")
    learning = [name for name, parameter in model.module.named_parameters() if parameter.requires_grad]
    assert any("classifier" in name or "lm_head" in name or "embed_tokens" in name for name in learning)
    assert not any("parked" in name for name in learning)
    digest = frozen_hash(model.module)
    second = tiny.outputs(tiny.stir(model, seed=4), kind)
    assert frozen_hash(model.module) == digest
    use_adapters(model, "default")
    assert torch.equal(tiny.outputs(model, kind), first) and frozen_hash(model.module) != digest
    use_adapters(model, "second")
    assert torch.equal(tiny.outputs(model, kind), second)
    use_adapters(model)  # none: the modules stay those of the last one
    merged = model.module.state_dict()
    use_adapters(model, "second")
    assert all(torch.equal(merged[name], tensor) for name, tensor in model.module.state_dict().items())
    merge_into_base(model)
    assert list(model.module.state_dict()) == list(plain(case).module.state_dict())
    torch.testing.assert_close(tiny.outputs(model, kind), second, rtol=1e-5, atol=1e-5)


def test_together_they_need_the_same_modules(case):
    kind = case.split()[0]
    model = trained(case, 1)
    add_adapter(model, "second")
    use_adapters(model, "default", "second")  # as the second begins
    use_adapters(model, "second")
    tiny.stir(model, seed=2)
    with pytest.raises(ModelError, match=r"got 'second' and 'default' at once, whose '.*' differ, expected the same"):
        use_adapters(model, "second", "default")
    assert model.card.arguments["adapt"]["active"] == ["second"]
    answer = tiny.outputs(model, kind)
    combine(model, "both", {"second": 1.0, "default": 0.0})
    use_adapters(model, "both")
    torch.testing.assert_close(tiny.outputs(model, kind), answer, rtol=1e-5, atol=1e-5)
    use_adapters(model, "default")


def test_saved_whole_and_read_back(texts, tmp_path):
    model = tiny.stir(fl.adapt(fl.load("transformer", data=texts, width=32, depth=1), "lora", rank=2))
    rows = {"input_ids": torch.tensor([[2, 5, 6], [2, 4, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    answers = {}
    add_adapter(model, "乙")
    for name in ("default", "乙"):
        use_adapters(model, name)
        tiny.stir(model, seed=5)
        answers[name] = model.module.eval()(**rows).detach()
    save_model(model, tmp_path / "m", rows, rebuild=rebuild)
    again = fl.load(tmp_path / "m")
    for name in ("乙", "default", "乙"):
        use_adapters(again, name)
        assert torch.equal(again.module(**rows).detach(), answers[name])
    add_adapter(again, "丙")
    use_adapters(again, "丙")
    assert set(again.card.arguments["adapt"]["adapters"]) == {"乙", "丙"}


def test_a_load_that_fails_leaves_nothing(case, folders):
    (path, answers), kind = folders, case.split()[0]
    model = plain(case)
    load_adapter(model, path / "one")
    before, settings = list(model.module.state_dict()), copy.deepcopy(model.card.arguments["adapt"])
    (path / "two" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "use_dora": true}')
    with pytest.raises(ModelError, match="lora_magnitude_vector"):
        load_adapter(model, path / "two", "second")
    assert list(model.module.state_dict()) == before and model.card.arguments["adapt"] == settings
    assert torch.equal(tiny.outputs(model, kind), answers["one"])
    with pytest.raises(ModelError, match=r"got the name 'a' for the first adapter of '.*', which is always called 'default'"):
        load_adapter(plain(case), path / "one", "a")


@pytest.mark.parametrize(
    "settings",
    [{"modules": "classifier"}, {"modules": ["x"]}, {"modules": [""]}, {"modules": [3]}, {"modules": ["classifier"], "modules_of": "x"}],
)
def test_settings_of_files_are_checked(settings):
    good = adapt(tiny.model("bert"), "lora").card.arguments["adapt"]
    with pytest.raises(ModelError, match=r"adapt\.modules: got"):
        rebuild(tiny.network("bert"), {**good, **settings})


def test_a_model_that_was_read_back_still_knows_what_goes_with_its_adapter(texts, tmp_path):
    from frostline.adapt.peft_keys import tensors_of

    model = fl.adapt(fl.load("transformer", data=texts, width=32, depth=1), "lora", rank=2, modules_to_save=["tokens"])
    tiny.stir(model)
    save_model(model, tmp_path / "m", rebuild=rebuild)
    again = fl.load(tmp_path / "m")
    assert again.recipe.adapt.modules_to_save == []
    first, second = (tensors_of(made, "default") for made in (model, again))
    assert list(first) == list(second) and any(key.endswith("tokens.weight") for key in first)
    assert all(torch.equal(first[key], second[key]) for key in first)
    save_adapter(again, tmp_path / "a")
    add_adapter(again, "second")
    use_adapters(again, "second")
    assert {name for name, part in again.module.named_parameters() if part.requires_grad and "tokens" in name}
    with pytest.raises(ModelError, match=r"modules_to_save: got 'blocks\.0\.mlp_norm', but the adapters of 'transformer' have"):
        fl.adapt(again, "lora", rank=2, modules_to_save=["mlp_norm"])
