from __future__ import annotations

import pytest
import torch

from frostline.adapt.apply import adapt
from frostline.adapt.prefix import inject
from frostline.adapt.virtual import find
from frostline.errors import ModelError
from tests.adapt import tiny


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_they_are_keys_and_values_of_every_layer(kind):
    from transformers import DynamicCache

    model = tiny.stir(adapt(tiny.model(kind), "prefix", tokens=3), spread=2.0)
    plain, given = tiny.model(kind), tiny.inputs(kind)
    heads = 1 if kind == "llama" else 2
    table = find(model.module)[0].embedding.weight.detach().reshape(3, 4, heads, 8).permute(1, 2, 0, 3)
    cache = DynamicCache()
    for layer in range(2):
        cache.update(table[2 * layer].expand(2, -1, -1, -1), table[2 * layer + 1].expand(2, -1, -1, -1), layer)
    given["attention_mask"] = torch.cat([torch.ones(2, 3, dtype=torch.int64), given["attention_mask"]], dim=1)
    body = {"bert": "bert", "llama": "model", "gpt2": "transformer"}[kind]
    with torch.no_grad():
        expected = plain.module.get_submodule(body)(**given, past_key_values=cache)[0]
        found = model.module.eval().get_submodule(body)(**tiny.inputs(kind))[0]
        without = plain.module.get_submodule(body)(**tiny.inputs(kind))[0]
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, without, atol=1e-3)


def test_a_network_makes_them_where_it_is_asked_for():
    made = find(adapt(tiny.model("llama"), "prefix", tokens=5, encoder_width=7).module)[0]
    assert made.embedding.weight.shape == (5, 16) and made.mlp[2].weight.shape == (2 * 2 * 8, 7)
    assert made.values().shape == (5, 32)


def test_in_an_encoder_decoder_they_stand_in_the_decoder_alone():
    model = tiny.stir(adapt(tiny.model("bart"), "prefix", tokens=3), spread=2.0)
    plain = tiny.network("bart")
    with torch.no_grad():
        ours, theirs = (part.get_encoder()(input_ids=tiny.IDS, attention_mask=tiny.MASK)[0] for part in (model.module.eval(), plain))
    assert torch.equal(ours, theirs) and not torch.allclose(tiny.outputs(model, "bart"), tiny.outputs(plain, "bart"), atol=1e-3)


def test_refusals(make_text_model):
    with pytest.raises(ModelError, match="'TextNet' does not"):
        adapt(make_text_model(), "prefix")
    with pytest.raises(ModelError, match="expected the settings of virtual tokens"):
        inject(tiny.network("llama"), {"tokens": 3, "hidden": 10**9, "seed": 0, "body": "model"})


def test_a_network_that_takes_no_cache_is_refused():
    import transformers

    model = tiny.model("bert")
    config = transformers.DistilBertConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=64)
    model.module = transformers.DistilBertForSequenceClassification(config)
    with pytest.raises(ModelError, match="a 'distilbert' takes no cached keys and values"):
        adapt(model, "prefix")
