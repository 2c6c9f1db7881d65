"""What is written about the code is there, agrees with the code, and can be executed."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from frostline.recipe import Recipe
from frostline.recipe_reader import resolve

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "frostline"
SOURCES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted(path for folder in ("benchmarks", "examples") for path in (ROOT / folder).rglob("*.py"))
RECIPES = sorted((ROOT / "examples").rglob("*.yaml"))
READMES = ("README.md", "README.zh-CN.md")

# Modules without a test file of their own, and why.
NO_TEST_FILE: dict[str, str] = {
    "data/raw.py": "two dataclasses without behaviour; tests/data exercises them throughout",
    "tasks/task.py": "a dataclass of functions; every task's test exercises it",
    "tasks/image_classification.py": "one Task; tests/tasks/test_tasks.py runs every task through the same battery",
    "tasks/chat.py": "one Task, made of tasks/tokens.py; tests/tasks/test_tasks.py runs every task through the same battery",
    "tasks/text_classification.py": "one Task; tests/tasks/test_tasks.py runs every task through the same battery",
}


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def mirror(path: Path) -> Path:
    """frostline/data/images.py → tests/data/test_images.py."""
    return ROOT / "tests" / path.relative_to(PACKAGE).with_name(f"test_{path.name}")


def code_blocks(markdown: str) -> list[str]:
    return re.findall(r"^```[^\n]*\n(.*?)^```", markdown, flags=re.MULTILINE | re.DOTALL)


def headings(markdown: str) -> list[str]:
    outside = re.sub(r"^```[^\n]*\n.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^#{1,6} .+", outside, flags=re.MULTILINE)


def files_of_the_tree() -> list[Path]:
    """What git tracks or would add; without git, what no hidden or built folder holds."""
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True)
    if listed.returncode == 0:
        return [path for name in listed.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]
    built = {"build", "dist", "demo", "runs", "bench-out", "frostline.egg-info"}
    relative = [(path, path.relative_to(ROOT).parts) for path in ROOT.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return [path for path, parts in relative if not built & set(parts) and (parts[0] == ".ci" or not parts[0].startswith("."))]


def test_every_module_says_what_it_is() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES + SCRIPTS}
    silent = [str(path.relative_to(ROOT)) for path, tree in trees.items() if not ast.get_docstring(tree)]
    assert not silent, "these have no docstring:\n  " + "\n  ".join(silent)


def test_public_functions_and_classes_are_documented() -> None:
    silent = []
    for path in SOURCES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node):
                silent.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert not silent, "these have no docstring:\n  " + "\n  ".join(silent)


def test_exported_names_exist_and_are_documented() -> None:
    import frostline

    names = [name for name in getattr(frostline, "__all__", dir(frostline)) if not name.startswith("_")]
    silent = [name for name in names if callable(getattr(frostline, name)) and not getattr(frostline, name).__doc__]
    assert not silent, f"frostline exports these without a docstring: {', '.join(silent)}"


def test_every_module_has_its_tests() -> None:
    missing = []
    for path in SOURCES:
        name, test = path.relative_to(PACKAGE).as_posix(), mirror(path)
        if path.name not in ("__init__.py", "__main__.py") and name not in NO_TEST_FILE and not test.is_file():
            missing.append(f"frostline/{name}: expected {test.relative_to(ROOT).as_posix()}")
    assert not missing, "tests mirror the tree:\n  " + "\n  ".join(missing)


def test_exemptions_are_still_needed() -> None:
    stale = [name for name in NO_TEST_FILE if not (PACKAGE / name).is_file() or mirror(PACKAGE / name).is_file()]
    assert not stale, f"take these out of NO_TEST_FILE: {', '.join(stale)}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_example_is_a_recipe(path: Path) -> None:
    recipe, given = resolve(path)
    assert Recipe.from_yaml(path) == recipe
    assert recipe.data.path and recipe.model.name, f"{path.name} names no data or no model"
    assert given, f"{path.name} sets nothing"
    assert path.read_text(encoding="utf-8").startswith("#"), f"{path.name} begins with a comment that says what it is for"


def test_there_are_examples() -> None:
    assert RECIPES


@pytest.mark.parametrize("name", READMES)
def test_the_readme_shows_how_to_run_the_demo_and_the_tests(name: str) -> None:
    lines = [line.split("#")[0].strip() for block in code_blocks(text_of(name)) for line in block.splitlines()]
    for command in ("make demo", "make test"):
        assert command in lines, f"{name} has no code block with the line {command!r}"


def test_make_targets_that_are_written_about_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), flags=re.MULTILINE))
    wrong = []
    for name in (*READMES, "CONTRIBUTING.md", ".ci/run"):
        commands = re.findall(r"(?:^|`|\$ )make ([a-z-]+)", text_of(name), flags=re.MULTILINE)
        wrong += [f"{name}: make {target}" for target in commands if target not in targets]
    assert not wrong, f"the Makefile has only {', '.join(sorted(targets))}:\n  " + "\n  ".join(wrong)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert re.search(r"^make test\b", text_of(".ci/run"), flags=re.MULTILINE)


def test_the_readmes_have_the_same_parts() -> None:
    levels = [[heading.split()[0] for heading in headings(text_of(name))] for name in READMES]
    assert levels[0] == levels[1], "\n".join(f"{name}: {headings(text_of(name))}" for name in READMES)


def test_contributing_names_every_file() -> None:
    """The map of the house is complete, and names nothing that is gone."""
    house = next(block for block in code_blocks(text_of("CONTRIBUTING.md")) if block.startswith("frostline/\n"))
    listed, folder = set(), {0: "frostline"}
    for line in house.splitlines()[1:]:
        entry = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        path = f"{folder[depth - 1]}/{entry.rstrip('/')}"
        if entry.endswith("/"):
            folder[depth] = path
        else:
            listed.add(path)
    real = {path.relative_to(ROOT).as_posix() for path in SOURCES if path.name != "__init__.py" or path.parent == PACKAGE}
    assert listed == real, f"not in the map: {sorted(real - listed)}; not in the tree: {sorted(listed - real)}"


def test_no_file_names_a_place_on_the_machine_it_was_written_on() -> None:
    foreign = re.compile(rb"(?<![\w.~-])/(?:work|root)/")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in files_of_the_tree()
        for number, line in enumerate(path.read_bytes().splitlines(), 1)
        if foreign.search(line)
    ]
    assert not found, "absolute paths of one machine:\n  " + "\n  ".join(found)
