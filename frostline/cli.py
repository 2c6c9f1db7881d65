"""The command line: the verbs as commands. Only this module prints and exits; its grammar is in commands.py.

Exit codes: 0 done, 1 a defect of ours, 2 an error that is the user's to mend, 3 training stopped because going on was
useless, 130 stopped by Ctrl-C, 141 the reader of the output has gone.
"""

from __future__ import annotations

import argparse
import atexit
import dataclasses
import errno
import functools
import gc
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from frostline import commands
from frostline.errors import DataError, FrostlineError, RecipeError, RunError

_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""What a system call can fail with that is the user's to mend, wherever it happens."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    atexit.register(gc.freeze)  # else Python looks all modules through once more as it ends, for most of a second
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = argparse.Namespace(command=None, json="--json" in words)
    try:
        parsed = commands.parse(words)
        if parsed is None:
            print(commands.show_help(), end="", flush=True)
            return 0
        options = parsed
        code = _verb(options.command)(options) or 0
        sys.stdout.flush()  # here a reader that has gone can still be noticed
        return code
    except FrostlineError as error:
        return _fail(options, str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail(options, "Stopped.", 130)
    except BrokenPipeError:  # the reader of our output (head, less) has gone; what is left in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except OSError as error:
        if error.errno not in _THE_DISK:
            raise
        return _fail(options, f"{error.strerror}{f': {error.filename!r}' if error.filename else ''}. Look at the disk with: df -h", 2)


def _verb(name: str) -> Callable[[argparse.Namespace], int | None]:
    return {
        "init": _init,
        "check": _check,
        "prepare": _prepare,
        "plan": _plan,
        "train": _train,
        "find-lr": _find_lr,
        "evaluate": _evaluate,
        "predict": _predict,
        "show": _show,
        "info": _info,
    }[name]


def _fail(options: argparse.Namespace, message: str, code: int) -> int:
    if getattr(options, "json", False):
        print(json.dumps({"error": message, "exit_code": code}, ensure_ascii=False))
    colour = ("\033[31m", "\033[0m") if sys.stderr.isatty() and code != 130 else ("", "")
    who = " ".join(["frostline", *([options.command] if options.command else [])])
    print(f"{colour[0]}{who}:{colour[1]} {message}", file=sys.stderr)
    return code


def _print(options: argparse.Namespace, content: Mapping[str, Any], text: str) -> None:
    print(json.dumps(_plain(content), ensure_ascii=False, allow_nan=False, default=str) if options.json else text)


def _plain(value: Any) -> Any:
    """What JSON has no word for, a number that is not finite, becomes null."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _say(options: argparse.Namespace) -> Callable[[str], None]:
    """Where notes go: standard output, or standard error where --json keeps standard output for itself."""

    def say(text: str) -> None:
        from tqdm.auto import tqdm

        tqdm.write(text, file=sys.stderr if options.json else sys.stdout)

    return (lambda text: None) if options.quiet else say


def _recipe(options: argparse.Namespace, data: str | None) -> Any:
    """The recipe and its sources, from a YAML file or a data path, the flags, and KEY=VALUE."""
    from frostline.recipe_reader import resolve

    is_recipe = data is not None and Path(data).suffix.lower() in (".yaml", ".yml")
    flags = {
        "data.path": None if is_recipe else data,
        "data.task": options.task,
        "model.name": getattr(options, "model", None),
        "adapt": getattr(options, "adapt", None),
        "out": options.out if options.command in ("train", "plan", "check") else None,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    recipe, sources = resolve(data if is_recipe else None, options.overrides, given)
    elsewhere = getattr(options, "on", None) is not None  # nothing is read there
    if not elsewhere and recipe.data.path is None and recipe.data.train is None:
        raise RecipeError(f"no data was given, expected {commands.DATA}. For example: frostline {options.command} photos/")
    return recipe, sources


def _show_settings(say: Callable[[str], None], recipe: Any, sources: Mapping[str, str]) -> None:
    for key, source in sources.items():
        say(f"{key} = {functools.reduce(getattr, key.split('.'), recipe)} ({source})")


def _stages(options: argparse.Namespace) -> Any:
    """Recipe → data → model → plan, each said to the user as it comes, the plan itself by the caller."""
    from frostline.adapt.rebuild import rebuild
    from frostline.check import read_data
    from frostline.conflicts import refuse_conflicts
    from frostline.kernels.large_blocks import build_large_blocks_ahead
    from frostline.models.load import from_recipe as load_model
    from frostline.plan.plan import plan_recipe

    recipe, sources = _recipe(options, options.data)
    build_large_blocks_ahead()
    say = _say(options)
    _show_settings(say, recipe, sources)
    if options.command == "find-lr":
        recipe = dataclasses.replace(recipe, out=None)
    recipe, data, filled = read_data(recipe, sources, progress=not options.quiet)
    _show_settings(say, recipe, dict.fromkeys(filled, "prepared data"))
    say(f"\n{data}\n")
    refuse_conflicts(recipe, data.schema, data)
    return plan_recipe(recipe, load_model(recipe, data, rebuild=rebuild), data)


def _refuse_settings(options: argparse.Namespace, why: str) -> None:
    """Raise where something was set that would be ignored."""
    flags = {name: getattr(options, name, None) for name in ("data", "task", "model", "adapt", "out")}
    given = [
        *options.overrides,
        *(f"{'' if name == 'data' else f'--{name} '}{value}" for name, value in flags.items() if value is not None),
    ]
    if given:
        raise RecipeError(f"got {given[0]!r}, but {why}")


def _init(options: argparse.Namespace) -> None:
    from frostline.files import write_atomically
    from frostline.init import commented_recipe

    if options.out is not None and Path(options.out).exists():
        raise RecipeError(f"{options.out!r} exists already and was not written over. Choose another file with --out")
    recipe, _ = _recipe(options, options.data)
    text = commented_recipe(recipe, progress=not options.quiet)
    if options.out is None:
        print(text, end="")
        return
    write_atomically(Path(options.out), text.encode())
    print(f"Wrote {options.out}. Edit it, then: frostline train {options.out}")


def _check(options: argparse.Namespace) -> int:
    from frostline.check import check

    recipe, sources = _recipe(options, options.data)
    findings = check(recipe, sources=sources, progress=not options.quiet)
    _print(options, findings.to_dict(), str(findings))
    return RecipeError.exit_code if findings.errors else 0


def _prepare(options: argparse.Namespace) -> None:
    from frostline.data.prepare import from_recipe

    recipe, _ = _recipe(options, options.data)
    out = None if options.out is None else Path(options.out)
    if out is not None and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise RunError(
            f"--out {options.out!r} {'is not empty' if out.is_dir() else 'is a file'}; nothing was written. Choose another folder"
        )
    data = from_recipe(recipe, progress=not options.quiet)
    if out is not None:
        data.save(out)
    text = f"{data}" + (f"\nWrote {out}. Train on it with: frostline train {out}" if out else "")
    _print(options, {"report": data.report.to_dict(), "fingerprint": data.fingerprint, "out": options.out}, text)


def _plan(options: argparse.Namespace) -> None:
    if options.on is not None:
        gc.disable()  # nearly all that is made is imported, and stays: to look it through again and again takes a fifth of the time
        try:
            _plan_elsewhere(options)
        finally:
            gc.enable()
        return
    alone = [f"--{name} {value}" for name in ("rows", "labelled") if (value := getattr(options, name)) is not None]
    if alone:
        raise RecipeError(f"got {alone[0]!r} without --on; a plan for this machine counts the data itself. Remove it, or use: --on this")
    if options.html is not None and Path(options.html).exists():
        raise RunError(f"--html {options.html!r} exists already and was not written over. Choose another file")
    plan = _stages(options)
    content, said = plan.to_dict(), str(plan)
    if options.html is not None:
        from frostline.files import write_atomically
        from frostline.plan.picture import plan_html

        write_atomically(Path(options.html), plan_html(plan).encode())
        content, said = {**content, "html": options.html}, f"{said}\n\nThe plan as a picture: {options.html}"
    _print(options, content, said)


def _plan_elsewhere(options: argparse.Namespace) -> None:
    """A run on a machine that need not be at hand, from the model's config alone."""
    from frostline.conflicts import conflicts_of_recipe
    from frostline.plan.estimate import estimate
    from frostline.plan.target import parse_target
    from frostline.plan.wanted import from_recipe

    if options.html is not None:
        raise RecipeError(f"got '--html {options.html}' with --on, which gives text or --json. Leave one of them out")
    if options.data is not None and Path(options.data).suffix.lower() not in (".yaml", ".yml"):
        raise RecipeError(
            f"got the data {options.data!r} with --on, which reads no data, expected a recipe or none. "
            "Say how much there is instead: --rows N data.max_length=TOKENS"
        )
    recipe, _ = _recipe(options, options.data)
    target = parse_target(options.on)
    wanted = from_recipe(recipe, rows=options.rows, labelled=1.0 if options.labelled is None else options.labelled)
    if found := conflicts_of_recipe(recipe):
        raise RecipeError("\n- ".join(found))
    answer = estimate(wanted, target)
    _print(options, answer.to_dict(), str(answer))


def _train(options: argparse.Namespace) -> None:
    from frostline import api

    say = _say(options)
    if options.resume is not None:
        again = f"frostline train {Path(options.resume) / 'recipe.yaml'} KEY=VALUE"
        _refuse_settings(options, f"a run that goes on keeps its recipe. Leave it out, or start a new run with: {again}")
        run = api.resume(options.resume, quiet=options.quiet, say=say)
    else:
        plan = _stages(options)
        say(f"{plan}\n")
        run = api.train(plan, quiet=options.quiet, say=say)
    actual = run.cost["actual"]
    # A run that went on measured only its last part, and predicted nothing.
    predicted = run.cost["predicted"] if run.cost["whole_run"] else None
    seconds = f", predicted {predicted['seconds']:.1f} s" if predicted else ""
    memory = f", predicted {predicted['peak_bytes'] / 1e6:.0f} MB" if predicted else ""
    alone = run.folder / "adapter"
    adapter = f"\nThe adapter alone, as PEFT reads it: {alone}" if alone.is_dir() else ""
    text = (
        f"\nSaved {run.model_folder} ({actual['seconds']:.1f} s{seconds}; peak memory {actual['peak_bytes'] / 1e6:.0f} MB{memory})"
        f"{adapter}\nNext: frostline evaluate {run.folder}\n      frostline predict {run.folder} FILE"
    )
    _print(options, {"run": str(run.folder), "model": str(run.model_folder), "epochs": run.history, "cost": run.cost}, text)


def _evaluate(options: argparse.Namespace) -> None:
    from frostline import api

    _refuse_settings(options, "a run is evaluated as it is. Leave it out")
    report = api.evaluate(options.folder, options.split, quiet=options.quiet)
    page = Path(options.folder) / "report.html"
    _print(options, {**report.to_dict(), "html": str(page)}, f"{report}\n\nThe whole report: {page}")


def _predict(options: argparse.Namespace) -> int:
    import time

    from frostline import api

    if options.batch < 1:
        raise RecipeError(f"--batch got {options.batch!r}, expected 1 or more. Use: --batch 32")
    if not options.inputs and not options.text:
        raise RecipeError(
            f"nothing to predict was given, expected files, folders, --text or -. For example: frostline predict {options.folder} FILE"
        )
    if any(not word.strip() for word in options.inputs):
        raise DataError("inputs: got an empty word, expected a file or folder. For an empty text itself use: --text ''")
    model = api.load_trained(options.folder)
    inputs = [word for word in options.inputs if word != "-"]
    lines = _standard_input() if "-" in options.inputs else []
    if model.card.schema.task != "image-classification":
        options.text += lines  # a line is a text, even where a file of that name exists
    else:
        inputs += [line for line in lines if line.strip()]
    given = {"column": options.column, "encoding": options.encoding, "max_new_tokens": options.max_new_tokens}
    reading = {name: value for name, value in given.items() if value is not None}
    start = time.perf_counter()
    results = api.predict(
        options.folder,
        [Path(word) for word in inputs],  # a path, unlike a text, is refused where no such file exists
        model=model, batch=options.batch, texts=options.text, quiet=options.quiet, say=_note(options), **reading,
    )  # fmt: skip
    rate = len(results) / max(time.perf_counter() - start, 1e-9)
    _print(options, {"predictions": results, "rows_per_second": rate}, "\n".join(map(_prediction_line, results)))
    if not options.quiet and not options.json:
        print(f"{len(results)} rows, {rate:.1f} rows/s", file=sys.stderr)
    return 2 if results and all("error" in result for result in results) else 0


def _note(options: argparse.Namespace) -> Callable[[str], None]:
    """Notes beside results: standard output holds the results alone."""
    return (lambda text: None) if options.quiet else (lambda text: print(text, file=sys.stderr))


def _standard_input() -> list[str]:
    try:
        return [line.rstrip("\r\n") for line in sys.stdin]
    except UnicodeDecodeError as error:
        raise DataError(
            f"standard input: got bytes that are not {error.encoding}, expected lines of text. Convert it with: iconv -t utf-8"
        ) from error


def _prediction_line(result: Mapping[str, Any]) -> str:
    """Input, label and probability between tabs, so an input's own tabs and line breaks become spaces."""
    label = next(result[name] for name in ("label", "text", "reward", "entities", "vector", "error") if name in result)
    if "error" in result:
        label = f"error: {label}"
    elif "entities" in result:
        label = "; ".join(f"{one['text']} {one['label']}" for one in label) or "(none)"
    elif "vector" in result:
        label = " ".join(f"{value:.5g}" for value in label)
    shown = ", ".join(label) if isinstance(label, list) else f"{label:.6g}" if isinstance(label, float) else label
    probability = [f"{result['probability']:.4f}"] if result.get("probability") is not None else []
    return "\t".join(" ".join(str(part).split()) for part in [result["input"], shown, *probability])


def _show(options: argparse.Namespace) -> None:
    if len(options.what) > 2 or (len(options.what) == 2 and options.what[0] != "data"):
        raise RecipeError(
            f"got {options.what!r}, expected a run, or `data` and a path. For example: frostline show data {options.what[-1]}"
        )
    if len(options.what) == 2:
        _show_data(options, options.what[1])
        return
    from frostline.terminal import table
    from frostline.train.run import open_run

    _refuse_settings(options, "a run is shown as it is. Leave it out, or show data with: frostline show data DATA")
    run = open_run(options.what[0])
    names = list(dict.fromkeys(name for record in run.history for name in record))
    epochs = table(names, [[record.get(name, "") for name in names] for record in run.history]) if names else "no epoch is finished"
    content = {"run": str(run.folder), "plan": run.plan, "history": run.history, "cost": run.cost}
    _print(options, content, f"{run}\n{epochs}")


def _show_data(options: argparse.Namespace, path: str) -> None:
    from frostline.check import Findings, read_data
    from frostline.data.seen import rows_as_seen
    from frostline.models.load import preprocess_of

    recipe, sources = _recipe(options, path)
    recipe, data, filled = read_data(recipe, sources, progress=not options.quiet)
    if not options.json:
        _show_settings(_say(options), recipe, dict.fromkeys(filled, "prepared data"))
    rows = rows_as_seen(preprocess_of(recipe, data), data, recipe.data, count=8, colour=sys.stdout.isatty() and not options.json)
    _print(options, {"rows": rows, "report": data.report.to_dict()}, f"{data}\n\n{Findings(rows=rows).rows_text()}")


def _info(options: argparse.Namespace) -> None:
    from frostline.info import as_text, info

    _refuse_settings(options, "`frostline info` has nothing to set. Leave it out")
    content = info(calibrate=options.calibrate)
    _print(options, content, as_text(content))


def _find_lr(options: argparse.Namespace) -> None:
    from frostline.files import write_atomically
    from frostline.train.find_lr import find_lr

    out = Path(options.out or "lr.svg")
    if out.exists():
        raise RunError(f"{str(out)!r} exists already and was not written over. Choose another file with --out")
    found = find_lr(_stages(options))
    write_atomically(out, found.svg().encode())
    end = f"it blows up at {found.diverges_at:.1e}" if found.diverges_at else f"it does not blow up below {found.lrs[-1]:.1e}"
    text = f"suggested: train.lr={found.suggestion:.1e} (the loss falls there; {end}). Picture: {out}"
    _print(options, {"suggestion": found.suggestion, "lrs": found.lrs, "losses": found.losses, "picture": str(out)}, text)
