"""The grammar of the command line: which commands there are, what they take, and what their help says.

    frostline COMMAND [words] [--flags] [key=value …]

Words, flags and settings may stand in any order. A setting is any key of a recipe; after ``predict`` every word is an input.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Sequence
from typing import NoReturn, get_args

from frostline.errors import RecipeError
from frostline.recipe import TaskName

DATA = "a folder, a file (CSV, TSV, JSONL, Parquet, IDX; by the task also TXT, CoNLL, TMX, PO), or a recipe (.yaml)"
_TASKS = f"what is to be learned: {', '.join(get_args(TaskName))}; guessed where that can be"
_MODELS = (
    "an HF folder, a hub id, a GGUF file or a trained run; or from zero, for images: vgg11 to vgg19, efficientnet-lite0, cnn, mlp, "
    "transformer, layers; for texts: gru, lstm, cnn, mlp, transformer; that write: gpt, gpt2, seq2seq, transformer"
)

_SETTING = re.compile(r"[a-z_]+(\.[a-z_]+)*=", re.ASCII)

_EXAMPLES = """examples:
  frostline train photos/ --model efficientnet-lite0        a folder per class; tunes a new head
  frostline train reviews.csv --model gru train.epochs=5    texts and labels; a network from zero
  frostline train chat.jsonl --model llm.gguf --adapt lora  conversations; tunes a small adapter
  frostline train photos/ --adapt "last 2" train.lr=1e-4    the last two blocks learn as well
  frostline init photos/ > recipe.yaml                      write a commented recipe, edit it, then
  frostline train recipe.yaml train.lr=3e-4                 run it, with one value changed
  frostline evaluate runs/gru-reviews-1                     the report of a run
  frostline predict runs/gru-reviews-1 more.csv --json
  frostline train --resume runs/gru-reviews-1               go on after Ctrl-C

frostline COMMAND --help shows a command's options; every key of a recipe can be set as KEY=VALUE."""

_HELP = {
    "train": "examples:\n  frostline train photos/ --model vgg16 model.weights=vgg16-notop.h5 --adapt head --out runs/vgg train.epochs=10\n"
    "  frostline train reviews.csv --task text-classification --model path/to/bert --adapt lora adapt.rank=8\n"
    "  frostline train chat.jsonl --task chat --model SmolLM2.gguf --adapt lora adapt.rank=16\n"
    "  frostline train recipe.yaml train.lr=3e-4 train.epochs=5\n  frostline train --resume runs/vgg",
    "predict": "examples:\n  frostline predict runs/vgg cat.jpg more-photos/\n  frostline predict runs/gru --text '这家店很好'\n"
    "  frostline predict runs/gru more.csv --column review\n  cat lines.txt | frostline predict runs/gru - --json\n"
    "  frostline predict runs/chat questions.jsonl --max-new-tokens 64",
    "plan": "examples:\n  frostline plan photos/ --model efficientnet-lite0\n  frostline plan recipe.yaml plan.cache=off\n"
    "  frostline plan recipe.yaml --html plan.html\n"
    "before a machine is rented, of a language model by LoRA or in full; neither data nor weights are read:\n"
    "  frostline plan --model llama/config.json --on h200 --adapt lora train.precision=bf16 train.batch=8\n"
    "  frostline plan --model llama/ --on '2 cores 24GB' --rows 5000 --adapt lora adapt.base=nf4 data.max_length=512",
    "check": "examples:\n  frostline check photos/\n  frostline check recipe.yaml --json",
    "evaluate": "examples:\n  frostline evaluate runs/vgg\n  frostline evaluate runs/vgg --split validation --json",
    "init": "examples:\n  frostline init photos/ > recipe.yaml\n  frostline init reviews.csv --out reviews.yaml --model gru",
    "prepare": "examples:\n  frostline prepare photos/ data.size=224 --out prepared/photos\n"
    "  frostline prepare reviews.csv data.label_column=stars",
    "show": "examples:\n  frostline show runs/vgg\n  frostline show data reviews.csv --model gru\n"
    "  frostline show data chat.jsonl --task chat --model SmolLM2.gguf",
    "find-lr": "examples:\n  frostline find-lr photos/ --model efficientnet-lite0 --out lr.svg",
    "info": "examples:\n  frostline info\n  frostline info --calibrate --json",
}


def parse(words: Sequence[str]) -> argparse.Namespace | None:
    """The command with its options, and its settings in ``overrides``; None for no command at all.

    Raises RecipeError for what cannot be understood. ``--help`` and ``--version`` print and exit, as argparse does.
    """
    parser, commands = _parser()
    place = next((i for i, word in enumerate(words) if not word.startswith("-") and not _SETTING.match(word)), None)
    if place is None:
        parser.parse_args(words)
        return None
    name = words[place]
    if name not in commands:
        close = difflib.get_close_matches(name, commands, 1)
        meant = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(commands)}."
        raise RecipeError(f"got the command {name!r}; {meant} See: frostline --help")
    rest = [*words[:place], *words[place + 1 :]]
    settings = [] if name == "predict" else [word for word in rest if _SETTING.match(word)]
    # Intermixed: plain argparse gives `predict RUN --json FILE` no FILE.
    options = commands[name].parse_intermixed_args([word for word in rest if word not in settings])
    options.command, options.overrides = name, settings
    return options


def show_help() -> str:
    """What ``frostline --help`` prints."""
    return _parser()[0].format_help()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RecipeError(f"{message}. See: {self.prog} --help")


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the whole, and that of each command."""
    from frostline import __version__

    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="frostline", description="Develop and fine-tune models.", epilog=_EXAMPLES, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"frostline {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)

    def command(name: str, text: str, *, json: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, epilog=_HELP[name], formatter_class=raw)
        if json:
            sub.add_argument("--json", action="store_true", help="print one JSON object on standard output and nothing else there")
        sub.add_argument("--quiet", action="store_true", help="no progress, no notes; results and errors only")
        return sub

    sub = command("init", "Look at the data and write a commented recipe for it.", json=False)
    sub.add_argument("data", help=DATA)
    _model_flags(sub, "file that is written; standard output when not given")
    for name, text, out in [
        ("check", "Find everything that is wrong before a run; train nothing, write nothing.", "folder that the run will have"),
        ("plan", "Say what a run will do, why, how long it takes and how much memory it needs.", "folder that the run will have"),
        ("train", "Train or fine-tune, in a new folder.", "folder of the run; runs/MODEL-DATA-N when not given"),
        ("find-lr", "Try rising learning rates on the first batches and suggest one.", "picture that is written; lr.svg when not given"),
    ]:
        sub = command(name, text)
        sub.add_argument("data", nargs="?", help=DATA)
        _model_flags(sub, out)
        if name == "train":
            sub.add_argument("--resume", metavar="RUN", help="go on with a run that was stopped")
        if name == "plan":
            sub.add_argument("--html", metavar="FILE", help="write the plan as a picture too: one page that stands alone")
            sub.add_argument("--on", metavar="MACHINE", help="this, h200, a100-80gb, rtx4090 …, or '2 cores 24GB': estimate a run there")
            sub.add_argument("--rows", type=int, metavar="N", help="with --on: rows of the data; 1000 when not given")
            sub.add_argument("--labelled", type=float, metavar="SHARE", help="with --on: share of tokens with a label; 1 when not given")
    sub = command("prepare", "Read, clean and split the data, and print the report.")
    sub.add_argument("data", help=DATA)
    sub.add_argument("--task", help=_TASKS)
    sub.add_argument("--out", help="write the prepared dataset into this folder")
    _run_commands(command)
    return parser, commands.choices  # type: ignore[return-value]


def _run_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """The commands that look at what there is already."""
    sub = command("evaluate", "Score a run on its test split and write report.html into its folder.")
    sub.add_argument("folder", metavar="RUN")
    sub.add_argument("--split", choices=("train", "validation", "test"), help="test, where there is one, when not given")
    sub = command("predict", "Predict, answer or translate with a run: files, folders, tables, or lines of standard input (-).")
    sub.add_argument("folder", metavar="RUN", help="a run's folder or a model's folder")
    sub.add_argument("inputs", nargs="*", metavar="FILE", help="files, folders, tables (CSV, JSONL …); - reads lines from standard input")
    sub.add_argument("--text", action="append", default=[], help="a text itself; may be repeated")
    sub.add_argument("--column", metavar="NAME", help="a table's column of what is predicted; the run's own, or guessed by its task")
    sub.add_argument("--encoding", help="text encoding of the files; the run's own, or detected")
    sub.add_argument("--batch", type=int, default=32, help="rows at a time")
    sub.add_argument("--max-new-tokens", type=int, metavar="N", help="the most that a model writes to one input; 256 when not given")
    sub = command("show", "Show a run, or `show data DATA`: rows as the model will see them.")
    sub.add_argument("what", nargs="+", metavar="RUN | data DATA")
    _model_flags(sub, None)
    sub = command("info", "Show versions and what this machine can do.")
    sub.add_argument("--calibrate", action="store_true", help="measure the machine again")


def _model_flags(parser: argparse.ArgumentParser, out: str | None) -> None:
    parser.add_argument("--task", help=_TASKS)
    parser.add_argument("--model", metavar="NAME|PATH", help=_MODELS)
    methods = 'head, "last N", full, gradual, lora, vera, ia3, adapter, prefix, prompt, p-tuning, bitfit or norms'
    parser.add_argument("--adapt", metavar="A", help=methods)
    if out is not None:
        parser.add_argument("--out", help=out)
