from __future__ import annotations

import pytest
import torch
from torch import nn

from frostline.adapt.apply import adapt
from frostline.adapt.ia3 import IA3, inject
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
