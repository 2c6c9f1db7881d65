from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from frostline.data.dataset import Dataset, Schema
from frostline.data.report import DataReport
from frostline.errors import ModelError, RunError
from frostline.models import save
from frostline.models.build import options_of
from frostline.models.hf_module import quiet
from frostline.models.load import load
from frostline.models.model import Model, logits_of
from frostline.models.save import load_model, save_model
from tests.models import tiny

ZOO = ["cnn", "mlp", "transformer", "layers", "vgg11", "vgg11_bn", "efficientnet-lite0"]
HF_IMAGES = ["vit", "convnext", "resnet", "swin", "dinov2"]


def _texts() -> Dataset:
    import pyarrow as pa

    table = pa.table({"id": [str(i) for i in range(len(tiny.WORDS))], "text": tiny.WORDS, "label": [0] * len(tiny.WORDS)})
    return Dataset(schema=tiny.TEXTS, splits={"train": table}, report=DataReport(task=tiny.TEXTS.task, rows={}))


def _image_model(name: str) -> Model:
    options = {"layers": ["conv 4 3 relu", "pool 2", "flatten"]} if name == "layers" else {"head": ["dense 8 relu", "dropout 0.5"]}
    sized = {"width": 16} if "width" in options_of(name, tiny.IMAGES) else {}
    return load(name, task=tiny.IMAGES, size=32, **sized, **options)


def _same(first: Model, second: Model, inputs: dict[str, torch.Tensor]) -> bool:
    one, two = first.module.state_dict(), second.module.state_dict()
    with torch.no_grad():
        outputs = [logits_of(model.module.eval()(**inputs)) for model in (first, second)]
    return list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one) and torch.equal(*outputs)


@pytest.mark.parametrize("name", ZOO)
def test_image_networks_round_trip(name: str, tmp_path: Path) -> None:
    model, inputs = _image_model(name), tiny.image_inputs(32)
    model.module.train()(**inputs)  # batch norm's buffers move
    save_model(model, tmp_path / "运行" / "model", inputs)
    again = load(tmp_path / "运行")
    assert _same(model, again, inputs)
    assert (again.blocks, again.head, again.card) == (model.blocks, model.head, model.card)
    assert os.listdir(tmp_path / "运行") == ["model"]
    processor = json.loads((tmp_path / "运行" / "model" / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == list(model.card.preprocess.mean)


@pytest.mark.parametrize("name", ["lstm", "gru", "transformer", "cnn", "mlp"])
def test_text_networks_round_trip(name: str, tmp_path: Path) -> None:
    model = load(name, data=_texts(), width=16, tokenizer="char", pool="attention")
    save_model(model, tmp_path / "model", tiny.text_inputs())
    again = load(tmp_path)
    assert _same(model, again, tiny.text_inputs())
    assert again.card.schema.labels == ("好评", "差评")
    for text in ("这部电影 好看", "龘 Good"):
        assert again.card.preprocess.tokenizer(text)["input_ids"] == model.card.preprocess.tokenizer(text)["input_ids"]


@pytest.mark.parametrize("kind", HF_IMAGES)
@pytest.mark.parametrize("head", [[], ["dense 8 relu"]])
def test_hf_images_round_trip(kind: str, head: list[str], tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = load(tiny.image_folder(kind, tmp_path / "hf"), task=tiny.IMAGES, head=head)
    inputs = tiny.image_inputs(model.card.preprocess.size)
    save_model(model, tmp_path / "model", inputs)
    assert _same(model, load(tmp_path / "model"), inputs)
    if not head:
        with quiet():
            theirs = AutoModelForImageClassification.from_pretrained(tmp_path / "model").eval()
            processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
        with torch.no_grad():
            assert torch.equal(theirs(**inputs).logits, model.module(**inputs).logits)
        assert theirs.config.id2label == {0: "猫", 1: "狗", 2: "bird"}
        assert list(processor.image_mean) == list(model.card.preprocess.mean)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("pool", [None, "mean"])
def test_hf_texts_round_trip(kind: str, pool: str | None, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = load(tiny.text_folder(kind, tmp_path / "hf"), task=tiny.TEXTS, pool=pool)
    save_model(model, tmp_path / "model", tiny.text_inputs())
    assert _same(model, load(tmp_path / "model"), tiny.text_inputs())
    if pool is None:
        with quiet():
            theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
            tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
        assert torch.equal(theirs(**tiny.text_inputs()).logits, model.module(**tiny.text_inputs()).logits)
        assert tokenizer("这部 good")["input_ids"] == model.card.preprocess.tokenizer("这部 good")["input_ids"]


def test_saving_again_replaces_and_keeps_modes(tmp_path: Path) -> None:
    model = _image_model("cnn")
    save_model(model, tmp_path / "model")
    with torch.no_grad():
        next(model.module.parameters()).add_(1)
    model.module.train()
    model.module.get_submodule("head").eval()
    save_model(model, tmp_path / "model", tiny.image_inputs(32))
    assert model.module.training
    assert not model.module.get_submodule("head").training
    assert _same(model, load(tmp_path), tiny.image_inputs(32))
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_a_writer_that_drops_a_tensor_fails_the_save(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _image_model("cnn") if name == "cnn" else load(tiny.image_folder("vit", tmp_path / "hf"), task=tiny.IMAGES)
    save_model(model, tmp_path / "run" / "model")
    before = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    honest, dropped = save._write_tensors, []

    def careless(model: Model, folder: Path) -> None:
        honest(model, folder)
        state = load_file(folder / "model.safetensors")
        dropped.append(next(key for key in state if "norm" not in key and key.endswith("weight")))
        del state[dropped[0]]
        save_file(state, folder / "model.safetensors")

    monkeypatch.setattr(save, "_write_tensors", careless)
    with pytest.raises(RunError, match=r"was not written, because what was saved does not read back"):
        save_model(model, tmp_path / "run" / "model")
    assert os.listdir(tmp_path / "run") == ["model"]
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == before


def test_a_writer_that_changes_a_bit_fails_the_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = save._write_tensors

    def careless(model: Model, folder: Path) -> None:
        honest(model, folder)
        _flip(folder / "model.safetensors")

    monkeypatch.setattr(save, "_write_tensors", careless)
    with pytest.raises(RunError, match=r"tensor '[\w.]+' is not the same after reading"):
        save_model(_image_model("mlp"), tmp_path / "model")
    assert os.listdir(tmp_path) == []


def test_outputs_that_differ_fail_the_save(tmp_path: Path) -> None:
    class Odd(nn.Module):
        """Its outputs depend on something that no tensor holds."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3 * 32 * 32, 3)
            self.calls = 0

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.layer(pixel_values.flatten(1)) + self.calls

        def __deepcopy__(self, memo: object) -> Odd:
            return Odd()

    model = load(Odd(), task=tiny.IMAGES, size=32)
    with pytest.raises(RunError, match=r"outputs on the 2 rows of the check are not the same"):
        save_model(model, tmp_path / "model", tiny.image_inputs(32))
    assert os.listdir(tmp_path) == []


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def test_one_flipped_bit_is_found(tmp_path: Path) -> None:
    save_model(_image_model("mlp"), tmp_path / "model")
    _flip(tmp_path / "model" / "model.safetensors")
    with pytest.raises(ModelError, match=r"tensor '[\w.]+' is not the one in manifest.json"):
        load(tmp_path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    save_model(_image_model("mlp"), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"truncated"):
        load(tmp_path)


def test_another_models_tensors_are_refused(tmp_path: Path) -> None:
    save_model(_image_model("mlp"), tmp_path / "a")
    save_model(_image_model("cnn"), tmp_path / "b")
    for file in ("model.safetensors", "manifest.json"):
        shutil.copy(tmp_path / "b" / file, tmp_path / "a" / file)
    with pytest.raises(ModelError, match=r"describes a network of|in the network"):
        load(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").write_text('{"tensors": 3}')
    with pytest.raises(ModelError, match=r"manifest.json' is damaged"):
        load(tmp_path / "a")


def _edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        config["frostline"][key] = value
    (folder / "config.json").write_text(json.dumps(config))


def test_a_hostile_card(tmp_path: Path) -> None:
    model = _image_model("mlp")
    folder = tmp_path / "model"
    save_model(model, folder)
    original = (folder / "config.json").read_text()
    arguments = json.loads(original)["frostline"]["arguments"]
    cases = {
        r"model 'os.system' is unknown": {"name": "os.system"},
        r"frostline.name got '3', expected str": {"name": 3},
        r"unknown key 'run', expected name": {"run": "rm"},
        r"frostline.schema.task got 'x', expected one of image-classification": {
            "schema": {"task": "x", "target": "class", "labels": ["a"]}
        },
        r"labels got .* expected different names": {"schema": {"task": "image-classification", "target": "class", "labels": ["a", "a"]}},
        r"names the module 'nothing'": {"head": ["nothing"]},
        r"describes a network of \d+ numbers, model.safetensors holds": {"arguments": {**arguments, "width": 10**7}},
        r"depth got 1000000000, but the file holds \d tensors": {"arguments": {**arguments, "depth": 10**9}},
        r"got size 10000000": {"preprocess": {**model.card.preprocess.to_dict(), "size": 10**7}},
        r"preprocess.interpolation got 'x'": {"preprocess": {**model.card.preprocess.to_dict(), "interpolation": "x"}},
    }
    for message, changes in cases.items():
        (folder / "config.json").write_text(original)
        _edit(folder, **changes)
        with pytest.raises(ModelError, match=message):
            load(folder)


def test_tied_weights_and_buffers(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3 * 32 * 32, 3)
            self.second = nn.Linear(3 * 32 * 32, 3)
            self.second.weight = self.first.weight
            self.register_buffer("seen", torch.tensor(float("nan")))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(x.flatten(1)) + self.second(x.flatten(1))

    model = load(Tied(), task=tiny.IMAGES, size=32)
    save_model(model, tmp_path / "model", tiny.image_inputs(32))
    with pytest.raises(ModelError, match=r"'.*Tied'.*fl.load\(RUN, module=MyNet\(\)\)"):
        load(tmp_path)
    again = load(tmp_path, module=Tied())
    module = again.module.get_submodule("module")
    assert module.first.weight is module.second.weight
    assert torch.equal(again.module(**tiny.image_inputs(32)), model.module.eval()(**tiny.image_inputs(32)))
    with pytest.raises(ModelError, match=r"'module.1.weight' is nothing in the file and \(3, 3072\) torch.float32 in the network"):
        load(tmp_path, module=nn.Sequential(nn.Flatten(), nn.Linear(3072, 3)))


def test_channels_last_is_kept(tmp_path: Path) -> None:
    model = _image_model("cnn")
    model.module.to(memory_format=torch.channels_last)
    save_model(model, tmp_path / "model", tiny.image_inputs(32))
    kernels = [parameter for parameter in load(tmp_path).module.parameters() if parameter.dim() == 4]
    assert kernels[-1].is_contiguous(memory_format=torch.channels_last)


def test_adapters_come_back_through_the_given_function(tmp_path: Path) -> None:
    def rebuild(module: nn.Module, settings: dict[str, object]) -> nn.Module:
        module.get_submodule("head").register_parameter("lora_A", nn.Parameter(torch.full((int(settings["rank"]), 2), 3.0)))  # type: ignore[call-overload]
        return module

    model = _image_model("cnn")
    model.card.arguments["adapt"] = {"rank": 4}
    rebuild(model.module, {"rank": 4})
    save_model(model, tmp_path / "a", tiny.image_inputs(32))
    save_model(model, tmp_path / "b", tiny.image_inputs(32), rebuild)
    for name in ("a", "b"):
        assert _same(load_model(tmp_path / name, rebuild=rebuild), model, tiny.image_inputs(32))
    with pytest.raises(ModelError, match=r"holds adapters \{'rank': 4\}, which need frostline.adapt"):
        load_model(tmp_path / "a")


def test_an_adapted_hf_model(tmp_path: Path) -> None:
    def rebuild(module: nn.Module, settings: dict[str, object]) -> nn.Module:
        module.register_parameter("lora_A", nn.Parameter(torch.ones(2)))
        return module

    model = load(tiny.image_folder("vit", tmp_path / "hf"), task=tiny.IMAGES)
    model.card.arguments["adapt"] = {"rank": 4}
    rebuild(model.module, {})
    save_model(model, tmp_path / "model", tiny.image_inputs(32), rebuild)
    assert _same(load_model(tmp_path / "model", rebuild=rebuild), model, tiny.image_inputs(32))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"could not be written: .* choose another folder with --out"):
        save_model(_image_model("mlp"), tmp_path / "file" / "model")


def test_no_saved_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no saved model, expected config.json and manifest.json"):
        load_model(tmp_path)


def test_an_argument_that_is_no_json(tmp_path: Path) -> None:
    model = _image_model("mlp")
    model.card.arguments["callback"] = print
    with pytest.raises(RunError, match=r"holds a value that is not plain JSON"):
        save_model(model, tmp_path / "model")
    assert os.listdir(tmp_path) == []


def test_numbers_and_several_labels(tmp_path: Path) -> None:
    for target, labels, outputs in (("number", (), 1), ("multi-label", ("a", "b"), 2)):
        schema = Schema(task="image-classification", target=target, labels=labels)  # type: ignore[arg-type]
        folder = tmp_path / target
        save_model(load(tiny.image_folder("vit", folder / "hf"), task=schema), folder / "model", tiny.image_inputs(32))
        assert logits_of(load(folder).module(**tiny.image_inputs(32))).shape == (2, outputs)
        assert load(folder).card.schema == schema


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kernel", [1, 8])
def test_the_layout_is_known_by_its_strides(channels: int, kernel: int) -> None:
    """A weight of one channel or of 1 x 1 is contiguous in both layouts."""
    module = nn.Sequential(nn.Conv2d(channels, 4, kernel), nn.Linear(4, 2))
    assert not save._is_channels_last(module)
    moved = (channels, kernel) != (1, 1)
    assert save._is_channels_last(module.to(memory_format=torch.channels_last)) == moved
    assert not save._is_channels_last(module.to(memory_format=torch.contiguous_format))


def test_no_weight_is_drawn_for_a_network_that_is_read(tmp_path: Path) -> None:
    model, inputs = _image_model("cnn"), tiny.image_inputs(32)
    save_model(model, tmp_path / "model", inputs)
    before = torch.random.get_rng_state()
    assert _same(model, load_model(tmp_path / "model"), inputs)
    assert torch.equal(torch.random.get_rng_state(), before)
