"""Whole commands on small real data, in this process: the road from a folder or a CSV to predictions."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import frostline as fl
from frostline.errors import TrainingStopped
from frostline.recipe import Recipe
from frostline.recipe_reader import all_keys, resolve
from frostline.train import loop
from tests.small import IMAGE_OPTIONS, TEXT_OPTIONS

Command = Callable[..., Any]


def one_object(out: str) -> dict[str, Any]:
    """The JSON object that is all of the output."""
    assert out.endswith("}\n")
    assert out.count("\n") == 1
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert isinstance(found, dict)
    return found


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def identical(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- Grammar and exit codes -------------------------------------------------------------------------------------------


def test_alone_it_prints_help(command: Command) -> None:
    done = command()
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("usage: frostline")
    assert "examples:" in done.out


def test_help_and_version_exit_with_0(command: Command) -> None:
    for words in (["--help"], ["--version"], ["train", "--help"]):
        with pytest.raises(SystemExit) as stopped:
            command(*words)
        assert stopped.value.code == 0


@pytest.mark.parametrize("words", [["trian"], ["train", "--bogus"], ["train"], ["evaluate", "nowhere"], ["train", "nowhere", "train.lr=x"]])
def test_mistakes_exit_with_2(command: Command, words: list[str]) -> None:
    done = command(*words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("frostline")
    assert done.err.count("\n") == 1
    done = command(*words, "--json")
    assert done.code == 2
    found = one_object(done.out)
    assert found["exit_code"] == 2
    assert found["error"] in done.err


def test_training_that_stopped_exits_with_3(command: Command, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: Any, **options: Any) -> None:
        raise TrainingStopped("step 3: useless")

    monkeypatch.setattr("frostline.api.train_into", stop)
    done = command("train", reviews, *TEXT_OPTIONS, "--out", tmp_path / "run", "--json")
    assert (done.code, one_object(done.out)["exit_code"]) == (3, 3)


def test_ctrl_c_before_training_exits_with_130(command: Command, reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("frostline.data.prepare.from_recipe", interrupt)
    done = command("train", reviews)
    assert (done.code, "Stopped." in done.err) == (130, True)


def test_a_reader_that_has_gone() -> None:
    """As for any tool in a pipe to head: the work was cut off, so it is not 0; and no trace."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "frostline"], stdout=writing, stderr=subprocess.PIPE, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_defects_of_ours_are_not_hidden(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*args: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("frostline.cli._recipe", break_down)
    with pytest.raises(ZeroDivisionError):
        command("train", "x")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["evaluate", "RUN", "train.lr=3"], "'train.lr=3'"),
        (["show", "RUN", "train.lr=3"], "'train.lr=3'"),
        (["show", "RUN", "--model", "gru"], "'--model gru'"),
        (["show", "RUN", "b", "c"], "frostline show data"),
        (["info", "train.lr=3"], "'train.lr=3'"),
        (["train", "--resume", "RUN", "train.lr=3"], "RUN/recipe.yaml KEY=VALUE"),
        (["train", "--resume", "RUN", "--out", "x"], "'--out x'"),
        (["train", "photos", "--resume", "RUN"], "'photos'"),
        (["predict", "RUN"], "nothing to predict"),
        (["predict", "RUN", "--text", "a", "--batch", "0"], "--batch got 0"),
        (["predict", "RUN", ""], "an empty word"),
    ],
)
def test_nothing_that_is_said_is_ignored(command: Command, words: list[str], part: str) -> None:
    done = command(*words)
    assert done.code == 2
    assert part in done.err


# -- The road, for images and for texts -------------------------------------------------------------------------------


def test_prepare_plan_train_on_prepared_data(command: Command, digit_folder: Path, tmp_path: Path) -> None:
    done = command("prepare", digit_folder, "--out", tmp_path / "准备", "data.val=0.2")
    assert done.code == 0
    assert "image-classification · 3 classes · 60 rows" in done.out
    assert f"frostline train {tmp_path / '准备'}" in done.out
    found = one_object(command("prepare", digit_folder, "data.val=0.2", "--json").out)
    assert found["report"]["rows"] == {"train": 42, "validation": 12, "test": 6}
    assert found["fingerprint"] == fl.prepare(tmp_path / "准备").fingerprint

    done = command("plan", tmp_path / "准备", *IMAGE_OPTIONS)
    assert done.code == 0
    assert "Plan for cnn" in done.out
    assert f"data.path = {tmp_path / '准备'} (command line)" in done.out
    plan = one_object(command("plan", tmp_path / "准备", *IMAGE_OPTIONS, "--json").out)
    assert plan["model"] == "cnn"
    assert plan["predicted"]["seconds"] > 0
    assert not list(tmp_path.glob("runs")), "plan writes nothing"

    done = command("train", tmp_path / "准备", *IMAGE_OPTIONS, "--out", tmp_path / "run", "--json")
    assert done.code == 0
    found = one_object(done.out)
    assert [epoch["epoch"] for epoch in found["epochs"]] == list(range(1, 13))
    assert found["run"] == str(tmp_path / "run")
    assert found["cost"]["actual"]["seconds"] > 0
    assert "epoch 12/12" in done.err


def test_prepared_data_keeps_its_settings(command: Command, digit_folder: Path, tmp_path: Path) -> None:
    out, small = tmp_path / "准备", ["--model", "cnn", "model.width=16", "train.epochs=1"]
    assert command("prepare", digit_folder, "data.size=32", "data.augment.horizontal_flip=on", "--out", out).code == 0
    done = command("train", out, *small, "--out", tmp_path / "run")
    assert done.code == 0
    assert "data.size = 32 (prepared data)" in done.out
    assert "data.augment.horizontal_flip = True (prepared data)" in done.out
    recipe = Recipe.from_yaml(tmp_path / "run" / "recipe.yaml")
    assert (recipe.data.size, recipe.data.augment.horizontal_flip) == (32, True)
    for words in (["check", out], ["show", "data", out]):
        assert one_object(command(*words, *small, "--json").out)["rows"][0]["shape"][1:] == [32, 32]
    done = command("plan", out, *small, "data.size=36", "data.augment.horizontal_flip=off")
    assert "prepared data" not in done.out
    assert "data.size = 36 (command line)" in done.out


def test_a_lora_run_is_the_base_of_another(command: Command, digit_folder: Path, tmp_path: Path) -> None:
    words = [*IMAGE_OPTIONS, "train.epochs=1", "--adapt", "lora"]
    assert command("train", digit_folder, *words, "--out", tmp_path / "lora", "--quiet").code == 0
    again = ["--model", tmp_path / "lora", "train.epochs=1"]
    assert command("check", digit_folder, *again).code == 0
    assert command("show", "data", digit_folder, *again).code == 0
    done = command("train", digit_folder, *again, "--out", tmp_path / "next", "--quiet")
    assert (done.code, done.err) == (0, "")


def test_the_folder_of_a_run(image_run: Path, text_run: Path) -> None:
    for run in (image_run, text_run):
        recipe, sources = resolve(run / "recipe.yaml")
        assert set(sources) == set(all_keys()), "the recipe of a run holds every field"
        assert recipe.out is None
        assert recipe.train.lr in (0.01, 0.03)
        assert Path(str(recipe.data.path)).is_absolute()
        names = {path.name for path in run.iterdir()}
        assert {"recipe.yaml", "data", "plan.json", "metrics.jsonl", "checkpoints", "model", "cost.json"} <= names


def test_evaluate(command: Command, image_run: Path, text_run: Path) -> None:
    for run, labels in ((image_run, ["一", "二", "零"]), (text_run, ["坏", "好"])):
        done = command("evaluate", run)
        assert done.code == 0
        assert "accuracy" in done.out
        assert str(run / "report.html") in done.out
        page = (run / "report.html").read_text(encoding="utf-8")
        assert labels[0] in page
        found = one_object(command("evaluate", run, "--json", "--split", "train", "--quiet").out)
        assert (found["split"], found["labels"], found["rows"]) == ("train", labels, sum(map(sum, found["confusion"])))
        assert found["metrics"]["accuracy"] > 0.7
        assert json.loads((run / "report.json").read_text(encoding="utf-8"))["split"] == "train"


def test_predict_images(command: Command, image_run: Path, digit_folder: Path, tmp_path: Path) -> None:
    files = sorted((digit_folder / "零").glob("*.png"))[7:]  # of which this small network is certain
    done = command("predict", image_run, files[0], "--json", files[1])
    found = one_object(done.out)["predictions"]
    assert "零" in done.out, "Chinese is not escaped"
    assert [row["input"] for row in found] == [str(path) for path in files[:2]]
    assert found[0]["label"] == "零"
    assert sum(found[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert found[0]["probability"] == max(found[0]["probabilities"].values())

    whole = one_object(command("predict", image_run, digit_folder, "--json").out)["predictions"]
    assert len(whole) == 60
    right = sum(row["label"] == Path(row["input"]).parent.name for row in whole)
    assert right > 45

    table = tmp_path / "列表.csv"
    (tmp_path / "图.png").write_bytes(files[0].read_bytes())
    table.write_text("图片,备注\n图.png,x\n没有.png,y\n", encoding="utf-8")
    rows = one_object(command("predict", image_run, table, "--json").out)["predictions"]
    assert rows[0]["label"] == "零"
    assert "没有.png" in rows[1]["error"]
    done = command("predict", image_run, table)
    lines = done.out.splitlines()
    assert lines[0].split("\t")[1] == "零"
    assert lines[1].split("\t")[1].startswith("error: ")
    assert "2 rows" in done.err
    assert command("predict", image_run, table, "--quiet").err == ""


def test_predict_texts(command: Command, text_run: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = one_object(command("predict", text_run, "--text", "味道很好，第 3 次", "--text", "太难吃了\t坏", "--json").out)["predictions"]
    assert [row["label"] for row in found] == ["好", "坏"]
    rows = one_object(command("predict", text_run, reviews, "--json").out)["predictions"]
    assert len(rows) == 80
    assert sum(row["label"] == name for row, name in zip(rows, ["好"] * 40 + ["坏"] * 40)) > 60
    (tmp_path / "一.txt").write_text("很失望", encoding="utf-8")
    assert one_object(command("predict", text_run, tmp_path / "一.txt", "--json").out)["predictions"][0]["label"] == "坏"
    lines = command("predict", text_run, "--text", "a\tb\nc").out.splitlines()
    assert len(lines) == 1
    assert len(lines[0].split("\t")) == 3


def test_predict_lines_of_standard_input(
    command: Command, text_run: Path, image_run: Path, digit_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "很失望").mkdir()
    monkeypatch.setattr(sys, "stdin", io.StringIO("非常满意\r\n很失望\n\n"))
    found = one_object(command("predict", text_run, "-", "--json").out)["predictions"]
    assert [row["input"] for row in found] == ["非常满意", "很失望", ""], "a line is a text, even where it names a folder"
    assert [row["label"] for row in found[:2]] == ["好", "坏"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{digit_folder / '零'}\n\n"))
    assert len(one_object(command("predict", image_run, "-", "--json").out)["predictions"]) == 20
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("很".encode("gb18030") * 3), encoding="utf-8"))
    done = command("predict", text_run, "-")
    assert done.code == 2
    assert "standard input: got bytes that are not utf-8" in done.err


@pytest.mark.parametrize(("data", "options"), [("digit_folder", IMAGE_OPTIONS), ("reviews", TEXT_OPTIONS)])
def test_rerun_from_its_recipe(command: Command, request: pytest.FixtureRequest, data: str, options: list[str], tmp_path: Path) -> None:
    first = request.getfixturevalue({"digit_folder": "image_run", "reviews": "text_run"}[data])
    done = command("train", first / "recipe.yaml", "--out", tmp_path / "again", "--quiet")
    assert done.code == 0
    assert identical(weights(first), weights(tmp_path / "again"))
    assert Recipe.from_yaml(first / "recipe.yaml") == Recipe.from_yaml(tmp_path / "again" / "recipe.yaml")


def test_resume(command: Command, reviews: Path, text_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_step = loop._take_step

    def interrupted(state: Any, *args: Any) -> Any:
        if state.counters.step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return take_step(state, *args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_take_step", interrupted)
        done = command("train", reviews, *TEXT_OPTIONS, "--out", tmp_path / "run")
    assert done.code == 130
    assert f"frostline train --resume {tmp_path / 'run'}" in done.err
    for words in (["evaluate", tmp_path / "run"], ["predict", tmp_path / "run", "--text", "a"]):
        unfinished = command(*words)
        assert unfinished.code == 2
        assert "is not finished" in unfinished.err
        assert "--resume" in unfinished.err
    shown = command("show", tmp_path / "run")
    assert (shown.code, "1 epochs" in shown.out) == (0, True)
    done = command("train", "--resume", tmp_path / "run", "--json")
    assert done.code == 0
    assert [epoch["epoch"] for epoch in one_object(done.out)["epochs"]] == [1, 2, 3, 4, 5]
    assert identical(weights(text_run), weights(tmp_path / "run"))
    done = command("train", "--resume", tmp_path / "run")
    assert done.code == 2
    assert "is finished" in done.err


def test_quiet(command: Command, reviews: Path, tmp_path: Path) -> None:
    done = command("train", reviews, *TEXT_OPTIONS, "train.epochs=1", "--out", tmp_path / "run", "--quiet")
    assert (done.code, done.err) == (0, "")
    assert done.out.strip().splitlines()[0].startswith(f"Saved {tmp_path / 'run' / 'model'}")
    assert "epoch" not in done.out
    assert command("plan", reviews, *TEXT_OPTIONS, "--quiet").out.startswith("Plan for gru")


def test_without_a_recipe_or_an_out(command: Command, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        done = command("train", reviews, *TEXT_OPTIONS, "train.epochs=1", "--json")
        assert one_object(done.out)["run"] == f"runs/gru-评论-{number}"


def test_show(command: Command, image_run: Path, reviews: Path) -> None:
    done = command("show", image_run)
    assert "step  epoch" in done.out
    assert len(done.out.splitlines()) == 15
    found = one_object(command("show", image_run, "--json").out)
    assert [epoch["epoch"] for epoch in found["history"]] == list(range(1, 13))
    assert found["plan"]["model"] == "cnn"
    done = command("show", "data", reviews, *TEXT_OPTIONS)
    assert done.out.count("row: label") == 8
    assert "text-classification · 2 classes · 80 rows" in done.out
    found = one_object(command("show", "data", "--json", reviews, *TEXT_OPTIONS).out)
    assert {row["label"] for row in found["rows"]} <= {"好", "坏"}
    assert all(len(row["tokens"]) == row["length"] for row in found["rows"])


def test_info(command: Command) -> None:
    found = one_object(command("info", "--json").out)
    assert found["frostline"] == fl.__version__
    assert found["fp32_gflops"] == 100.0
    assert "frostline " in command("info").out


def test_find_lr(command: Command, reviews: Path, tmp_path: Path) -> None:
    done = command("find-lr", reviews, *TEXT_OPTIONS, "--out", tmp_path / "lr.svg", "--json")
    found = one_object(done.out)
    assert 1e-6 < found["suggestion"] < 1
    assert len(found["lrs"]) == len(found["losses"]) >= 10
    assert (tmp_path / "lr.svg").read_text().startswith("<svg")


def test_init_then_train(command: Command, digit_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "配方.yaml"
    done = command("init", digit_folder, "--out", path, *IMAGE_OPTIONS)
    assert (done.code, f"frostline train {path}" in done.out) == (0, True)
    before = path.read_bytes()
    refused = command("init", digit_folder, "--out", path)
    assert refused.code == 2
    assert "was not written over" in refused.err
    assert path.read_bytes() == before
    assert command("init", digit_folder, *IMAGE_OPTIONS).out.encode() == before
    done = command("train", path, "train.epochs=1", "--out", tmp_path / "run")
    assert done.code == 0
    assert "train.lr = 0.01 (配方.yaml:" in done.out
    assert "train.epochs = 1 (command line)" in done.out


def test_json_in_a_process_of_its_own(reviews: Path, tmp_path: Path) -> None:
    """Nothing else reaches the descriptor of standard output, from whatever library."""
    words = [sys.executable, "-m", "frostline", "train", str(reviews), *TEXT_OPTIONS, "--out", str(tmp_path / "run"), "--json"]
    environment = {**os.environ, "FROSTLINE_CACHE": str(tmp_path / "cache"), "LC_ALL": "C"}
    done = subprocess.run(words, capture_output=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    assert one_object(done.stdout.decode())["run"] == str(tmp_path / "run")
    assert "好" in done.stderr.decode()
