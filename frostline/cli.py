"""The command line: the verbs as commands. Only this module prints and exits.

Exit codes: 0 done, 1 a defect of ours, 2 an error that is the user's to mend, 3 training stopped because going on was
useless, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from frostline.errors import FrostlineError, RecipeError

_OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_]+)*=", re.ASCII)

_EXAMPLES = """examples:
  frostline train photos/ --model efficientnet-lite0        a folder per class; tunes a new head
  frostline train reviews.csv --model gru train.epochs=5    texts and labels; a network from zero
  frostline train photos/ --adapt "last 2" train.lr=1e-4    the last two blocks learn as well
  frostline init photos/ > recipe.yaml                      write a commented recipe, edit it, then
  frostline train recipe.yaml train.lr=3e-4                 run it, with one value changed
  frostline evaluate runs/gru-reviews-1                     the report of a run
  frostline predict runs/gru-reviews-1 more.csv --json
  frostline train --resume runs/gru-reviews-1               go on after Ctrl-C

frostline COMMAND --help shows a command's options; every key of a recipe can be set as KEY=VALUE."""

_DATA = "a folder, a file (CSV, TSV, JSONL, Parquet, IDX), or a recipe (.yaml)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    words, overrides = _split(arguments)
    options = parser.parse_args(words)
    options.overrides = overrides
    if options.command is None:
        parser.print_help()
        return 0
    try:
        options.run(options)
    except FrostlineError as error:
        return _fail(options, str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail(options, "Stopped.", 130)
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        sys.stderr.close()
    return 0


def _fail(options: argparse.Namespace, message: str, code: int) -> int:
    if getattr(options, "json", False):
        print(json.dumps({"error": message, "exit_code": code}, ensure_ascii=False))
    colour = ("\033[31m", "\033[0m") if sys.stderr.isatty() and code != 130 else ("", "")
    print(f"{colour[0]}frostline {options.command}:{colour[1]} {message}", file=sys.stderr)
    return code


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """KEY=VALUE words apart from the others; all words after `predict` are inputs and stay."""
    if arguments[:1] == ["predict"]:
        return arguments, []
    overrides = [word for word in arguments if _OVERRIDE.match(word)]
    return [word for word in arguments if not _OVERRIDE.match(word)], overrides


def _parser() -> argparse.ArgumentParser:
    from frostline import __version__

    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="frostline", description="Develop and fine-tune models.", epilog=_EXAMPLES, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"frostline {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, run: Callable[[Any], None], text: str, *, json: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, epilog=_HELP.get(name, ""), formatter_class=raw)
        sub.set_defaults(run=run)
        if json:
            sub.add_argument("--json", action="store_true", help="print one JSON object on standard output and nothing else there")
        sub.add_argument("--quiet", action="store_true", help="no progress, no notes; results and errors only")
        return sub

    sub = command("init", _init, "Look at the data and write a commented recipe for it.", json=False)
    sub.add_argument("data", help="a folder or a file")
    _model_flags(sub)
    for name, run, text in [
        ("check", _check, "Find everything that is wrong before a run; train nothing."),
        ("plan", _plan, "Say what a run will do, why, how long it takes and how much memory it needs."),
        ("train", _train, "Train or fine-tune, in a new folder."),
        ("find-lr", _find_lr, "Try rising learning rates on the first batches and suggest one."),
    ]:
        sub = command(name, run, text)
        sub.add_argument("data", nargs="?", help=_DATA)
        _model_flags(sub)
        if name == "train":
            sub.add_argument("--resume", metavar="RUN", help="go on with a run that was stopped")
    sub = command("prepare", _prepare, "Read, clean and split the data, and print the report.")
    sub.add_argument("data", help=_DATA)
    sub.add_argument("--task", help="image-classification or text-classification")
    sub.add_argument("--out", help="write the prepared dataset into this folder")
    sub = command("evaluate", _evaluate, "Score a run on its test split and write report.html into its folder.")
    sub.add_argument("folder", metavar="RUN")
    sub.add_argument("--split", choices=("train", "validation", "test"), help="test, where there is one, when not given")
    sub = command("predict", _predict, "Predict with a run: files, folders, a CSV, or lines of standard input (-).")
    sub.add_argument("folder", metavar="RUN", help="a run's folder or a model's folder")
    sub.add_argument("inputs", nargs="*", metavar="FILE", help="files, folders, a CSV or JSONL; - reads lines from standard input")
    sub.add_argument("--text", action="append", default=[], help="a text itself; may be repeated")
    sub.add_argument("--batch", type=int, default=32)
    sub = command("show", _show, "Show a run, or `show data DATA`: rows as the model will see them.")
    sub.add_argument("what", nargs="+", metavar="RUN | data DATA")
    _model_flags(sub)
    sub = command("info", _info, "Show versions and what this machine can do.")
    sub.add_argument("--calibrate", action="store_true", help="measure the machine again")
    return parser


_HELP = {
    "train": "examples:\n  frostline train photos/ --model vgg16 model.weights=vgg16-notop.h5 --adapt head --out runs/vgg train.epochs=10\n"
    "  frostline train reviews.csv --task text-classification --model path/to/bert --adapt lora adapt.rank=8\n"
    "  frostline train recipe.yaml train.lr=3e-4 train.epochs=5\n  frostline train --resume runs/vgg",
    "predict": "examples:\n  frostline predict runs/vgg cat.jpg more-photos/\n  frostline predict runs/gru --text '这家店很好'\n"
    "  cat lines.txt | frostline predict runs/gru - --json",
    "plan": "examples:\n  frostline plan photos/ --model efficientnet-lite0\n  frostline plan recipe.yaml plan.cache=off",
    "check": "examples:\n  frostline check photos/\n  frostline check recipe.yaml --json",
    "evaluate": "examples:\n  frostline evaluate runs/vgg\n  frostline evaluate runs/vgg --split validation --json",
    "init": "examples:\n  frostline init photos/ > recipe.yaml\n  frostline init reviews.csv --out reviews.yaml --model gru",
    "prepare": "examples:\n  frostline prepare photos/ data.size=224 --out prepared/photos\n"
    "  frostline prepare reviews.csv data.label_column=stars",
    "show": "examples:\n  frostline show runs/vgg\n  frostline show data reviews.csv --model gru",
    "find-lr": "examples:\n  frostline find-lr photos/ --model efficientnet-lite0 --out lr.svg",
    "info": "examples:\n  frostline info\n  frostline info --calibrate --json",
}


def _model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", help="image-classification or text-classification; guessed when not given")
    parser.add_argument(
        "--model", metavar="NAME|PATH", help="vgg16, efficientnet-lite0, cnn, mlp, lstm, gru, transformer, or an HF folder or id"
    )
    parser.add_argument("--adapt", metavar="A", help='head, "last N", full, lora or gradual')
    parser.add_argument("--out", help="folder of the run (or file that is written)")


def _recipe(options: argparse.Namespace, data: str | None) -> Any:
    """The recipe and its sources, from a YAML file or a data path, the flags, and KEY=VALUE."""
    from frostline.recipe_reader import resolve

    flags = {"data.task": options.task, "model.name": getattr(options, "model", None), "adapt": getattr(options, "adapt", None)}
    path = None
    if data is not None and Path(data).suffix in (".yaml", ".yml"):
        path = data
    else:
        flags["data.path"] = data
    overrides = [f"{key}={value}" for key, value in flags.items() if value is not None] + options.overrides
    recipe, sources = resolve(path, overrides)
    if options.out is not None and options.command in ("train", "plan", "check"):
        recipe = recipe.with_values({"out": options.out})
    if recipe.data.path is None and recipe.data.train is None:
        raise RecipeError(f"no data was given, expected {_DATA}. For example: frostline {options.command} photos/")
    return recipe, sources


def _stages(options: argparse.Namespace) -> Any:
    """Recipe → data → model → plan, each said to the user as it comes."""
    from frostline.check import refuse_conflicts
    from frostline.data.prepare import from_recipe
    from frostline.models.load import from_recipe as load_model
    from frostline.plan.plan import plan_recipe

    recipe, sources = _recipe(options, options.data)
    say = _say(options)
    for key, source in sources.items():
        say(f"{key}: from {source}")
    data = from_recipe(recipe)
    say(f"\n{data}\n")
    refuse_conflicts(recipe, data.schema, data)
    model = load_model(recipe, data)
    plan = plan_recipe(recipe, model, data)
    say(f"{plan}\n")
    return plan


def _say(options: argparse.Namespace) -> Callable[[str], None]:
    """Where notes go: standard output, or standard error where --json keeps standard output for itself."""

    def say(text: str) -> None:
        from tqdm.auto import tqdm

        tqdm.write(text, file=sys.stderr if options.json else sys.stdout)

    return (lambda text: None) if options.quiet else say


def _print(options: argparse.Namespace, content: dict[str, Any] | list[Any], text: str) -> None:
    print(json.dumps(content, ensure_ascii=False, default=str) if getattr(options, "json", False) else text)


def _init(options: argparse.Namespace) -> None:
    from frostline.init import commented_recipe

    recipe, _ = _recipe(options, options.data)
    text = commented_recipe(recipe)
    if options.out is None:
        print(text, end="")
        return
    if Path(options.out).exists():
        raise RecipeError(f"{options.out!r} exists already and was not written over. Choose another file with --out")
    from frostline.files import write_atomically

    write_atomically(Path(options.out), text.encode())
    print(f"Wrote {options.out}. Edit it, then: frostline train {options.out}")


def _check(options: argparse.Namespace) -> None:
    from frostline.check import check

    recipe, _ = _recipe(options, options.data)
    findings = check(recipe)
    _print(options, findings.to_dict(), str(findings))
    if findings.errors:
        raise SystemExit(2)


def _prepare(options: argparse.Namespace) -> None:
    from frostline.data.prepare import from_recipe

    recipe, _ = _recipe(options, options.data)
    data = from_recipe(recipe)
    if options.out is not None:
        if Path(options.out).exists() and any(Path(options.out).iterdir()):
            raise RecipeError(f"--out {options.out!r} is not empty; nothing was written. Choose another folder")
        data.save(options.out)
    text = f"{data}" + (f"\nWrote {options.out}. Train on it with: frostline train {options.out}" if options.out else "")
    _print(options, {"report": data.report.to_dict(), "fingerprint": data.fingerprint, "out": options.out}, text)


def _plan(options: argparse.Namespace) -> None:
    notes = _say(options)
    options.quiet, quiet = True, options.quiet
    plan = _stages(options)
    options.quiet = quiet
    if not quiet and not options.json:
        notes(f"{plan.data}\n")
    _print(options, plan.to_dict(), str(plan))


def _train(options: argparse.Namespace) -> None:
    from frostline import api

    if options.resume is not None:
        run = api.resume(options.resume, quiet=options.quiet, say=_say(options))
    else:
        run = api.train(_stages(options), quiet=options.quiet, say=_say(options))
    predicted, actual = run.cost["predicted"], run.cost["actual"]
    text = (
        f"\nSaved {run.model_folder} ({actual['seconds']:.1f} s, predicted {predicted['seconds']:.1f} s; "
        f"peak memory {actual['peak_bytes'] / 1e6:.0f} MB, predicted {predicted['peak_bytes'] / 1e6:.0f} MB)\n"
        f"Next: frostline evaluate {run.folder}\n      frostline predict {run.folder} FILE"
    )
    _print(options, {"run": str(run.folder), "model": str(run.model_folder), "epochs": run.history, "cost": run.cost}, text)


def _evaluate(options: argparse.Namespace) -> None:
    from frostline import api

    report = api.evaluate(options.folder, options.split, quiet=options.quiet)
    _print(
        options,
        {**report.to_dict(), "html": f"{options.folder}/report.html"},
        f"{report}\n\nThe whole report: {options.folder}/report.html",
    )


def _predict(options: argparse.Namespace) -> None:
    import time

    from frostline import api

    inputs: list[str] = []
    for word in options.inputs:
        inputs += [line.rstrip("\n") for line in sys.stdin] if word == "-" else [word]
    if not inputs and not options.text:
        raise RecipeError(
            f"nothing to predict was given, expected files, folders, --text or -. For example: frostline predict {options.folder} FILE"
        )
    model = api.load(options.folder)
    start = time.perf_counter()
    results = api.predict(model, inputs, batch=options.batch, texts=options.text)
    rate = len(results) / max(time.perf_counter() - start, 1e-9)
    if options.json:
        _print(options, {"predictions": results, "rows_per_second": rate}, "")
        return
    for result in results:
        print(
            f"{result['input']}\t{result['error'] if 'error' in result else result['label']}\t{result.get('probability', float('nan')):.4f}"
        )
    if not options.quiet:
        print(f"{len(results)} rows, {rate:.1f} rows/s", file=sys.stderr)


def _show(options: argparse.Namespace) -> None:
    if options.what[0] == "data" and len(options.what) == 2:
        from frostline.check import Findings, rows_as_seen
        from frostline.data.prepare import from_recipe
        from frostline.models.load import from_recipe as load_model

        recipe, _ = _recipe(options, options.what[1])
        data = from_recipe(recipe)
        rows = rows_as_seen(load_model(recipe, data), data, count=8)
        _print(options, {"rows": rows}, str(Findings(rows=rows)))
        return
    from frostline.train.run import open_run

    run = open_run(options.what[0])
    lines = [str(run), *(f"  {record}" for record in run.history)]
    _print(options, {"run": str(run.folder), "plan": run.plan, "history": run.history, "cost": run.cost}, "\n".join(lines))


def _info(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    import torch
    import transformers

    from frostline import __version__
    from frostline.plan.machine import machine, memory_limit

    here = machine(again=options.calibrate)
    content = {
        "frostline": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "free_memory_gb": memory_limit() / 1e9,
    }
    content |= asdict(here)
    _print(
        options,
        content,
        "\n".join(f"{name:<22} {value:.1f}" if isinstance(value, float) else f"{name:<22} {value}" for name, value in content.items()),
    )


def _find_lr(options: argparse.Namespace) -> None:
    from frostline.files import write_atomically
    from frostline.train.find_lr import find_lr

    found = find_lr(_stages(options))
    out = Path(options.out or "lr.svg")
    write_atomically(out, found.svg().encode())
    text = f"suggested: train.lr={found.suggestion:.1e} (loss falls fastest there; it blows up at {found.diverges_at:.1e}). Picture: {out}"
    _print(options, {"suggestion": found.suggestion, "lrs": found.lrs, "losses": found.losses, "picture": str(out)}, text)
