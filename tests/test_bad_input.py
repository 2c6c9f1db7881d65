"""Bad input, each kind once: exit code 2 (3 for a run that is no use), one paragraph that says what is wrong, nothing written over."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from frostline.train import loop
from frostline.train.run import Run, in_use
from tests.small import IMAGE_OPTIONS, TEXT_OPTIONS, review_rows

Command = Callable[..., Any]
Refuse = Callable[..., str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test stands in a folder of its own, where a run would go."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refuse(command: Command, here: Path, snapshot: Callable[[Path], dict[str, bytes]]) -> Refuse:
    """Run a command that must be refused; returns what it says."""

    def run(*words: object, code: int = 2) -> str:
        before = snapshot(here)
        done = command(*words, "--json")
        assert done.code == code
        assert snapshot(here) == before, "nothing is written, and nothing written over"
        message = json.loads(done.out)["error"]
        assert message in done.err
        assert "Traceback" not in done.err
        assert "\n\n" not in message
        assert len(message) < 600
        assert message[-1] not in "\n:"
        return message

    return run


def table(name: str, rows: list[tuple[str, ...]], header: tuple[str, ...] = ("text", "label")) -> str:
    with open(name, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return name


def says(message: str, *parts: str) -> None:
    missing = [part for part in parts if part not in message]
    assert not missing, f"{missing} not in: {message}"


# -- Data -------------------------------------------------------------------------------------------------------------


def test_no_such_path(refuse: Refuse) -> None:
    table("评论.csv", review_rows(5))
    says(
        refuse("train", "评沦.csv", *TEXT_OPTIONS),
        "'评沦.csv' does not exist",
        "expected a file or a folder",
        "close names there: '评论.csv'",
    )


@pytest.mark.parametrize("options", [IMAGE_OPTIONS, TEXT_OPTIONS], ids=["images", "texts"])
def test_empty_folder(refuse: Refuse, options: list[str]) -> None:
    Path("空").mkdir()
    says(refuse("train", "空", *options), "'空' is an empty folder", "expected images or texts in class folders")


def test_one_class_only(refuse: Refuse, digit_folder: Path) -> None:
    shutil.copytree(digit_folder / "零", Path("数字") / "零")
    says(refuse("train", "数字", *IMAGE_OPTIONS), "all 20 rows have the same label '零'", "expected at least two classes", "Add rows")
    rows = [(f"text {i}", "x") for i in range(20)]
    says(refuse("train", table("a.csv", rows), *TEXT_OPTIONS), "the same label 'x'", "data.label_column=NAME")


def test_a_class_with_one_image(command: Command, digit_folder: Path) -> None:
    shutil.copytree(digit_folder, "数字")
    for path in sorted(Path("数字/一").iterdir())[1:]:
        path.unlink()
    done = command("train", "数字", *IMAGE_OPTIONS, "train.epochs=1", "--out", "run")
    assert done.code == 0
    says(done.out, "warning: only one row each of: '一'; they can be trained on, but not measured")


def test_labels_with_spaces_or_other_case(command: Command) -> None:
    labels = ["cat", "Cat", " cat ", "dog"]
    table("a.csv", [(f"row {i}", labels[i % 4]) for i in range(60)])
    report = json.loads(command("prepare", "a.csv", "--json").out)["report"]
    assert set(report["classes"]) == set(labels)
    says(report["warnings"][0], "' cat ' (15 rows), 'Cat' (15 rows), 'cat' (15 rows)", "data.merge_labels=true")
    report = json.loads(command("prepare", "a.csv", "--json", "data.merge_labels=on").out)["report"]
    assert len(report["classes"]) == 2
    assert sum(report["rows"].values()) == 60
    says(report["warnings"][0], "merged into")


def test_corrupt_images(command: Command, digit_folder: Path) -> None:
    shutil.copytree(digit_folder, "数字")
    Path("数字/一/坏.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    Path("数字/一/空.png").write_bytes(b"")
    whole = next(Path("数字/二").iterdir()).read_bytes()
    Path("数字/二/断.png").write_bytes(whole[: len(whole) // 2])
    done = command("train", "数字", *IMAGE_OPTIONS, "train.epochs=1", "--out", "run")
    assert done.code == 0
    says(done.out, "60 rows", "set aside: 3 rows", "坏.png", "空.png")
    report = json.loads(command("prepare", "数字", "--json").out)["report"]
    reasons = {Path(path).name: group["reason"] for group in report["set_aside"] for path in group["examples"]}
    assert reasons == {"坏.png": "truncated PNG", "断.png": "truncated PNG", "空.png": "empty file"}
    found = json.loads(command("predict", "run", "数字/一", "--json").out)["predictions"]
    assert len(found) == 22
    assert {Path(row["input"]).name for row in found if "error" in row} == {"坏.png", "空.png"}


def test_broken_quoting(refuse: Refuse, command: Command) -> None:
    lines = [f"{text},{label}" for text, label in review_rows(10)]
    Path("a.csv").write_text("\n".join(["text,label", '"never closed,好', *lines]), encoding="utf-8")
    says(refuse("train", "a.csv", *TEXT_OPTIONS), "a.csv:2", "a quote opens on this line and is never closed", 'double it ("")')
    Path("b.csv").write_text("\n".join(["text,label", '"closed" too early,好', *lines]), encoding="utf-8")
    report = json.loads(command("prepare", "b.csv", "--json").out)["report"]
    assert sum(report["rows"].values()) == 20
    says(report["set_aside"][0]["reason"], "broken quoting")
    assert report["set_aside"][0]["examples"] == ["b.csv:2"]


def test_columns(refuse: Refuse) -> None:
    table("a.csv", review_rows(5), ("文字", "标记"))
    says(refuse("train", "a.csv"), "no column looks like the text", "'文字', '标记'", "data.input_column=NAME")
    table("a.csv", review_rows(5))
    says(refuse("train", "a.csv", "data.label_column=stars"), "'stars'", "the columns are: 'text', 'label'", "data.label_column=NAME")
    table("a.csv", [("a", "b", "c")], ("text", "label", "text"))
    says(refuse("train", "a.csv"), "a.csv:1", "columns 1 and 3 are both named 'text'", "Rename one")
    table("a.csv", [("a", "b", "c")], ("text", "label", "Text"))
    says(refuse("train", "a.csv"), "'text', 'Text'", "data.input_column=NAME")


def test_missing_labels(command: Command, refuse: Refuse) -> None:
    table("a.csv", [*review_rows(10), ("没有标签", ""), ("也没有", " ")])
    report = json.loads(command("prepare", "a.csv", "--json").out)["report"]
    assert sum(report["rows"].values()) == 20
    assert report["set_aside"] == [{"reason": "no label", "count": 2, "examples": ["a.csv:22", "a.csv:23"]}]
    table("b.csv", [(text, "") for text, _ in review_rows(5)])
    says(refuse("train", "b.csv"), "no row has a label (10 set aside, first b.csv:2)", "data.label_column=NAME")


def test_classes_that_differ_between_splits(refuse: Refuse, command: Command) -> None:
    table("train.csv", review_rows(20))
    table("more.csv", [("新的", "中"), ("另一个", "好")])
    splits = ["data.train=train.csv", "data.validation=more.csv"]
    says(refuse("train", *splits, *TEXT_OPTIONS), "the validation split has classes that training lacks: '中'", "data.merge_labels=true")
    table("more.csv", [("新的", "好"), ("另一个", "好")])
    done = command("train", *splits, *TEXT_OPTIONS, "train.epochs=1", "--out", "run")
    assert done.code == 0
    says(done.out, "warning: the validation split has no row of: '坏'")


# -- Weights ----------------------------------------------------------------------------------------------------------


def test_weights_of_another_architecture(refuse: Refuse, digit_folder: Path, image_run: Path) -> None:
    """The first tensor that does not fit is named, with both shapes."""
    save_file({"其他.weight": torch.zeros(2)}, "other.safetensors")
    options = ["--model", "efficientnet-lite0", "data.size=64", "model.weights=other.safetensors"]
    says(
        refuse("train", digit_folder, *options),
        "for another architecture",
        "'_conv_stem.weight' of shape (32, 3, 3, 3) is missing",
        "model.name=NAME",
    )
    weights = image_run / "model" / "model.safetensors"
    message = refuse("train", digit_folder, *IMAGE_OPTIONS, "model.width=32", f"model.weights={weights}")
    says(message, "for another architecture", "'features.0.0.weight'", "(4, 1, 3, 3) in the file", "(4, 3, 3, 3) in the model")


def test_truncated_weights(refuse: Refuse, digit_folder: Path, image_run: Path) -> None:
    whole = (image_run / "model" / "model.safetensors").read_bytes()
    Path("cut.safetensors").write_bytes(whole[:-10])
    message = refuse("train", digit_folder, *IMAGE_OPTIONS, "model.weights=cut.safetensors")
    says(message, "truncated", "Copy or download it again")
    Path("cut.safetensors").write_bytes(whole[:4])
    says(refuse("train", digit_folder, *IMAGE_OPTIONS, "model.weights=cut.safetensors"), "safetensors")
    shutil.copytree(image_run, "run")
    Path("run/model/model.safetensors").write_bytes(whole[:-10])
    says(refuse("predict", "run", digit_folder), "truncated")


def test_no_such_model(refuse: Refuse, digit_folder: Path) -> None:
    says(refuse("train", digit_folder, "--model", "cnnn"), "'cnnn'", "did you mean 'cnn'?")
    says(refuse("predict", "nowhere", "x.png"), "'nowhere' holds no saved model", "Give a run's folder")
    says(refuse("evaluate", "nowhere"), "'nowhere' is not a run's folder", "frostline train DATA --out nowhere")


# -- Folders ----------------------------------------------------------------------------------------------------------


def test_out_that_is_taken(refuse: Refuse, reviews: Path, text_run: Path) -> None:
    Path("notes").mkdir()
    Path("notes/日记.txt").write_text("mine")
    Path("file").write_text("mine")
    shutil.copytree(text_run, "run")
    train = ["train", reviews, *TEXT_OPTIONS, "--out"]
    says(refuse(*train, "notes"), "out='notes' is not empty", "Choose another with --out")
    says(refuse(*train, "file"), "out='file' is a file", "Choose another with --out")
    says(refuse(*train, "run"), "out='run' holds another run", "frostline train --resume run")
    says(refuse("prepare", reviews, "--out", "notes"), "'notes' is not empty; nothing was written")
    says(refuse("prepare", reviews, "--out", "file"), "'file' is a file; nothing was written")


def test_out_that_is_in_use(refuse: Refuse, text_run: Path) -> None:
    shutil.copytree(text_run, "run")
    Path("run/cost.json").unlink()  # as if it had been stopped
    (Path("run") / ".lock").touch()
    with in_use(Run(Path("run"))):
        says(refuse("train", "--resume", "run"), "'run' is in use by another process", "--out")


def test_conflicts_are_reported_together(refuse: Refuse, reviews: Path) -> None:
    message = refuse(
        "train", reviews, *TEXT_OPTIONS, "train.epochs=0", "train.loss=mse", "data.augment.zoom=0.2", "data.val=0", "train.early_stopping=2"
    )
    says(
        message,
        "4 settings",
        "train.epochs got 0",
        "train.loss: 'mse'",
        "data.augment is for images",
        "train.early_stopping goes by validation",
    )
    assert len(message.splitlines()) == 5
    alone = refuse("train", reviews, *TEXT_OPTIONS, "train.epochs=0")
    assert alone == "train.epochs got 0, expected 1 or more. Use: train.epochs=3"


# -- A full disk, and a loss that is not finite -----------------------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The disk is full for every file whose path holds one of the listed words."""
    fsync, full = os.fsync, []

    def refuse_when_full(handle: int) -> None:
        path = os.readlink(f"/proc/self/fd/{handle}")
        if any(word in path for word in full):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse_when_full)
    yield full


@pytest.mark.parametrize("where", ["recipe.yaml", "run/data", "plan.json"])
def test_disk_full_before_training(refuse: Refuse, reviews: Path, full_disk: list[str], where: str) -> None:
    """Half a run could not be resumed, so none is left and the folder can be taken again."""
    full_disk.append(where)
    says(refuse("train", reviews, *TEXT_OPTIONS, "--out", "run"), "could not be written: No space left on device", "df -h", "--out")
    assert not Path("run").exists()


@pytest.mark.parametrize("where", ["checkpoints", "metrics.jsonl", ".model."])
def test_disk_full_while_training(command: Command, reviews: Path, text_run: Path, full_disk: list[str], where: str) -> None:
    """What was written before stays, and the run goes on from there once there is room."""
    full_disk.append(where)
    done = command("train", reviews, *TEXT_OPTIONS, "--out", "run", "--json")
    assert done.code == 2
    says(json.loads(done.out)["error"], "No space left on device")
    assert not [path for path in Path("run/checkpoints").glob("*") if not path.name.startswith("step-")]
    full_disk.clear()
    assert command("train", "--resume", "run", "--quiet").code == 0
    mine, theirs = (path / "model" / "model.safetensors" for path in (Path("run"), text_run))
    assert mine.read_bytes() == theirs.read_bytes()


def test_disk_full_for_the_report(refuse: Refuse, text_run: Path, full_disk: list[str]) -> None:
    shutil.copytree(text_run, "run")
    Path("run/report.html").write_text("an older report")
    full_disk.append("report")
    says(refuse("evaluate", "run"), "run/report.json' could not be written: No space left on device", "df -h run")


@pytest.mark.parametrize("where", ["dataset.json", ".arrow"])
def test_disk_full_for_prepared_data(command: Command, reviews: Path, full_disk: list[str], where: str) -> None:
    full_disk.append(where)
    done = command("prepare", reviews, "--out", "data")
    assert done.code == 2
    says(done.err, "could not be written: No space left on device")
    assert not Path("data/dataset.json").exists()
    full_disk.clear()


def test_loss_that_is_not_finite(command: Command, reviews: Path, text_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        rate = loop.learning_rate
        patch.setattr(loop, "learning_rate", lambda recipe, step, *rest: rate(recipe, step, *rest) * (1e300 if step >= 5 else 1))
        done = command("train", reviews, *TEXT_OPTIONS, "train.optimizer=sgd", "--out", "run", "--json")
    assert done.code == 3
    message = json.loads(done.out)["error"]
    says(
        message, "step 7: the loss is", "expected a finite number", "train.lr=", "The last good checkpoint is run/checkpoints/step-00000004"
    )
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["step-00000004"]
    assert not Path("run/model").exists()
    assert command("train", "--resume", "run", "--quiet").code == 0, "the last good checkpoint is whole"


def test_loss_that_is_not_finite_from_the_start(command: Command, reviews: Path) -> None:
    done = command("train", reviews, *TEXT_OPTIONS, "train.optimizer=sgd", "train.lr=1e300", "--out", "run")
    assert done.code == 3
    says(done.err, "step 2: the loss is", "No checkpoint was written yet.")
