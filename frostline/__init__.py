"""Frostline: develop and fine-tune models, planned around the border between what is frozen and what learns.

    import frostline as fl

    data = fl.prepare("data/dog_vs_cat", size=224, augment=dict(horizontal_flip=True))
    model = fl.load("vgg16", task=data.task, weights="vgg16-notop.h5", head=["flatten", "dense 256 relu", "dropout 0.5"])
    plan = fl.plan(model, data, epochs=10, batch=32, optimizer="adam", lr=1e-4)
    run = fl.train(plan)
    report = fl.evaluate(run)
    fl.predict(run, "cat.jpg")

Each verb takes the product of the one before it. Nothing heavy is imported until a verb is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

# Some verbs share their names with the packages behind them (`frostline.plan` is a function, `frostline/plan/` a package).
# The packages are imported first, so that importing them later never rebinds the names: the functions below stay.
from frostline import adapt as _adapt_package  # noqa: F401
from frostline import evaluate as _evaluate_package  # noqa: F401
from frostline import plan as _plan_package  # noqa: F401
from frostline import train as _train_package  # noqa: F401
from frostline.errors import FrostlineError
from frostline.recipe import Recipe

if TYPE_CHECKING:
    from frostline.data.dataset import Dataset
    from frostline.evaluate.report import Report
    from frostline.models.model import Model
    from frostline.plan.plan import Plan
    from frostline.train.run import Run

__version__ = "0.1.0"
__all__ = ["FrostlineError", "Recipe", "adapt", "evaluate", "load", "plan", "predict", "prepare", "resume", "train"]


def prepare(data: Any = None, **options: Any) -> Dataset:
    """Raw files (or arrays, pairs, a torch dataset) to a Dataset with splits and a report.

    ``data``: a folder, a file, ``(images, labels)``, ``[{"messages": [...]}, …]``, or a torch Dataset. Options are the recipe's
    under ``data``, such as
    ``task="image-classification", size=224, val=0.2, augment=dict(shear=0.2)``; ``seed`` decides the split.
    Raises DataError where the data cannot be learned from.
    """
    from frostline.data.prepare import prepare as run

    return run(data, **options)


def load(name: Any = None, **options: Any) -> Model:
    """A network with its preprocessing: by name, from a Hugging Face folder or id, a GGUF file, a run, or an ``nn.Module`` of yours.

    ``task=data.task`` (or ``data=data``, which models from zero for text need for their vocabulary), ``weights="file"``,
    ``head=["flatten", "dense 256 relu"]``, ``pool="mean"`` and the other options of the recipe under ``model``.
    Raises ModelError where weights do not fit, are damaged or unsafe.
    """
    from frostline.api import load as run

    return run(name, **options)


def adapt(model: Model, method: Any = None, **options: Any) -> Model:
    """Draw the frost line: ``adapt(model, "head")``, ``"last 2"``, ``"full"``, ``"gradual"``, ``"lora", rank=8``, a ``PeftConfig`` …

    ``plan(model, data, adapt=…)`` does the same. Raises ModelError where the model cannot do what is asked for.
    """
    from frostline.adapt.apply import adapt as run

    return run(model, method, **options)


def plan(model: Model, data: Dataset, **options: Any) -> Plan:
    """Decide what will be done, and predict seconds and bytes; ``print`` it.

    Options are the recipe's: ``epochs=10, batch=32, optimizer="adam", lr=1e-4, adapt="head", cache="off", out="runs/a"``.
    """
    from frostline.api import plan as run

    return run(model, data, **options)


def train(plan: Plan, *, quiet: bool = False) -> Run:
    """Carry out a plan. Returns the run, a folder that holds all there is to know. Ctrl-C loses nothing.

    Raises TrainingStopped where going on would be useless, Interrupted after Ctrl-C, RunError where the folder is taken.
    """
    from frostline.api import train as run

    return run(plan, quiet=quiet)


def resume(run: Any, *, model: Model | None = None, quiet: bool = False) -> Run:
    """Go on with a run that was stopped, from its last checkpoint; the weights come out bit for bit as if it never stopped.

    ``run``: a run or its folder. ``model``: only for a module of your own, which no file can build: load it as before.
    """
    from frostline.api import resume as resume_run

    return resume_run(run, model=model, quiet=quiet)


def evaluate(run: Any, split: str | None = None, *, model: Model | None = None, written: int = 50) -> Report:
    """The report of a run (or its folder) on its test split, or another one; also written into the run's folder.

    ``written``: to how many rows a language model writes its own answers, to be compared with theirs.
    ``model``: only for a module of your own, which no file can build: ``fl.load(run, module=YourModule())``.
    """
    from frostline.api import evaluate as evaluate_run

    return evaluate_run(run, split, model=model, written=written)


def predict(run: Any, inputs: Any, **options: Any) -> list[dict[str, Any]]:
    """Labels and probabilities (of a language model, texts) for a file, a folder, a text, an array, or a list of them.

    ``run``: a run, its folder, or a Model. Options: ``column="question"`` of a table, ``encoding``, ``batch=32``, and for models that
    write ``max_new_tokens=256``.
    """
    from frostline.api import predict as predict_with

    return predict_with(run, inputs, **options)
