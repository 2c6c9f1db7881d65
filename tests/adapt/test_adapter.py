from __future__ import annotations

import pytest
import torch
from torch import nn

from frostline.adapt.adapter import Bottleneck, inject
from frostline.adapt.apply import adapt
from frostline.errors import ModelError
from tests.adapt import tiny

BERT = "bert.encoder.layer.0."


def places(kind: str, placement: str) -> list[str]:
    return [name for name in adapt(tiny.model(kind), "adapter", placement=placement).card.arguments["adapt"]["targets"] if ".0." in name]


def test_where_they_stand():
    assert places("bert", "houlsby") == [f"{BERT}attention.output.dense", f"{BERT}output.dense"]
    assert places("bert", "pfeiffer") == places("bert", "parallel") == [f"{BERT}output.dense"]
    assert places("llama", "houlsby") == ["model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"]
    assert places("gpt2", "pfeiffer") == ["transformer.h.0.mlp.c_proj"]
    t5 = adapt(tiny.model("t5"), "adapter", placement="houlsby").card.arguments["adapt"]["targets"]
    assert len(t5) == 2 * 2 + 2 * 3  # the decoder's layers have attention twice


def test_behind_a_layer(make_text_model):
    model = tiny.stir(adapt(make_text_model(), "adapter", bottleneck=3, targets=["down"]))
    layer, x = model.module.layers[1].down, torch.randn(2, 16)
    hidden = layer.base(x)
    inner = torch.relu(hidden @ layer.adapter_down.T + layer.adapter_down_bias)
    torch.testing.assert_close(layer(x), hidden + inner @ layer.adapter_up.T + layer.adapter_up_bias)


def test_beside_a_feed_forward_part():
    model = tiny.stir(adapt(tiny.model("llama"), "adapter", bottleneck=3, placement="parallel"))
    part, x = model.module.model.layers[0].mlp, torch.randn(2, 5, 16)
    plain = tiny.model("llama").module.model.layers[0].mlp(x)
    torch.testing.assert_close(part(x), plain + 4.0 * part.down_proj.up(part.up_proj.down(x)))
    assert part.up_proj.inner is None


def test_refusals(make_text_model):
    with pytest.raises(ModelError, match=r"adapt\.bottleneck: got 0, expected a whole number"):
        adapt(make_text_model(), "adapter", bottleneck=0)
    with pytest.raises(ModelError, match=r"the first layer of the feed-forward part that ends in 'layers\.0\.up' is not known by name"):
        adapt(make_text_model(), "adapter", placement="parallel", targets=["up"])
    with pytest.raises(ModelError, match=r"got the entries \{'x': 'y'\} and the seed 0, expected names"):
        inject(make_text_model().module, {"targets": ["layers.0.up"], "bottleneck": 2, "entries": {"x": "y"}, "seed": 0})


def test_torchs_own_layers_that_read_weights_are_refused(make_text_model):
    model = make_text_model()
    model.module.layers[0].attention = nn.TransformerEncoderLayer(8, 2, 16)
    with pytest.raises(ModelError, match="lies in torch's own TransformerEncoderLayer, which reads the layer's weight"):
        adapt(model, "adapter", targets=["linear1"])
    assert not any(isinstance(part, Bottleneck) for part in model.module.modules())


def test_not_around_the_output_layer():
    with pytest.raises(ModelError, match="got 'lm_head', the output layer, whose weight the loss reads"):
        adapt(tiny.model("llama", tie_word_embeddings=False), "adapter", targets=["lm_head"])
