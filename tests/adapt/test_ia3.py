from __future__ import annotations

import pytest
import torch
from torch import nn

from frostline.adapt.apply import adapt
from frostline.adapt.ia3 import IA3, inject
from frostline.adapt.peft_files import load_adapter, save_adapter
from frostline.adapt.targets import matches
from frostline.adapt.wrapper import fold
from frostline.errors import ModelError
from tests.adapt import tiny


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "bert"])
def test_the_usual_targets_are_pefts(kind):
    import peft

    task = {"bert": "SEQ_CLS", "t5": "SEQ_2_SEQ_LM", "bart": "SEQ_2_SEQ_LM"}.get(kind, "CAUSAL_LM")
    theirs = peft.get_peft_model(tiny.network(kind), peft.IA3Config(task_type=task)).base_model.model
    expected = {name: part.is_feedforward for name, part in theirs.named_modules() if isinstance(part, peft.tuners.ia3.IA3Layer)}
    settings = adapt(tiny.model(kind), "ia3").card.arguments["adapt"]
    assert sorted(settings["targets"]) == sorted(expected)
    assert sorted(settings["feedforward"]) == sorted(name for name, before in expected.items() if before)


@pytest.mark.parametrize("scales_input", [False, True])
@pytest.mark.parametrize(
    "base", [nn.Linear(4, 6), nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3, groups=2), nn.Conv1d(4, 6, 3, bias=False)], ids=str
)
def test_it_scales_and_folds(base, scales_input):
    layer = IA3(base, scales_input)
    x = torch.randn(2, 4, *[7] * (base.weight.dim() - 2))
    assert torch.equal(layer(x), base(x))
    nn.init.normal_(layer.ia3_l)
    scale = layer.ia3_l if base.weight.dim() > 2 else layer.ia3_l.flatten()
    tuned = layer(x)
    torch.testing.assert_close(tuned, base(x * scale) if scales_input else base(x) * scale)
    module = nn.Sequential(layer)
    fold(module)
    torch.testing.assert_close(module(x), tuned, rtol=1e-4, atol=1e-5)


def test_refusals(make_image_model, make_text_model):
    with pytest.raises(ModelError, match="no keys, values or feed-forward layers are known by name in the model 'convnet'"):
        adapt(make_image_model(), "ia3")
    with pytest.raises(ModelError, match=r"adapt\.feedforward: got 'down', which is none of the targets"):
        adapt(make_text_model(), "ia3", targets=["up"], feedforward=["down"])
    with pytest.raises(ModelError, match=r"adapt\.feedforward: got \['x'\], expected names out of the targets"):
        inject(make_text_model().module, {"targets": ["layers.0.up"], "feedforward": ["x"]})


WAYS = {
    "all-linear": {"targets": ["all-linear"]},
    "a glob": {"targets": ["*_proj", "*dense*", "c_*"]},
    "an end": {"targets": ["mlp.down_proj", "self_attn.k_proj", "key", "layer.1.output.dense", "mlp.c_proj", "c_attn"]},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_feedforward_layers_are_known_however_they_are_named(kind, way, tmp_path):
    import peft

    known = {name for name, part in tiny.network(kind).named_modules()}
    targets = [t for t in WAYS[way]["targets"] if t == "all-linear" or any(matches(name, t) for name in known)]
    model = adapt(tiny.model(kind), "ia3", targets=targets)
    settings = model.card.arguments["adapt"]
    end = {"llama": "down_proj", "gpt2": "mlp.c_proj", "bert": "output.dense"}[kind]
    assert settings["feedforward"] == [name for name in settings["targets"] if name.endswith(end)] and settings["feedforward"]
    assert len(settings["feedforward"]) < len(settings["targets"])
    expected = tiny.outputs(tiny.stir(model), kind)
    save_adapter(model, tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(tiny.network(kind), tmp_path / "a")
    found = {n.removeprefix("base_model.model."): p.is_feedforward for n, p in theirs.named_modules() if hasattr(p, "is_feedforward")}
    assert found == {name: name in settings["feedforward"] for name in settings["targets"]}
    torch.testing.assert_close(tiny.outputs(theirs, kind), expected)
    again = tiny.model(kind)
    load_adapter(again, tmp_path / "a")
    assert torch.equal(tiny.outputs(again, kind), expected)
    adapt(again, again.recipe.adapt)  # as a plan does


@pytest.mark.parametrize(
    ("wanted", "ends"),
    [(["all-linear"], ("up_proj", "down_proj")), (["*.down_proj"], ("down_proj",)), (["layers.*.up_proj"], ("up_proj",))],
)
def test_feedforward_takes_what_targets_take(wanted, ends):
    settings = adapt(tiny.model("llama"), "ia3", targets=["up_proj", "down_proj"], feedforward=wanted).card.arguments["adapt"]
    assert settings["feedforward"] == [name for name in settings["targets"] if name.endswith(ends)]


def test_a_file_without_feedforward_layers_is_taken_as_it_is(tmp_path):
    import peft

    config = peft.IA3Config(target_modules=["down_proj", "k_proj"], feedforward_modules=[], task_type="CAUSAL_LM", init_ia3_weights=False)
    theirs = peft.get_peft_model(tiny.network("llama"), config)
    theirs.save_pretrained(tmp_path / "theirs")
    model = tiny.model("llama")
    load_adapter(model, tmp_path / "theirs")
    assert model.card.arguments["adapt"]["feedforward"] == []
    adapt(model, model.recipe.adapt)
    torch.testing.assert_close(tiny.outputs(model, "llama"), tiny.outputs(theirs, "llama"))


def test_convolutions_of_files(make_image_model, tmp_path):
    for feedforward in ([], ["blocks.0.0"]):
        model = adapt(make_image_model(), "ia3", targets=["blocks.*.0"], feedforward=feedforward or ["blocks.2.0"])
        save_adapter(tiny.stir(model), tmp_path / "a")
        again = make_image_model()
        load_adapter(again, tmp_path / "a")
        assert again.card.arguments["adapt"]["feedforward"] == model.card.arguments["adapt"]["feedforward"]
        batch = {"pixel_values": torch.randn(2, 3, 6, 6)}
        with torch.no_grad():
            assert torch.equal(again.module.eval()(**batch), model.module.eval()(**batch))
