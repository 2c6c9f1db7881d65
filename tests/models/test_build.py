from __future__ import annotations

import pytest
import torch

from frostline.data.preprocess import ImagePreprocess
from frostline.errors import ModelError
from frostline.models.build import IMAGE_OPTIONS, IMAGES, TEXT_OPTIONS, TEXTS, build, options_of, unread_options
from frostline.models.model import Card
from frostline.recipe import ModelRecipe
from tests.models import tiny

NET = {"outputs": 3, "width": 16, "depth": 2, "dropout": 0.0, "head": ["dense 8 relu"], "pool": None}


def _card(name: str, schema: object = tiny.IMAGES, **arguments: object) -> Card:
    return Card(name=name, arguments=arguments, schema=schema, preprocess=ImagePreprocess(size=32))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", IMAGES)
def test_every_image_network(name: str) -> None:
    arguments: dict[str, object] = {"outputs": 3, "head": ["dense 8 relu"], "pool": None, "size": 32, "channels": 3}
    if name in ("cnn", "mlp", "transformer"):
        arguments |= NET
    if name == "layers":
        arguments["specs"] = ["conv 4 3 relu", "pool 2"]
    if name.startswith("vgg"):
        arguments["width"] = 4
    assert build(_card(name, **arguments)).eval()(**tiny.image_inputs(32)).shape == (2, 3)


@pytest.mark.parametrize("name", TEXTS)
def test_every_text_network(name: str) -> None:
    arguments = {**NET, "vocabulary": 20} | ({"max_length": 8} if name == "transformer" else {})
    assert build(_card(name, tiny.TEXTS, **arguments)).eval()(**tiny.text_inputs()).shape == (2, 3)


def test_a_transformers_card() -> None:
    config = {**tiny.image_config("vit").to_dict(), "id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    arguments = {"config": config, "pool": None, "pooler": True}
    assert build(_card("transformers", head=[], **arguments)).eval()(**tiny.image_inputs(32)).logits.shape == (2, 3)
    assert build(_card("transformers", head=["dense 8"], **arguments)).eval()(**tiny.image_inputs(32)).shape == (2, 3)


def test_building_takes_no_memory_on_the_meta_device() -> None:
    with torch.device("meta"):
        network = build(_card("mlp", **{**NET, "width": 10**6}, size=32, channels=3))
    assert all(parameter.is_meta for parameter in network.parameters())


def test_refusals() -> None:
    with pytest.raises(ModelError, match=r"\('MyNet'\) .*fl.load\(RUN, module=MyNet\(\)\)"):
        build(_card("custom", **{"class": "MyNet"}))
    with pytest.raises(ModelError, match=r"model 'os.system' is unknown for 'image-classification', expected one of vgg11"):
        build(_card("os.system"))
    with pytest.raises(ModelError, match=r"model 'cnn' cannot be built from the arguments"):
        build(_card("cnn", **NET, size=32, channels=3, extra=1))
    with pytest.raises(ModelError, match=r"names code of its own"):
        build(_card("transformers", config={"model_type": "vit", "auto_map": {"AutoConfig": "x.Y"}}, head=[], pool=None, pooler=True))
    with pytest.raises(ModelError, match=r"model_type got 'evil'"):
        build(_card("transformers", config={"model_type": "evil"}, head=[], pool=None, pooler=True))


def test_the_table_of_options_holds_every_network_and_only_options() -> None:
    assert (set(IMAGE_OPTIONS), set(TEXT_OPTIONS)) == (set(IMAGES), set(TEXTS))
    known = set(ModelRecipe.__dataclass_fields__)
    assert all(set(options) <= known for table in (IMAGE_OPTIONS, TEXT_OPTIONS) for options in table.values())
    assert (options_of("custom", tiny.IMAGES), options_of("saved", tiny.TEXTS)) == ((), ("head", "pool"))


def test_unread_options_are_those_that_differ_from_their_default() -> None:
    assert unread_options(ModelRecipe(name="x"), (), "it") == []
    found = unread_options(ModelRecipe(name="x", width=8, depth=3, head=["dense 8"]), ("head", "width"), "it")
    assert found == ["model.depth got 3 with it, which takes only head, width. Remove model.depth"]
