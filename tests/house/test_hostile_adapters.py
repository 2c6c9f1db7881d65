"""Damaged and hostile adapter folders and cards: each value of each file replaced in turn. Nothing but the house's errors comes out.

What loads all the same has to compute something; what is refused leaves the model as it was.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import frostline as fl
from frostline.adapt.adapters import add_adapter, use_adapters
from frostline.adapt.apply import adapt
from frostline.adapt.peft_files import load_adapter, save_adapter
from frostline.adapt.rebuild import rebuild
from frostline.errors import FrostlineError, ModelError
from frostline.models.model import logits_of
from frostline.models.save import save_model
from tests.adapt import tiny
from tests.models import tiny as images

STRANGE = [
    None, True, -1, 1.5, 10**30, 10**400, float("nan"), float("inf"), "", "../../x", [], [[]], ["x"], {}, {"a": []}, {"(a+)+$": 1},
]  # fmt: skip
"""What may stand where something else is expected."""
DEEPER = [None, -1, 10**400, "x", [[]], {"a": []}]
"""The same, of values inside others."""
METHODS = {"lora": {"dora": True, "rank_pattern": {"q_proj": 3}}, "vera": {}, "ia3": {}, "prompt": {"tokens": 3}, "prefix": {"tokens": 3}}


def changes(value: Any, path: tuple[Any, ...] = (), every: list[Any] = STRANGE) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(where, what instead) for everything in a JSON value, and for its absence (...)."""
    keys = list(value) if isinstance(value, dict) else list(range(min(len(value), 2))) if isinstance(value, list) else []
    for key in keys:
        yield (*path, key), ...
        for strange in every:
            yield (*path, key), strange
        yield from changes(value[key], (*path, key), DEEPER)


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    made = copy.deepcopy(value)
    part = made
    for key in path[:-1]:
        part = part[key]
    if new is ...:
        del part[path[-1]]
    else:
        part[path[-1]] = new
    return made


def written(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")


class Target:
    """A model that adapters are loaded onto; a new one after each that went in."""

    def __init__(self, kind: str = "llama") -> None:
        self.kind, self.plain = kind, tiny.model(kind)
        self.names, self.answer = list(self.plain.module.state_dict()), tiny.outputs(self.plain, kind)
        self.model = copy.deepcopy(self.plain)

    def refuses(self, folder: Path, what: Any) -> bool:
        """Whether the folder's adapter is refused, with the model left as it was."""
        try:
            load_adapter(self.model, folder)
        except FrostlineError:
            assert "adapt" not in self.model.card.arguments and self.model.recipe == self.plain.recipe, what
            assert list(self.model.module.state_dict()) == self.names, what
            assert torch.equal(tiny.outputs(self.model, self.kind), self.answer), what
            return True
        tiny.outputs(self.model, self.kind)
        self.model = copy.deepcopy(self.plain)
        return False


@pytest.fixture(params=METHODS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    save_adapter(tiny.stir(adapt(tiny.model("llama"), request.param, **METHODS[request.param])), tmp_path / "a")
    return tmp_path / "a"


@pytest.mark.parametrize("name", ["adapter_config.json", "manifest.json"])
def test_values_of_an_adapters_files(folder: Path, name: str) -> None:
    good = json.loads((folder / name).read_text(encoding="utf-8"))
    if name == "manifest.json":
        for part in ("adapter", "base"):
            good[part]["tensors"] = good[part]["tensors"][:1]
    else:
        (folder / "manifest.json").unlink()
    refused, target = 0, Target()
    for path, new in changes(good):
        written(folder / name, changed(good, path, new))
        refused += target.refuses(folder, (path, new))
    assert refused > 20
    for content in (b"", b"{", b"[]", b"null", b"\xff\xfe{}", b"[" * 100_000, b'{"r": ' + b"9" * 5000 + b"}", b'{"a": 1}'):
        (folder / name).write_bytes(content)
        assert target.refuses(folder, content[:20])
    (folder / name).unlink()
    (folder / name).mkdir()
    assert name == "manifest.json" or target.refuses(folder, "a folder")


def test_tensors_of_an_adapter(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    path = folder / "adapter_model.safetensors"
    raw, good, target = path.read_bytes(), safetensors.torch.load_file(path), Target()
    for end in (0, 1, 7, 8, 9, 100, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:end])
        assert target.refuses(folder, end)
    for place in range(0, min(400, len(raw)), 3):  # the header
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 0x55]) + raw[place + 1 :])
        target.refuses(folder, place)
    for key in list(good)[:4]:
        strange = [
            torch.tensor(1.0),
            torch.zeros(0),
            torch.zeros(0, 3),
            torch.zeros(2, 3, 4),
            good[key][None],
            torch.full_like(good[key], torch.nan),
        ]
        for tensor in [*strange, torch.ones_like(good[key], dtype=torch.int32), good[key].to(torch.complex64), None]:
            tensors = {name: value for name, value in good.items() if name != key} | ({} if tensor is None else {key: tensor})
            safetensors.torch.save_file(tensors, path)
            assert target.refuses(folder, (key, tensor)), (key, tensor)
        safetensors.torch.save_file({**{n: t for n, t in good.items() if n != key}, f"x.{key}": good[key]}, path)
        assert target.refuses(folder, key)
    safetensors.torch.save_file({}, path)
    assert target.refuses(folder, "nothing")
    path.unlink()
    assert target.refuses(folder, "no file")


def test_a_second_adapter_that_is_damaged_leaves_the_first(tmp_path: Path) -> None:
    for seed, name in ((1, "a"), (2, "b")):
        save_adapter(tiny.stir(adapt(tiny.model("bert"), "lora"), seed=seed), tmp_path / name)
    (tmp_path / "b" / "manifest.json").unlink()
    good = json.loads((tmp_path / "b" / "adapter_config.json").read_text(encoding="utf-8"))
    model = tiny.model("bert")
    load_adapter(model, tmp_path / "a")
    answer, names = tiny.outputs(model, "bert"), list(model.module.state_dict())
    settings = copy.deepcopy(model.card.arguments)
    for path, new in changes({key: good[key] for key in ("r", "lora_alpha", "use_dora", "modules_to_save", "peft_type")}):
        written(tmp_path / "b" / "adapter_config.json", changed(good, path, new))
        trial = copy.deepcopy(model)
        try:
            load_adapter(trial, tmp_path / "b", "second")
        except FrostlineError:
            assert list(trial.module.state_dict()) == names and trial.card.arguments == settings, (path, new)
        assert torch.equal(tiny.outputs(trial, "bert"), answer), (path, new)


@pytest.fixture
def saved(texts: Any, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A saved model that holds all that a card can: two adapters with heads of their own."""
    model = tiny.stir(fl.adapt(fl.load("transformer", data=texts, width=16, depth=1), "lora", rank=2, base="int8"))
    add_adapter(model, "second")
    use_adapters(model, "second")
    save_model(model, tmp_path / "m", rebuild=rebuild)
    return tmp_path / "m", json.loads((tmp_path / "m" / "config.json").read_text(encoding="utf-8"))


def test_values_of_a_card(saved: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    from frostline.models import card

    tokenizer = card.load_tokenizer(saved[0])
    monkeypatch.setattr(card, "load_tokenizer", lambda folder: tokenizer)  # it has files of its own
    folder, good = saved
    refused = 0
    for path, new in changes(good["frostline"]):
        written(folder / "config.json", {**good, "frostline": changed(good["frostline"], path, new)})
        try:
            fl.load(folder)
        except FrostlineError:
            refused += 1
    assert refused > 200


@pytest.mark.parametrize("kind", ["cnn", "vit", "vit with a head"])
def test_values_of_an_image_models_card(kind: str, tmp_path: Path) -> None:
    own = {"head": ["dense 4"]} if "head" in kind else {"width": 16} if kind == "cnn" else {}
    name = kind if kind == "cnn" else images.image_folder(kind.split()[0], tmp_path / "hf")
    save_model(fl.load(name, task=images.IMAGES, **own), tmp_path / "m")
    good = json.loads((tmp_path / "m" / "config.json").read_text(encoding="utf-8"))
    for path, new in changes(good, every=DEEPER):
        written(tmp_path / "m" / "config.json", changed(good, path, new))
        try:
            model = fl.load(tmp_path / "m")
        except FrostlineError:
            continue
        size = model.card.preprocess.size
        if path[:2] == ("frostline", "preprocess") and size == good["frostline"]["preprocess"]["size"]:
            with torch.no_grad():
                assert logits_of(model.module(pixel_values=torch.zeros(1, 3, size, size))).isfinite().all(), (path, new)
    for change in ({"mean": [0.0, 0.0, float("nan")]}, {"std": [0.0] * 3}, {"scale": 0.0}, {"kind": "text"}, {"std": [1.0, 1.0, "1"]}):
        values = {**good["frostline"], "preprocess": {**good["frostline"]["preprocess"], **change}}
        written(tmp_path / "m" / "config.json", {**good, "frostline": values})
        with pytest.raises(ModelError, match=rf"frostline\.preprocess\.{next(iter(change))} got"):
            fl.load(tmp_path / "m")
