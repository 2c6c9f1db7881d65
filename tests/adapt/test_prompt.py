from __future__ import annotations

import pytest
import torch

from frostline.adapt.apply import adapt
from frostline.adapt.prompt import inject
from frostline.adapt.virtual import find
from frostline.errors import ModelError
from tests.adapt import tiny


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_they_are_vectors_before_the_texts(kind):
    model = tiny.stir(adapt(tiny.model(kind), "prompt", tokens=3))
    prompt = find(model.module)[0].embedding.weight.detach()
    plain, given = tiny.network(kind), tiny.inputs(kind)
    if kind == "bert":
        plain.classifier = model.module.classifier  # the head learns too
    vectors = plain.get_input_embeddings()(given.pop("input_ids"))
    given["inputs_embeds"] = torch.cat([prompt.expand(2, -1, -1), vectors], dim=1)
    given["attention_mask"] = torch.cat([torch.ones(2, 3, dtype=torch.int64), given["attention_mask"]], dim=1)
    with torch.no_grad():
        expected = plain(**given).logits
    found = tiny.outputs(model, kind)
    torch.testing.assert_close(found, expected[:, 3:] if kind in ("llama", "gpt2") else expected)


def test_they_begin_as_words_of_the_vocabulary():
    model = adapt(tiny.model("llama"), "prompt", tokens=4)
    table = model.module.model.embed_tokens.weight
    assert all((row == table).all(1).any() for row in find(model.module)[0].embedding.weight)
    names = {name for name, _ in model.module.named_parameters()}
    assert names - {"model.virtual_tokens.embedding.weight"} == {name for name, _ in tiny.network("llama").named_parameters()}


def test_p_tunings_network_makes_them():
    model = adapt(tiny.model("llama"), "p-tuning", tokens=4, encoder_width=7)
    made = find(model.module)[0]
    assert made.mlp[0].weight.shape == (7, 16) and made.values().shape == (4, 16)
    assert find(adapt(tiny.model("llama"), "p-tuning").module)[0].mlp[0].weight.shape == (16, 16)


@pytest.mark.parametrize("method", ["prompt", "prefix"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "bart"])
def test_writing_with_a_cache_gives_what_whole_passes_give(kind, method):
    model = tiny.stir(adapt(tiny.model(kind), method, tokens=3), spread=1.0)
    module, ids = model.module.eval(), tiny.IDS[:, :4]
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 3, "eos_token_id": None, "attention_mask": torch.ones_like(ids)}
    cached = module.generate(ids, use_cache=True, **options)
    assert torch.equal(cached, module.generate(ids, use_cache=False, **options)) and cached.shape[1] >= 5


def test_left_padding_changes_nothing():
    model = tiny.stir(adapt(tiny.model("llama"), "prompt", tokens=3))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    ids = torch.tensor([[3, 3, 8, 21, 6, 30]])
    with torch.no_grad():
        padded = model.module.eval()(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, 2:]
        torch.testing.assert_close(padded, model.module(input_ids=ids[:, 2:]).logits, rtol=1e-4, atol=1e-5)


def test_refusals(make_text_model):
    with pytest.raises(ModelError, match="a network of transformers that takes vectors for ids, and 'TextNet' does not"):
        adapt(make_text_model(), "prompt")
    for tokens in (0, -1, 5000):
        with pytest.raises(ModelError, match=rf"adapt\.tokens: got {tokens}, expected a whole number from 1 to 4096"):
            adapt(tiny.model("llama"), "prompt", tokens=tokens)
    with pytest.raises(ModelError, match=r"got 20, and texts have up to 60 tokens, but 'bert' has 64 positions. Use: data.max_length=44"):
        adapt(tiny.model("bert", max_length=60), "prompt")
    with pytest.raises(ModelError, match="holds 'prompt' with tokens 20"):
        adapt(adapt(tiny.model("llama"), "prompt"), "prompt", tokens=5)
    with pytest.raises(ModelError, match=r"got a mask of the kind .* Use: plan\.pack=off"):
        adapt(tiny.model("llama"), "prompt").module(input_ids=tiny.IDS, attention_mask=torch.ones(2, 1, 6, 6))


@pytest.mark.parametrize(
    "changes", [{"tokens": 10**9}, {"hidden": -1}, {"hidden": 10**9}, {"seed": None}, {"body": 3}, {"body": "no.such"}, {"body": "lm_head"}]
)
def test_settings_of_files(changes):
    with pytest.raises(ModelError, match="adapt"):
        inject(tiny.network("llama"), {"method": "prompt", "tokens": 3, "hidden": 0, "seed": 0, "body": "model", **changes})
