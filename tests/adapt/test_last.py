from __future__ import annotations

import pytest

from frostline.adapt.apply import adapt
from frostline.errors import ModelError


def learning_parts(model, depth: int) -> set[str]:
    return {".".join(name.split(".")[:depth]) for name, p in model.module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_the_last_blocks_what_follows_them_and_the_head_learn(make_model, blocks):
    model = adapt(make_model(), f"last {blocks}")
    whole = {name for name in learning_parts(model, 2) if name in model.blocks}
    assert whole == set(model.blocks[-blocks:])
    rest = {name for name in learning_parts(model, 1) if name not in ("blocks", "layers")}
    assert rest == ({"norm", "head"} if model.card.name == "convnet" else {"final_norm", "classifier"})


def test_an_embedding_is_frozen_wherever_it_is_registered(make_text_model):
    model = adapt(make_text_model(), "last 1")
    assert not model.module.positions.weight.requires_grad and not model.module.embedding.weight.requires_grad


def test_a_block_without_parameters_counts_as_a_block(make_image_model):
    model = make_image_model()
    model.blocks = ["stem", "blocks", "norm", "head.0"]
    adapt(model, "last 2")
    assert learning_parts(model, 1) == {"norm", "head"}


@pytest.mark.parametrize(
    ("blocks", "fix"),
    [(4, "expected 1 to 3. Use: adapt='last 3' or adapt=full"), (0, "expected 1 to 3. Use: adapt=head"), (-1, "adapt=head")],
)
def test_more_blocks_than_there_are(make_text_model, blocks, fix):
    with pytest.raises(ModelError) as refusal:
        adapt(make_text_model(), "last", last=blocks)
    assert f"got 'last {blocks}', but the model 'textnet' has 3 blocks (layers.0 to layers.2)" in str(refusal.value)
    assert fix in str(refusal.value)


def test_no_blocks_known(make_text_model):
    model = make_text_model()
    model.blocks = []
    with pytest.raises(ModelError, match="got 'last 2', but no blocks are known of the model 'textnet'"):
        adapt(model, "last 2")
