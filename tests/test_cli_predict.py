"""``frostline predict``: what it reads a file with, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from frostline.recipe import Recipe
from tests.small import TEXT_OPTIONS, review_rows

Command = Callable[..., Any]


def test_predict_a_misspelt_file(command: Command, text_run: Path, tmp_path: Path) -> None:
    done = command("predict", text_run, tmp_path / "没有.txt")
    assert (done.code, done.out) == (2, "")
    assert "does not exist" in done.err
    assert "--text" in done.err


def test_predict_reads_a_table_as_the_run_did(command: Command, tmp_path: Path) -> None:
    """The run's column and encoding, unless a flag says otherwise; a guess is noted beside the results."""
    table, other, run = tmp_path / "训练.csv", tmp_path / "other.csv", tmp_path / "run"
    lines = [f"{text},无关 {i},{label}" for i, (text, label) in enumerate(review_rows())]
    table.write_bytes("\n".join(["句,text,标签", *(line.replace("，", " ") for line in lines)]).encode("utf-16"))
    other.write_text("id,text\n1,太难吃了\n", encoding="utf-16")
    columns = ["data.input_column=句", "data.encoding=utf-16"]
    assert command("train", table, *TEXT_OPTIONS, *columns, "train.epochs=1", "--out", run, "--quiet").code == 0
    done = command("predict", run, table, "--json")
    assert json.loads(done.out)["predictions"][0]["input"].startswith("味道很好")
    assert done.err == ""
    done = command("predict", run, table, "--column", "text", "--json")
    assert json.loads(done.out)["predictions"][0]["input"] == "无关 0"
    done = command("predict", run, other)
    assert (done.code, len(done.out.splitlines())) == (0, 1)
    assert "text column: 'text' (guessed; set --column)" in done.err
    assert command("predict", run, other, "--quiet").err == ""
    done = command("predict", run, other, "--encoding", "ascii")
    assert (done.code, "--encoding asks for" in done.err) == (2, True)


def test_predict_holds_to_the_runs_limit_of_pixels(command: Command, image_run: Path, digit_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(image_run, tmp_path / "run")
    recipe = Recipe.from_yaml(tmp_path / "run" / "recipe.yaml").with_values({"data.max_pixels": 10})
    (tmp_path / "run" / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    (found,) = json.loads(command("predict", tmp_path / "run", next(digit_folder.rglob("*.png")), "--json").out)["predictions"]
    assert "pixels" in found["error"]


def test_predict_writes_no_more_than_it_is_told(command: Command, text_run: Path, tmp_path: Path) -> None:
    done = command("predict", text_run, "--text", "好", "--max-new-tokens", "8")
    assert (done.code, done.out) == (2, "")
    assert "--max-new-tokens" in done.err and "'text-classification'" in done.err
    rows = [{"source": f"snow {n}", "target": f"雪 {n}"} for n in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = ("--model", "seq2seq", "--task", "translation", "model.width=16", "model.depth=1", "model.tokenizer=char", "train.epochs=1")
    run = tmp_path / "run"
    assert command("train", tmp_path / "pairs.jsonl", *options, "--out", run, "--quiet").code == 0
    (found,) = json.loads(command("predict", run, "--text", "snow", "--max-new-tokens", "1", "--json").out)["predictions"]
    assert len(found["text"]) <= 1
    found = json.loads(command("predict", run, tmp_path / "pairs.jsonl", "--max-new-tokens", "1", "--json").out)["predictions"]
    assert [row["input"] for row in found] == [row["source"] for row in rows]


def test_predict_where_nothing_can_be_predicted(command: Command, image_run: Path, digit_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "no.jpg").write_text("no image")
    done = command("predict", image_run, tmp_path / "no.jpg")
    assert done.code == 2 and "error: " in done.out
    done = command("predict", image_run, tmp_path / "no.jpg", next(digit_folder.rglob("*.png")))
    assert done.code == 0 and len(done.out.splitlines()) == 2
