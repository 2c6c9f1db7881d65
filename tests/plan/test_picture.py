"""The page of a plan: it stands alone, holds what the plan holds, and shows what is frozen and what learns."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import frostline as fl
from frostline.data.dataset import Dataset
from frostline.plan.decision import Decision
from frostline.plan.outline import outline
from frostline.plan.picture import plan_html
from frostline.plan.plan import Plan, plan_recipe
from tests.test_cli import one_object
from tests.train.small import cnn, first_rows, plan

VOID = {"meta"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.names: list[str] = []
        self.classes: set[str] = set()
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert not {"src", "href", "srcset", "action", "data", "xlink:href"} & set(given)
        assert not any(name.startswith("on") for name in given)
        self.tags.append(tag)
        if "data-part" in given:
            self.names.append(given["data-part"] or "")
        if tag == "rect":
            self.classes.add(given["class"] or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def data(digits: Dataset) -> Dataset:
    return first_rows(digits, 40)


def test_it_stands_alone(data: Dataset, tmp_path: Path) -> None:
    page = plan_html(plan(cnn(data), data, tmp_path, adapt="head", cache="on"))
    parsed = Page(page)
    assert not {"script", "link", "iframe", "object", "img", "style "} & set(parsed.tags)
    assert re.findall(r"https?:|url\(|@import", page) == []
    assert '<meta charset="utf-8">' in page and "default-src 'none'" in page and "prefers-color-scheme: dark" in page
    assert "Noto Sans CJK SC" in page and "冰冻线" in page


def test_every_block_is_named_once(data: Dataset, tmp_path: Path) -> None:
    made = plan(cnn(data, depth=3), data, tmp_path, adapt="last 1", cache="on")
    names = Page(plan_html(made)).names
    assert names == [part.name for part in outline(made.execution).parts]
    assert all(names.count(block) == 1 for block in made.model.blocks) and len(made.model.blocks) == 3


def test_colours_tell_what_is_cached_and_what_learns(data: Dataset, tmp_path: Path) -> None:
    frozen = Page(plan_html(plan(cnn(data), data, tmp_path, adapt="head", cache="on")))
    assert frozen.classes == {"cached", "learning"}
    assert any("the frozen part runs once instead of 2 times" in one for one in frozen.texts)
    run = Page(plan_html(plan(cnn(data), data, tmp_path, adapt="head", cache="off")))
    assert run.classes == {"frozen", "learning"}
    learning = Page(plan_html(plan(cnn(data), data, tmp_path)))
    assert learning.classes == {"learning"}
    assert any("Everything learns" in one for one in learning.texts)


def test_memory_is_the_predicted_peak_and_nothing_else(data: Dataset, tmp_path: Path) -> None:
    made = plan(cnn(data), data, tmp_path, adapt="head", cache="on", ema=0.9)
    page = plan_html(made)
    program = re.findall(r'<span class="m7" style="flex-grow:(\d+)"', page)
    parts = re.findall(r'<span class="m[0-6]" style="flex-grow:(\d+)"', page)
    assert sum(map(int, [*program, *parts])) == made.predicted.peak_bytes
    counts = made.parameters
    for name in ("weights", "gradients", "optimizer", "activations", "passing", "mapped"):
        assert str(counts[f"{name}_bytes"]) in parts
    assert counts["mapped_bytes"] > 0 and "moving average" in page


def test_weights_that_are_not_in_memory_yet(data: Dataset, tmp_path: Path) -> None:
    made = plan(cnn(data), data, tmp_path)
    made.parameters["weights_bytes"] = 2 * made.predicted.peak_bytes
    page = plan_html(made)
    Page(page)
    assert "flex-grow:-" not in page and "the program itself" not in page


def test_seconds_and_decisions(data: Dataset, tmp_path: Path) -> None:
    made = plan(cnn(data), data, tmp_path, adapt="head", cache="on")
    made.predicted.parts["a <new> part"] = 7384.0
    made.decisions.append(Decision(what="<i>", on=True, why="a < b & 好", saves_seconds=75, costs="<u>3 MB", exact=False))
    texts = Page(plan_html(made)).texts
    for decision in made.decisions:
        assert decision.what in texts and decision.why in texts
    assert {"a <new> part", "2 h 03 min", "1 min 15 s", "<u>3 MB", "not exact 近似", "validation 验证"} <= set(texts)


def test_hostile_class_and_module_names(data: Dataset, tmp_path: Path) -> None:
    hostile = type("<script>alert(1)</script>", (nn.Linear,), {})

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module('a"><b>\x1b猫', hostile(784, 10))

        def forward(self, pixel_values: Tensor) -> Tensor:
            result: Tensor = next(self.children())(pixel_values.flatten(1))
            return result

    model = fl.load(Net(), task=data.task, preprocess=cnn(data).card.preprocess)
    page = plan_html(plan(model, data, tmp_path))
    parsed = Page(page)
    assert "script" not in parsed.tags and "<b>\x1b" not in page
    assert parsed.names == ['a"><b>�猫']


def test_a_run_that_goes_on_has_no_predictions(data: Dataset, tmp_path: Path) -> None:
    made = plan(cnn(data), data, tmp_path, adapt="head", cache="on")
    again = plan_recipe(made.recipe, cnn(data), data, forced=made.decisions)
    page = plan_html(again)
    Page(page)
    assert "Memory at the peak" not in page and "Predicted time" not in page and "cache_prefix" in page


def test_a_gradual_run_is_its_beginning(data: Dataset, tmp_path: Path) -> None:
    page = plan_html(plan(cnn(data, depth=2), data, tmp_path, adapt="gradual", epochs=3))
    assert "blocks thaw later" in page


def test_a_network_that_cannot_be_counted_says_so(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from frostline.plan import picture

    made = plan(cnn(data), data, tmp_path)
    assert "multiply-adds of the forward pass" in plan_html(made)
    monkeypatch.setattr(picture, "outline", lambda execution: dataclasses.replace(outline(execution), counted=False))
    page = plan_html(made)
    assert "numbers of weights, since not every product" in page and "multiply-adds a row" not in page


@pytest.fixture
def words(digit_folder: Path) -> list[Any]:
    return [
        "plan",
        digit_folder,
        "--model",
        "cnn",
        "--adapt",
        "head",
        "model.width=16",
        "data.size=28",
        "plan.channels_last=off",
        "--quiet",
    ]


def test_the_command_writes_it(command: Callable[..., Any], words: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "计划" / "plan.html"
    done = command(*words, "--html", file)
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith(f"The plan as a picture: {file}\n") and "Plan for cnn" in done.out
    assert "head" in Page(file.read_text(encoding="utf-8")).names
    again = command(*words, "--html", file)
    assert again.code != 0 and "exists already and was not written over. Choose another file" in again.err and again.out == ""
    found = one_object(command(*words, "--json", "--html", tmp_path / "2.html").out)
    assert found["html"] == str(tmp_path / "2.html") and found["model"] == "cnn"


def test_help_shows_it(command: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command("plan", "--help")
    assert "frostline plan recipe.yaml --html plan.html" in capsys.readouterr().out


def test_a_plan_of_a_text_model_in_one_sentence(texts: Dataset, tmp_path: Path) -> None:
    rows = first_rows(texts, 30)
    made: Plan = plan(fl.load("transformer", data=rows, width=16), rows, tmp_path, adapt="lora", cache="off")
    page = plan_html(made)
    assert "What stands before the frost line multiplies nothing" in page  # embeddings are looked up
    assert "Behind it" in page and "of the numbers are frozen too" in page
    assert "2 × Block" in page
