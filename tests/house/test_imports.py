"""Imports run in one direction, and what is heavy or optional is imported where it is used."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "frostline").rglob("*.py"))

# Nothing imports a group to its right.
ORDER: tuple[tuple[str, ...], ...] = (
    ("checksum", "device", "errors", "recipe", "recipe_reader", "files", "progress", "terminal"),
    ("data",),
    ("tasks",),
    ("models",),
    ("adapt",),
    ("kernels",),
    ("plan",),
    ("conflicts", "info"),
    ("check", "train"),
    ("evaluate",),
    ("search", "export", "serve"),
    ("api", "init"),
    ("ui", "commands", "cli"),
    ("__init__", "__main__"),
)
RANK = {name: rank for rank, group in enumerate(ORDER) for name in group}

NEVER = {
    "torchvision": "its wheels must match torch's build; images are read with simplejpeg and Pillow",
    "torchaudio": "its wheels must match torch's build",
    "timm": "it needs torchvision; its weight files are read by models/weights.py",
    "pickle": "law 11: no code from data",
    "pandas": "tables are Arrow",
}
INSIDE_FUNCTIONS = {"transformers", "sklearn", "h5py", "rich"}
IMPORT_NAMES = {"scikit-learn": "sklearn", "pillow": "PIL", "pyyaml": "yaml"}


def part(path: Path) -> str:
    """frostline/data/images.py → data, frostline/cli.py → cli."""
    return path.relative_to(ROOT / "frostline").parts[0].removesuffix(".py")


def imported(tree: ast.AST, path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import, in functions too; `from a import b` gives a.b."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            yield from ((node.lineno, f"{base}{node.module or ''}.{alias.name}".replace("..", ".")) for alias in node.names)


def at_top(tree: ast.Module) -> ast.Module:
    """The statements that run on import: functions are left out, and what only a type checker sees."""
    kept: list[ast.stmt] = []
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
            waiting += [child for handler in getattr(node, "handlers", ()) for child in handler.body]
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            kept.append(node)
    return ast.Module(body=kept, type_ignores=[])


def read(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def extras() -> dict[str, set[str]]:
    """The optional packages of each extra of pyproject.toml, as they are imported."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    names = {extra: [re.split(r"[^\w.-]", line)[0] for line in lines] for extra, lines in listed.items()}
    return {extra: {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in found} for extra, found in names.items()}


def test_every_module_has_a_place_in_the_order() -> None:
    missing = sorted({part(path) for path in SOURCES} - set(RANK))
    assert not missing, f"give these a place in ORDER, in {Path(__file__).name}: {', '.join(missing)}"


def test_nothing_imports_to_its_right() -> None:
    wrong = []
    for path in SOURCES:
        for line, name in imported(read(path), path):
            if not name.startswith("frostline.") or name == "frostline.__version__":
                continue
            target = name.split(".")[1]
            if RANK.get(target, len(ORDER)) > RANK.get(part(path), len(ORDER)):
                wrong.append(f"{path.relative_to(ROOT)}:{line} ({part(path)}) imports {name}")
    assert not wrong, "the order is " + " → ".join(", ".join(group) for group in ORDER) + "; against it:\n  " + "\n  ".join(wrong)


def test_some_packages_are_never_imported() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}: {NEVER[name.split('.')[0]]}"
        for path in SOURCES
        for line, name in imported(read(path), path)
        if name.split(".")[0] in NEVER
    ]
    assert not wrong, "\n".join(wrong)


def test_heavy_packages_are_imported_inside_functions() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name} when it is imported itself"
        for path in SOURCES
        for line, name in imported(at_top(read(path)), path)
        if name.split(".")[0] in INSIDE_FUNCTIONS
    ]
    assert not wrong, "import these inside the function that uses them:\n  " + "\n  ".join(wrong)


def test_no_star_imports() -> None:
    found = [(path, line, name) for path in SOURCES for line, name in imported(read(path), path)]
    wrong = [f"{path.relative_to(ROOT)}:{line} {name}" for path, line, name in found if name.endswith("*")]
    assert not wrong, "\n".join(wrong)


def test_optional_packages_come_through_require() -> None:
    optional = {name for extra, names in extras().items() if extra != "dev" for name in names}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in SOURCES
        for line, name in imported(read(path), path)
        if name.split(".")[0] in optional
    ]
    assert not wrong, "an optional package is imported with frostline.errors.require(package, extra, purpose):\n  " + "\n  ".join(wrong)


def test_require_names_an_extra_that_holds_the_package() -> None:
    known, wrong = extras(), []
    for path in SOURCES:
        for node in ast.walk(read(path)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require"):
                continue
            values = [argument.value if isinstance(argument, ast.Constant) else None for argument in node.args[:2]]
            package, extra = (*values, None, None)[:2]
            if str(package).split(".")[0] not in known.get(str(extra), ()):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} require({package!r}, {extra!r}, …)")
    assert not wrong, "pyproject.toml has no such package in that extra:\n  " + "\n  ".join(wrong)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a.b, c", {"a.b", "c"}),
        ("from a import b", {"a.b"}),
        ("def f():\n    from a import b as c", {"a.b"}),
        ("from . import x", {"frostline.data.x"}),
        ("from ..tasks.task import Task", {"frostline.tasks.task.Task"}),
    ],
)
def test_the_reading_itself(source: str, expected: set[str]) -> None:
    assert {name for _, name in imported(ast.parse(source), ROOT / "frostline/data/images.py")} == expected


def test_what_runs_on_import() -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import rich\n"
    source += "try:\n    import a\nexcept E:\n    b = 1\ndef f():\n    import sklearn\n"
    assert {name for _, name in imported(at_top(ast.parse(source)), ROOT / "frostline/x.py")} == {"typing.TYPE_CHECKING", "a"}
