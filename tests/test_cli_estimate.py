"""`frostline plan --on`: a run on a machine that is not at hand, from the model's config alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from frostline.recipe import Recipe

Command = Callable[..., Any]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    values = {
        "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 128,
    }  # fmt: skip
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def answer(done: Any) -> dict[str, Any]:
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert isinstance(found, dict)
    return found


def test_a_named_machine_without_data_or_weights(command: Command, model: Path) -> None:
    done = command("plan", "--model", model / "config.json", "--on", "h200", "--adapt", "lora", "adapt.rank=16", "train.batch=8")
    assert (done.code, done.err) == (0, "")
    assert "on h200 (141.00 GB): fits" in done.out
    assert "adapt=lora adapt.rank=16 train.batch=8" in done.out
    assert "train.precision=bf16" in done.out  # much faster there


def test_the_same_as_data(command: Command, model: Path) -> None:
    words = ["plan", "--model", model, "--on", "h200", "--adapt", "lora", "--json"]
    plain = answer(command(*words))
    assert plain["fits"] and plain["wanted"]["adapt"]["method"] == "lora" and plain["wanted"]["rows"] == 1000
    more = answer(command(*words, "--rows", "2000", "--labelled", "0.5", "data.max_length=64", "train.epochs=1"))
    assert [more["wanted"][key] for key in ("rows", "labelled", "length", "epochs")] == [2000, 0.5, 64, 1]
    assert more["bytes"]["activations"] < plain["bytes"]["activations"]


@pytest.mark.parametrize("machine", ["this", "2 cores 24GB", "RTX 4090"])
def test_other_machines(command: Command, model: Path, machine: str) -> None:
    found = answer(command("plan", "--model", model, "--on", machine, "train.batch=1", "data.max_length=64", "--json"))
    assert found["fits"] and found["seconds"] > 0
    assert found["target"]["device"] == ("gpu" if machine == "RTX 4090" else "cpu")


def test_a_recipe_is_asked_about_as_it_stands(command: Command, model: Path, tmp_path: Path) -> None:
    recipe = Recipe().with_values({"data.path": "nowhere.jsonl", "data.task": "chat", "model.name": str(model), "adapt": "lora"})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    found = answer(command("plan", tmp_path / "recipe.yaml", "--on", "a100", "train.batch=4", "--json"))
    assert found["fits"] and found["wanted"]["batch"] == 4 and found["target"]["name"] == "a100-80gb"


def test_what_does_not_fit_says_what_to_change(command: Command, model: Path) -> None:
    done = command("plan", "--model", model, "--on", "2 cores 0.2GB", "--adapt", "lora", "train.batch=64")
    assert done.code == 0
    assert "does not fit" in done.out and "train.batch=" in done.out and "--on " in done.out


@pytest.mark.parametrize(("words", "part"), [
    (["--on", "h2000"], "Did you mean 'h200'"),
    (["--on", ""], "expected this, '2 cores 24GB'"),
    (["--on", "h200", "photos"], "got the data 'photos' with --on"),
    (["--on", "h200", "--html", "plan.html"], "'--html plan.html' with --on"),
    (["--on", "h200", "train.batchs=8"], "unknown key 'train.batchs'; did you mean 'train.batch'?"),
    (["--on", "h200", "train.precision=int8"], "train.precision got 'int8'"),
    (["--on", "t4", "train.precision=bf16"], "train.precision got 'bf16', expected one of fp32 on t4"),
    (["--on", "h200", "train.ema=0.9"], "train.ema got 0.9, which is not counted"),
    (["--on", "h200", "adapt.rank=4"], "adapt.rank got 4, which only adapt=lora"),
    (["--on", "h200", "--adapt", "ia3"], "adapt got 'ia3', expected one of lora, full"),
    (["--on", "h200", "--adapt", "lora", "adapt.targets=nothing"], "adapt.targets: got 'nothing'"),
    (["--on", "h200", "--rows", "0"], "--rows got 0"),
    (["--rows", "10", "photos"], "got '--rows 10' without --on"),
    (["--labelled", "0.5", "photos"], "got '--labelled 0.5' without --on"),
])  # fmt: skip
def test_mistakes(command: Command, model: Path, words: list[str], part: str) -> None:
    done = command("plan", "--model", model, *words)
    assert (done.code, done.out) == (2, "")
    assert part in done.err and done.err.count("\n") == 1


def test_without_a_model(command: Command) -> None:
    done = command("plan", "--on", "h200")
    assert done.code == 2 and "--model FOLDER/config.json" in done.err
