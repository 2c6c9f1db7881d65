"""Hostile weight files, model folders and recipes: refused with a reason, nothing executed, nothing written, memory flat."""

from __future__ import annotations

import io
import json
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from frostline.data.dataset import Schema
from frostline.models.weights import SUFFIXES, read_keras_h5, read_weights
from frostline.recipe import Recipe

TERABYTES = 1 << 42
WRAPPINGS = ("protocol 0", "protocol 2", "protocol 4", "protocol 5", "zip", "legacy")
SCHEMA = Schema(task="text-classification", labels=("neg", "pos"))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# -- Weight files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("suffix", [*SUFFIXES, ".ckpt", ".pkl", ".npy", ".gguf", ""])
def test_pickle_bombs_under_every_name(trap: Any, suffix: str, wrapping: str) -> None:
    content = trap.pickles()[wrapping]
    assert content[:2] == b"PK" or any(opcode.name == "REDUCE" for opcode, _, _ in pickletools.genops(content)) or wrapping == "legacy"
    message = trap.refused(read_weights, write(trap.folder / f"model{suffix}", content))
    assert f"model{suffix}" in message


def test_the_bomb_is_live(trap: Any) -> None:
    """The corpus would do harm to a reader that trusts it."""
    for wrapping, content in trap.pickles().items():
        torch.load(io.BytesIO(content), weights_only=False) if wrapping in ("zip", "legacy") else __import__("pickle").loads(content)
        assert trap.canary.is_dir(), wrapping
        trap.canary.rmdir()


def safetensors_file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


SAFETENSORS = {
    "a header of terabytes": safetensors_file(b"{}", length=TERABYTES),
    "a header that ends beyond 64 bits": safetensors_file(b"{}", length=2**64 - 1),
    "a tensor of terabytes": safetensors_file({"a": entry([TERABYTES], 0, TERABYTES * 4)}),
    "a shape larger than its bytes": safetensors_file({"a": entry([TERABYTES], 0, 8)}, bytes(8)),
    "a shape that overflows to nothing": safetensors_file({"a": entry([2**32, 2**32], 0, 0)}),
    "a negative shape": safetensors_file({"a": entry([-1], 0, 4)}, bytes(4)),
    "offsets that run backwards": safetensors_file({"a": entry([1], 8, 4)}, bytes(8)),
    "tensors that overlap": safetensors_file({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, bytes(8)),
    "data beyond the tensors": safetensors_file({"a": entry([1], 0, 4)}, bytes(400)),
    "a list for a header": safetensors_file([]),
    "a deep header": safetensors_file(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "an endless shape": safetensors_file({"a": entry([2] * 100_000, 0, 4)}, bytes(4)),
    "no bytes": b"",
}


@pytest.mark.parametrize("content", SAFETENSORS.values(), ids=SAFETENSORS)
def test_safetensors_that_lie(trap: Any, content: bytes) -> None:
    assert "model.safetensors" in trap.refused(read_weights, write(trap.folder / "model.safetensors", content))


@pytest.mark.parametrize("name", ["../../outside/x", "/etc/passwd", "a\0b", "C:\\x", ".", "名字/../../x"])
def test_a_tensor_name_is_only_a_name(trap: Any, name: str) -> None:
    path = trap.folder / "model.safetensors"
    safetensors.torch.save_file({name: torch.ones(2)}, path)
    assert list(trap.spring(read_weights, path)) == [name]


def test_a_zip_bomb_is_not_unpacked(trap: Any) -> None:
    path = trap.folder / "model.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("model/data.pkl", "w", force_zip64=True) as file:
        for _ in range(300):
            file.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    assert "zip bomb" in trap.refused(read_weights, path)


def h5(trap: Any) -> tuple[Any, Path]:
    return pytest.importorskip("h5py"), trap.folder / "weights.h5"


def keras_layer(file: Any, name: str = "block1_conv1") -> Any:
    file.attrs["layer_names"] = [name.encode()]
    group = file.create_group(name)
    group.attrs["weight_names"] = [b"kernel"]
    return group


@pytest.mark.parametrize("kind", ["external link", "soft link", "external storage", "virtual", "terabytes", "packed", "outside name"])
def test_hdf5_that_leads_elsewhere(trap: Any, kind: str) -> None:
    h5py, path = h5(trap)
    secret = trap.folder / "secret.h5"  # what the links lead to does exist, so only a check stops the reader
    with h5py.File(secret, "w") as file:
        file["kernel"] = np.ones(4, np.float32)
    with h5py.File(path, "w") as file:
        group = keras_layer(file)
        if kind == "external link":
            group["kernel"] = h5py.ExternalLink(str(secret), "/kernel")
        elif kind == "soft link":
            file["elsewhere"] = np.ones(4, np.float32)
            group["kernel"] = h5py.SoftLink("/elsewhere")
        elif kind == "external storage":
            group.create_dataset("kernel", (1,), "f4", external=[(str(trap.outside / "secret.txt"), 0, 4)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
            layout[:] = h5py.VirtualSource(str(secret), "kernel", shape=(4,))
            group.create_virtual_dataset("kernel", layout)
        elif kind == "terabytes":
            group.create_dataset("kernel", (TERABYTES,), "f4", chunks=(1024,))
        elif kind == "packed":
            group.create_dataset("kernel", (60_000_000,), "f4", chunks=(1_000_000,), compression="gzip", fillvalue=1.0)
        else:
            group.attrs["weight_names"] = [b"../../elsewhere"]
    assert "weights.h5" in trap.refused(read_keras_h5, path)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_pickle_for_an_hdf5_file(trap: Any, wrapping: str) -> None:
    trap.refused(read_keras_h5, write(trap.folder / "weights.h5", trap.pickles()[wrapping]))


# -- Model folders ----------------------------------------------------------------------------------------------------

CODE = "import os\nos.mkdir({canary!r})\nclass Evil: pass\nEvilConfig = EvilModel = EvilTokenizer = Evil\n"


@pytest.fixture
def model_folder(trap: Any) -> Path:
    """A tiny BERT as an HF folder, with code beside it that makes the canary when it is imported."""
    from tokenizers import Tokenizer, models
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    config = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    folder = trap.folder / "model"
    BertForSequenceClassification(config).save_pretrained(folder)
    words = {"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, "[UNK]")), pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    (folder / "evil.py").write_text(CODE.format(canary=str(trap.canary)), encoding="utf-8")
    return folder


def edit(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**content, **values}), encoding="utf-8")


def load_folder(folder: Path) -> Any:
    from frostline.models.huggingface import from_folder_or_hub

    return from_folder_or_hub(str(folder), SCHEMA)


AUTO_MAP = {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel", "AutoModelForSequenceClassification": "evil.EvilModel"}


def test_the_folder_is_good_before_it_is_spoilt(trap: Any, model_folder: Path) -> None:
    assert load_folder(model_folder).card.name == "transformers"
    trap.check()


def test_code_beside_a_known_architecture_is_not_run(trap: Any, model_folder: Path) -> None:
    edit(model_folder / "config.json", auto_map=AUTO_MAP)
    model = trap.spring(load_folder, model_folder)
    assert type(model.module).__module__.startswith(("transformers.", "frostline."))


def test_an_architecture_that_only_the_code_beside_knows_is_refused(trap: Any, model_folder: Path) -> None:
    edit(model_folder / "config.json", auto_map=AUTO_MAP, model_type="evil", architectures=["EvilModel"])
    assert "evil" in trap.refused(load_folder, model_folder)


def test_a_tokenizer_of_its_own_is_not_run(trap: Any, model_folder: Path) -> None:
    edit(model_folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]})
    edit(model_folder / "tokenizer_config.json", tokenizer_class="EvilTokenizer")
    trap.spring(load_folder, model_folder)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_in_a_model_folder(trap: Any, model_folder: Path, name: str, wrapping: str) -> None:
    (model_folder / "model.safetensors").unlink()
    write(model_folder / name, trap.pickles()[wrapping])
    assert name in trap.refused(load_folder, model_folder)


@pytest.mark.parametrize("shard", ["../../outside/x.safetensors", "/etc/x.safetensors", "a\0.safetensors", "..", 7, ["x"]])
def test_shards_lie_beside_their_index(trap: Any, model_folder: Path, shard: Any) -> None:
    (model_folder / "model.safetensors").rename(trap.folder / "x.safetensors")
    edit(model_folder / "model.safetensors.index.json", weight_map={"a": shard})
    trap.refused(load_folder, model_folder)


@pytest.mark.parametrize(
    "values", [{"hidden_size": 1 << 20}, {"vocab_size": 1 << 30}, {"num_hidden_layers": 1 << 40}, {"hidden_size": "x"}, {"hidden_size": -8}]
)
def test_a_configuration_that_claims_too_much(trap: Any, model_folder: Path, values: dict[str, Any]) -> None:
    edit(model_folder / "config.json", **values)
    trap.refused(load_folder, model_folder)


# -- Recipes ----------------------------------------------------------------------------------------------------------

RECIPES = {
    "an object that is called": "data: !!python/object/apply:os.mkdir [{canary}]\n",
    "an object in place of text": "data:\n  path: !!python/object/apply:os.mkdir [{canary}]\n",
    "a name": "train:\n  lr: !!python/name:os.mkdir\n",
    "a name in place of text": "data:\n  path: !!python/name:os.mkdir x\n",
    "a new object": "model: !!python/object/new:os.mkdir\n  args: [{canary}]\n",
    "aliases that multiply": "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)),
    "an alias of itself": "model:\n  layers: &a [*a]\n",
    "depth": "model:\n  layers: " + "[" * 50_000 + "]" * 50_000 + "\n",
    "a key that is a mapping": "? {{a: b}}\n: c\n",
    "a pickle": "\x80\x04\x95",
}


@pytest.mark.parametrize("text", RECIPES.values(), ids=RECIPES)
def test_recipes_that_are_not_plain(trap: Any, text: str) -> None:
    path = trap.folder / "recipe.yaml"
    path.write_text(text.replace("{canary}", str(trap.canary)).replace("{{", "{").replace("}}", "}"), encoding="utf-8")
    assert "recipe.yaml" in trap.refused(Recipe.from_yaml, path)


@pytest.mark.parametrize("value", ["!!python/object/apply:os.mkdir [x]", "&a [*a]", "[" * 50_000])
def test_overrides_that_are_not_plain(trap: Any, value: str) -> None:
    trap.spring(Recipe().with_values, {"model.layers": value})
    from frostline.recipe_reader import resolve

    trap.spring(resolve, None, [f"model.layers={value}"])
