"""The grammar of the command line, without carrying anything out."""

from __future__ import annotations

from typing import get_args

import pytest

from frostline import commands
from frostline.errors import RecipeError
from frostline.models.build import BY_TASK
from frostline.recipe import TaskName

NAMES = ("init", "check", "prepare", "plan", "train", "evaluate", "predict", "show", "info", "find-lr")


def test_no_command() -> None:
    assert commands.parse([]) is None


def test_settings_stand_anywhere() -> None:
    orders = (
        ["train", "photos", "--model", "gru", "train.lr=3", "data.augment.zoom=1", "--json"],
        ["train.lr=3", "train", "--json", "data.augment.zoom=1", "photos", "--model=gru"],
        ["--json", "train", "--model", "gru", "train.lr=3", "photos", "data.augment.zoom=1"],
    )
    for words in orders:
        options = commands.parse(words)
        assert options is not None
        assert (options.command, options.data, options.model, options.json) == ("train", "photos", "gru", True)
        assert options.overrides == ["train.lr=3", "data.augment.zoom=1"]


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "run", "a.jpg", "b.jpg", "--json", "--text", "好"],
        ["predict", "run", "--json", "a.jpg", "--text", "好", "b.jpg"],
        ["predict", "--text", "好", "run", "a.jpg", "--json", "b.jpg"],
        ["--json", "predict", "run", "a.jpg", "b.jpg", "--text=好"],
    ],
)
def test_files_and_flags_mix(words: list[str]) -> None:
    options = commands.parse(words)
    assert options is not None
    assert (options.folder, options.inputs, options.text, options.json) == ("run", ["a.jpg", "b.jpg"], ["好"], True)


def test_after_predict_everything_is_an_input() -> None:
    options = commands.parse(["predict", "run", "a=b", "-", "--batch", "8"])
    assert options is not None
    assert (options.inputs, options.overrides, options.batch) == (["a=b", "-"], [], 8)


def test_show_data_with_flags_between() -> None:
    options = commands.parse(["show", "--model", "gru", "data", "--json", "reviews.csv", "model.width=8"])
    assert options is not None
    assert (options.what, options.model, options.overrides) == (["data", "reviews.csv"], "gru", ["model.width=8"])


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["trian", "x"], ["'trian'", "did you mean 'train'?", "frostline --help"]),
        (["猫"], ["'猫'", "expected one of init, check"]),
        (["train.lr=3"], ["invalid choice: 'train.lr=3'", "frostline --help"]),
        (["--nonsense"], ["--nonsense", "frostline --help"]),
        (["train", "a", "b"], ["unrecognized arguments: b", "frostline train --help"]),
        (["train", "a", "train.lr"], ["unrecognized arguments: train.lr"]),
        (["train", "--out"], ["--out", "expected one argument"]),
        (["evaluate"], ["required: RUN", "frostline evaluate --help"]),
        (["evaluate", "r", "--split", "val"], ["'val'", "'validation'"]),
        (["predict", "r", "--batch", "many"], ["--batch", "'many'"]),
        (["find-lr", "a", "--resume", "b"], ["--resume", "frostline find-lr --help"]),
    ],
)
def test_refused(words: list[str], parts: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        commands.parse(words)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_each_help_shows_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        commands.parse([name, "--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert text.partition("examples:\n")[2].startswith(f"  frostline {name}")
    assert "--quiet" in text
    assert ("--json" in text) == (name != "init")


def test_the_help_names_every_command() -> None:
    text = commands.show_help()
    assert all(f"    {name}  " in text for name in NAMES)
    assert "examples:\n  frostline train photos/" in text


@pytest.mark.parametrize("name", ["init", "check", "plan", "train", "find-lr", "prepare", "show"])
def test_the_help_is_of_all_tasks(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        commands.parse([name, "--help"])
    text = " ".join(capsys.readouterr().out.split()).replace("- ", "-")
    assert all(task in text for task in get_args(TaskName))
    if name != "prepare":
        models = {model for own in BY_TASK.values() for model in own if not model.startswith("vgg")}
        assert all(model in text for model in models | {"vgg11 to vgg19", "GGUF"})


def test_how_much_is_written() -> None:
    options = commands.parse(["predict", "run", "a.txt", "--max-new-tokens", "64"])
    assert options is not None
    assert options.max_new_tokens == 64
