from __future__ import annotations

import pytest

from frostline.adapt.apply import adapt
from frostline.adapt.virtual import body_of, find, learning_names, place_of, seen_tokens
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
