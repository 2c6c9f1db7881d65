"""The verbs, put together from the stages. ``frostline/__init__.py`` and the command line both call these."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from frostline.adapt.rebuild import rebuild
from frostline.adapt.settings import in_place
from frostline.conflicts import refuse_conflicts
from frostline.data.clean import CLASSIFICATION
from frostline.data.dataset import Dataset
from frostline.data.encode import split_source
from frostline.errors import RunError
from frostline.evaluate.answers import compare_written
from frostline.evaluate.html import report_html
from frostline.evaluate.predict import predict as predict_inputs
from frostline.evaluate.report import Background, Report, build_report
from frostline.evaluate.score import score_split
from frostline.evaluate.task_report import build_task_report
from frostline.files import write_atomically
from frostline.kernels.large_blocks import build_large_blocks_ahead
from frostline.models import load as loading
from frostline.models.build import names_for
from frostline.models.model import Model
from frostline.models.save import saved_folder
from frostline.plan.cost import Cost
from frostline.plan.decision import Decision
from frostline.plan.options import plan_options
from frostline.plan.passes.reference import needed
from frostline.plan.plan import Plan, plan_recipe
from frostline.progress import say, say_nothing
from frostline.recipe import Recipe
from frostline.train.loop import start, train_into
from frostline.train.record import Recorder
from frostline.train.run import Run, create_run, open_run

Say = Callable[[str], None]


def load(name: Any = None, **options: Any) -> Model:
    """A network by name, from a folder or hub id, from a run, or a module of the user's; see ``frostline.load``."""
    if isinstance(name, str | os.PathLike) and _is_run(name):
        name = Run(Path(name))
    if isinstance(name, Run):
        name = _model_folder(name)
    if "data" in options or "task" in options:
        build_large_blocks_ahead()  # it is going to be trained
    return loading.load(name, rebuild=rebuild, **options)


def load_trained(run: Run | str | os.PathLike[str]) -> Model:
    """The model of a run, of its folder, or of a folder that holds nothing but a saved model. Raises where there is none."""
    return load(run if isinstance(run, Run) or _is_run(run) else saved_folder(Path(run)))


def _is_run(folder: str | os.PathLike[str]) -> bool:
    return all(Path(folder, name).is_file() for name in ("recipe.yaml", "plan.json"))


def _model_folder(run: Run) -> Path:
    if not run.model_folder.is_dir():
        raise RunError(
            f"{str(run.folder)!r} is not finished, expected its model in model/. Go on with it: frostline train --resume {run.folder}"
        )
    return run.model_folder


def plan(model: Model, data: Dataset, **options: Any) -> Plan:
    """Plan a run from Python options; see ``frostline.plan``."""
    recipe = plan_options(model, data, options)
    refuse_conflicts(recipe, data.schema, data)
    return plan_recipe(recipe, model, data)


def train(plan: Plan, *, quiet: bool = False, say: Say | None = None) -> Run:
    """Carry out a plan in a new folder."""
    if plan.carried_out:
        raise RunError("this plan was carried out already and its model is trained. Make a new one: fl.plan(fl.load(…), data)")
    start(plan)  # an optimiser that cannot be made is told before a folder is taken and the frozen part is run
    run = create_run(plan.recipe, _run_name(plan))
    try:
        write_atomically(run.folder / "recipe.yaml", _rerunnable(plan).to_yaml().encode())
        plan.data.save(run.folder / "data")
        run.write_json("plan.json", plan.to_dict())
    except BaseException:
        shutil.rmtree(run.folder, ignore_errors=True)  # it was new or empty, and half a run could not be resumed
        raise
    plan.carried_out = True
    train_into(run, plan, Recorder(run, plan), say=_voice(say, quiet), quiet=quiet)
    return run


def resume(run: Run | str | os.PathLike[str], *, model: Model | None = None, quiet: bool = False, say: Say | None = None) -> Run:
    """Go on with a run from its last checkpoint, as its recipe, its plan and its rows were."""
    run = run if isinstance(run, Run) else open_run(run)
    if run.cost:
        raise RunError(
            f"{str(run.folder)!r} is finished, expected a run that was stopped. Look at it with: frostline evaluate {run.folder}"
        )
    recipe, data = run.recipe, run.data
    if model is None and run.plan["model"] == "custom":
        raise RunError(
            f"{str(run.folder)!r} trains a module of your own, which no file can build. "
            f"Go on in Python: fl.resume({str(run.folder)!r}, model=fl.load(YourModule(), task=data.task, size=…))"
        )
    decisions = [Decision(**decision) for decision in run.plan["decisions"]]
    model = model or loading.from_recipe(recipe, data, rebuild=rebuild)
    plan = plan_recipe(recipe, model, data, forced=decisions)
    plan.predicted = Cost(**run.plan["predicted"])
    train_into(run, plan, Recorder(run, plan, resume=True), say=_voice(say, quiet), quiet=quiet)
    return run


def evaluate(
    run: Run | str | os.PathLike[str], split: str | None = None, *, model: Model | None = None, written: int = 50, quiet: bool = False
) -> Report:
    """Score a split of a run, and write report.json and report.html into its folder.

    ``written``: of a language model's rows, how many are answered by the model and compared with what the row holds.
    """
    run = run if isinstance(run, Run) else open_run(run)
    model, data = model or load(run), run.data
    asked, split = split, split or next(name for name in ("test", "validation", "train") if name in data.splits)
    if split not in data.splits:
        raise RunError(f"split={split!r}: the run {str(run.folder)!r} has {', '.join(data.splits)}. Choose one of them with --split")
    recipe = run.recipe
    source = split_source(data.splits[split], data.schema, model.card.preprocess, recipe=recipe.data, name=split)
    compared = needed(recipe.train, data.schema) and not recipe.adapt.modules_to_save
    scores = score_split(model, data.schema, source, recipe.train.batch, quiet, reference=compared)
    labels = source.labels.numpy()
    known: Background = {"history": run.history, "cost": run.cost or None, "data_report": data.report.to_dict()}
    if data.schema.task in CLASSIFICATION:
        report = build_report(data.schema, scores, labels, _origins(source.table), split=split, **known)
    else:
        answers = compare_written(model, source.table, recipe.data, rows=written)
        report = build_task_report(data.schema, scores, labels, answers, split=split, **known)
        if needed(recipe.train, data.schema) and not (compared and in_place(model)):
            report.notes.append("the reference model is gone: rewards here are log-probabilities of the answers alone")
    if asked is None and split == "train":
        report.notes.append("no rows are held out: these are the rows that the model was trained on")
    page = report_html(report, f"{model.card.name} · {run.folder.name}", max_pixels=recipe.data.max_pixels)
    write_atomically(run.folder / "report.json", report.to_json().encode())
    write_atomically(run.folder / "report.html", page.encode())
    return report


def predict(run: Any, inputs: Any, *, model: Model | None = None, **options: Any) -> list[dict[str, Any]]:
    """Predict with a run, a model's folder or a Model; see ``frostline.predict``. ``model``: the run's, where it is loaded already."""
    if isinstance(run, Model):
        return predict_inputs(run, inputs, **options)
    model = model or load_trained(run)
    if isinstance(run, Run) or _is_run(run):
        data = (run if isinstance(run, Run) else Run(Path(run))).recipe.data
        own = {"usual_column": data.input_column, "encoding": data.encoding, "max_pixels": data.max_pixels, "data": data}
        options = {**own, **options}
    return predict_inputs(model, inputs, **options)


def _voice(given: Say | None, quiet: bool) -> Say:
    return say_nothing if quiet else (given or say)


def _run_name(plan: Plan) -> str:
    source = plan.recipe.data.path or plan.data.schema.task
    words = [Path(plan.recipe.model.name or plan.model.card.name).name, Path(source).stem]
    return re.sub(r"[^\w.-]+", "-", "-".join(words)).strip("-.") or "run"


def _rerunnable(plan: Plan) -> Recipe:
    """The recipe as the run's folder holds it: paths made absolute, and no ``out``, since that folder is taken."""
    recipe = plan.recipe
    paths = {f"data.{name}": getattr(recipe.data, name) for name in ("path", "train", "validation", "test")}
    own = recipe.model.name in names_for(plan.data.schema)  # one of our networks, even where a folder is called cnn
    paths |= {"model.name": None if own else recipe.model.name, "model.weights": recipe.model.weights}
    found = {key: os.path.abspath(path) for key, path in paths.items() if path is not None and os.path.exists(path)}
    return recipe.with_values({**found, "out": None})


def _origins(table: Any) -> list[str]:
    for column in ("path", "text", "origin"):
        if column in table.column_names:
            return table[column].to_pylist()
    return table["id"].to_pylist()
