from __future__ import annotations

import pytest
import torch

from frostline.adapt.adapters import adapters_off
from frostline.adapt.apply import adapt
from frostline.adapt.virtual import body_of, find, learning_names, place_of, read_settings, seen_tokens, take_out
from frostline.errors import ModelError
from tests.adapt import tiny


@pytest.mark.parametrize(
    ("kind", "body", "sizes"),
    [
        ("bert", "bert", (16, 2, 2, 8)),
        ("llama", "model", (16, 2, 1, 8)),
        ("gpt2", "transformer", (16, 2, 2, 8)),
        ("t5", "", (16, 2, 2, 8)),
        ("bart", "model", (16, 2, 2, 8)),
    ],
)
def test_places(kind, body, sizes):
    model = tiny.model(kind)
    assert body_of(model) == body
    place = place_of(model.module, body)
    assert (place.width, place.layers, place.heads, place.head_width) == sizes
    assert place.two_parts == (kind in ("t5", "bart"))


def test_names_and_what_learns():
    model = adapt(tiny.model("bart"), "prompt")
    assert learning_names(model.module) == ["model.encoder.virtual_tokens.embedding.weight"] and len(find(model.module)) == 1


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_rows_are_not_computed_without_padding(method):
    from frostline.kernels.unpad import can_unpad

    assert can_unpad(tiny.model("llama")) is None
    assert can_unpad(adapt(tiny.model("llama"), method)) == "virtual tokens stand before every row"


def test_caches():
    from transformers import DynamicCache

    assert seen_tokens(None) == seen_tokens(DynamicCache()) == 0


def test_no_such_body():
    with pytest.raises(ModelError, match="the network has no body 'x'"):
        place_of(tiny.network("llama"), "x")


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_robertas_room_begins_behind_its_padding_index(method):
    import transformers as hf

    config = hf.RobertaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=40,
        pad_token_id=1, num_labels=3,
    )  # fmt: skip
    for tokens, fits in ((18, True), (19, False)):  # 40 rows, of which 0 and 1 are no positions: 38, and texts of 20
        model = tiny.model("bert")
        model.module, model.head = hf.RobertaForSequenceClassification(config).eval(), ["classifier"]
        if not fits:
            with pytest.raises(
                ModelError, match=r"got 19, and texts have up to 20 tokens, but 'bert' has 38 positions.*data.max_length=19"
            ):
                adapt(model, method, tokens=tokens)
            continue
        adapt(model, method, tokens=tokens)
        rows = torch.randint(4, 50, (2, 20))
        assert model.module(input_ids=rows, attention_mask=torch.ones_like(rows)).logits.isfinite().all()


def test_taken_out_nothing_is_left():
    for kind, method in (("bart", "prompt"), ("llama", "prefix"), ("bert", "p-tuning")):
        model = tiny.stir(adapt(tiny.model(kind), method, tokens=3))
        model.module.load_state_dict(tiny.network(kind).state_dict(), strict=False)
        assert not torch.equal(tiny.outputs(model, kind), tiny.outputs(tiny.model(kind), kind))
        take_out(model.module)
        assert torch.equal(tiny.outputs(model, kind), tiny.outputs(tiny.model(kind), kind)) and not find(model.module)
        assert list(model.module.state_dict()) == list(tiny.network(kind).state_dict())


@pytest.mark.parametrize(
    "changes", [{"tokens": 0}, {"tokens": True}, {"hidden": -1}, {"hidden": 1e9}, {"seed": None}, {"body": 3}, {"tokens": 10**9}]
)
def test_settings_of_files_are_checked(changes):
    good = {"method": "prefix", "tokens": 3, "hidden": 0, "seed": 1, "body": "model"}
    assert read_settings(good) == (3, 0, 1, "model")
    with pytest.raises(ModelError, match="adapt"):
        read_settings({**good, **changes})


def test_positions_taken():
    model = adapt(tiny.model("gpt2"), "prompt", tokens=3)
    (tokens,) = find(model.module)
    assert tokens.positions_taken == 3
    with adapters_off(model.module):
        assert tokens.positions_taken == 0
