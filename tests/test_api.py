"""The verbs from Python: fl.prepare → load → plan → train → evaluate → predict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import frostline as fl
from frostline import api
from frostline.data.dataset import Dataset
from frostline.data.encode import split_source
from frostline.data.prepare import from_recipe
from frostline.errors import ModelError, RecipeError, RunError
from frostline.models.model import Model, logits_of
from frostline.plan.plan import Plan
from frostline.recipe import Recipe
from frostline.train import loop
from frostline.train.interrupt import Interrupted
from frostline.train.run import Run
from tests.small import review_rows
from tests.train.small import stopping


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outputs(model: Model, data: Dataset) -> torch.Tensor:
    source = split_source(data.splits["test"], data.schema, model.card.preprocess)
    model.module.eval()
    with torch.no_grad():
        return logits_of(model.module(**source.encode(np.arange(source.rows), None).inputs))


def trained(data: Dataset, name: str, **options: Any) -> tuple[Run, Model]:
    size = {"size": 28} if data.schema.task == "image-classification" else {}
    plan = fl.plan(fl.load(name, data=data, width=16, **size), data, epochs=2, batch=16, lr=0.01, **options)
    return fl.train(plan, quiet=True), plan.model


@pytest.mark.parametrize(
    ("kind", "name", "adapt"), [("digits", "cnn", "full"), ("digits", "cnn", "lora"), ("texts", "gru", "full"), ("texts", "gru", "head")]
)
def test_loaded_is_bitwise_what_was_trained(request: pytest.FixtureRequest, kind: str, name: str, adapt: str) -> None:
    data = request.getfixturevalue(kind)
    run, model = trained(data, name, adapt=adapt)
    expected = outputs(model, data)
    for again in (fl.load(run), fl.load(run.folder), fl.load(str(run.folder)), fl.load(run.model_folder)):
        assert torch.equal(outputs(again, data), expected)
    assert torch.equal(outputs(fl.load(str(run.folder), task=data.task), data), expected)


def test_evaluate_says_where_nothing_was_held_out(digits: Dataset) -> None:
    data = replace(digits, splits={"train": digits.splits["train"].slice(0, 30)})
    run, _ = trained(data, "cnn")
    assert any("the model was trained on" in note for note in fl.evaluate(run).notes)
    assert not any("the model was trained on" in note for note in fl.evaluate(run, "train").notes), "it was asked for"


def test_evaluate_writes_the_report(digits: Dataset) -> None:
    run, _ = trained(digits, "cnn")
    report = fl.evaluate(run)
    assert report.split == "test"
    assert report.rows == digits.splits["test"].num_rows
    assert len(report.history) == 2
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!")
    assert "http://" not in page.replace("http://www.w3.org", ""), "it stands alone"
    assert (run.folder / "report.json").read_text(encoding="utf-8") == report.to_json()
    assert fl.evaluate(str(run.folder), "validation").split == "validation"
    with pytest.raises(RunError, match=r"split='dev': the run .* has train, validation, test\. Choose one of them with --split"):
        fl.evaluate(run, "dev")


def test_predict_with_whatever_stands_for_the_model(texts: Dataset) -> None:
    run, model = trained(texts, "gru")
    expected = fl.predict(model, ["味道 很好", "awful"])
    for given in (run, run.folder, str(run.folder), run.model_folder):
        assert fl.predict(given, ["味道 很好", "awful"]) == expected
    assert {row["label"] for row in expected} <= {"好", "坏"}
    with pytest.raises(ModelError, match="'nowhere' holds no saved model"):
        fl.predict("nowhere", "x")


def test_runs_are_numbered_and_named(texts: Dataset, here: Path) -> None:
    assert trained(texts, "gru")[0].folder == Path("runs/gru-text-classification-1")
    assert trained(texts, "gru")[0].folder == Path("runs/gru-text-classification-2")


def test_out(texts: Dataset, here: Path) -> None:
    run, _ = trained(texts, "gru", out="跑/一")
    assert run.folder == Path("跑/一")
    assert run.recipe.out is None, "its recipe can be run again"
    with pytest.raises(RecipeError, match=r"out='跑/一' holds another run"):
        trained(texts, "gru", out="跑/一")


def test_a_folder_called_like_a_network(here: Path, reviews: Path) -> None:
    """The recipe names the network, not the folder that happens to be there."""
    (here / "gru").mkdir()
    data = fl.prepare(reviews)
    run, _ = trained(data, "gru")
    assert run.recipe.model.name == "gru"
    (here / "rows.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in review_rows(10)))
    assert trained(fl.prepare("rows.csv"), "gru")[0].recipe.data.path == str(here / "rows.csv")


def test_tuning_a_run_further_keeps_its_path(texts: Dataset, here: Path) -> None:
    trained(texts, "gru", out="first")
    second = fl.train(fl.plan(fl.load("first"), texts, epochs=1, adapt="head", out="second"), quiet=True)
    assert second.recipe.model.name == str(here / "first" / "model")
    expected = outputs(fl.load(second), texts)
    again = api.train(fl.plan(fl.load(second.recipe.model.name), texts, epochs=1, adapt="head"), quiet=True)
    assert torch.equal(outputs(fl.load(again), texts), expected)
    (second.folder / "cost.json").unlink()
    api.resume(second, quiet=True)
    assert torch.equal(outputs(fl.load(second), texts), expected), "what is frozen comes from the first run"


def test_unfinished(texts: Dataset, here: Path) -> None:
    run, _ = trained(texts, "gru")
    run.model_folder.rename(here / "elsewhere")
    for verb in (fl.load, fl.evaluate, lambda run: fl.predict(run, "x")):
        with pytest.raises(
            RunError, match=r"is not finished, expected its model in model/\. Go on with it: frostline train --resume runs/"
        ):
            verb(run)


def test_resume(texts: Dataset) -> None:
    run, model = trained(texts, "gru")
    expected = outputs(model, texts)
    with pytest.raises(RunError, match="is finished"):
        api.resume(run.folder)
    (run.folder / "cost.json").unlink()
    assert api.resume(run, quiet=True).cost
    assert torch.equal(outputs(fl.load(run), texts), expected)


def test_nothing_is_left_where_a_run_could_not_begin(texts: Dataset, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise KeyboardInterrupt

    plan = fl.plan(fl.load("gru", data=texts, width=16), texts, out="run")
    monkeypatch.setattr(Dataset, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        fl.train(plan, quiet=True)
    assert not (here / "run").exists()


def test_say(texts: Dataset) -> None:
    """Notes go where they are sent; quiet sends them nowhere."""
    lines: list[str] = []
    api.train(fl.plan(fl.load("gru", data=texts, width=16), texts, epochs=2), say=lines.append)
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    api.train(fl.plan(fl.load("gru", data=texts, width=16), texts, epochs=1), say=lines.append, quiet=True)
    assert len(lines) == 2


def test_options_are_checked(texts: Dataset) -> None:
    model = fl.load("gru", data=texts, width=16)
    for options, part in (
        ({"lr": "fast"}, "train.lr got 'fast'"),
        ({"epoch": 3}, "'train.epochs'"),
        ({"loss": "mse"}, "train.loss: 'mse'"),
    ):
        with pytest.raises(RecipeError) as caught:
            fl.plan(model, texts, **options)
        assert part in str(caught.value)


def test_the_public_names(capsys: pytest.CaptureFixture[str]) -> None:
    """Importing the packages of the same names later does not take the verbs away."""
    import frostline.evaluate.report
    import frostline.plan.plan
    import frostline.train.loop  # noqa: F401

    assert {"adapt", "evaluate", "load", "plan", "predict", "prepare", "train", "Recipe", "FrostlineError"} <= set(fl.__all__)
    public = {name: getattr(fl, name) for name in fl.__all__}
    assert all(callable(verb) and verb.__doc__ and verb.__name__ == name for name, verb in public.items())
    assert fl.Recipe is Recipe
    assert capsys.readouterr() == ("", "")


def test_adapt(texts: Dataset) -> None:
    model = fl.adapt(fl.load("gru", data=texts, width=16), "head")
    learning = [name for name, parameter in model.module.named_parameters() if parameter.requires_grad]
    assert learning
    assert all(name.startswith(tuple(model.head)) for name in learning)


class _Own(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = torch.nn.Linear(192, 8), torch.nn.Linear(8, 10)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(pixel_values.flatten(1)).relu())


def test_a_module_of_ones_own_goes_the_whole_road(digits: Dataset, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file can build it, so it is handed over again wherever it is needed."""

    def made() -> Plan:
        torch.manual_seed(0)
        return fl.plan(fl.load(_Own(), task=digits.task, size=8), digits, adapt="full", epochs=2, out="own")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_on_interrupt", stopping(3))
        with pytest.raises(Interrupted):
            fl.train(made(), quiet=True)
    with pytest.raises(RunError, match=r"module of your own.*fl\.resume"):
        fl.resume("own", quiet=True)
    run = fl.resume("own", model=fl.load(_Own(), task=digits.task, size=8), quiet=True)
    report = fl.evaluate(run, model=fl.load(run, module=_Own()))
    assert report.rows == digits.splits["test"].num_rows and (run.folder / "report.html").exists()
    assert set(fl.predict(fl.load(run, module=_Own()), np.zeros((8, 8, 3), dtype=np.uint8))[0]) >= {"label", "probability"}


def test_a_seed_of_its_own_divides_the_rows_the_same_way_when_the_run_is_rerun(reviews: Path) -> None:
    def ids(data: Dataset) -> dict[str, list[str]]:
        return {name: table["id"].to_pylist() for name, table in data.splits.items()}

    data = fl.prepare(reviews, seed=5, limit=60)
    assert ids(data) != ids(fl.prepare(reviews, limit=60))
    model = fl.load("mlp", data=data, seed=0, width=8, depth=1)
    run = fl.train(fl.plan(model, data, epochs=1, cache="off"), quiet=True)
    recipe = Recipe.from_yaml(run.folder / "recipe.yaml")
    assert (recipe.seed, recipe.data.seed) == (0, 5)
    assert ids(from_recipe(recipe, progress=False)) == ids(data) == ids(run.data)


def test_a_plan_is_carried_out_once(texts: Dataset) -> None:
    plan = fl.plan(fl.load("gru", data=texts, width=16, depth=1), texts, epochs=1, out="once")
    fl.train(plan, quiet=True)
    with pytest.raises(RunError, match="carried out already"):
        fl.train(plan, quiet=True)


def test_an_optimiser_that_cannot_be_made_takes_no_folder(digits: Dataset, here: Path) -> None:
    plan = fl.plan(fl.load("cnn", data=digits, width=16, size=28), digits, adapt="head", optimizer="muon", out="muon")
    with pytest.raises(RecipeError, match="muon"):
        fl.train(plan, quiet=True)
    assert not (here / "muon").exists()
