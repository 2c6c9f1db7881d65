"""Law 11, no code from data: the calls through which a file could run code, or name code to run, do not stand in the tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "frostline").rglob("*.py"))
SCRIPTS = sorted(path for folder in ("benchmarks", "examples") for path in (ROOT / folder).rglob("*.py"))

TORCH_LOAD_MAY_STAND_IN = "frostline/models/weights.py"
IMPORT_BY_NAME_MAY_STAND_IN = "frostline/errors.py"
HUB_MAY_STAND_IN = "frostline/models/huggingface.py"

PICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "pickletools"}
NETWORK = {"urllib.request", "http.client", "ftplib", "requests", "httpx", "aiohttp", "socket"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "torch.save": "it pickles; write safetensors and JSON",
    "torch.jit.load": "it runs a program",
    "torch.package.PackageImporter": "it runs a program",
    "torch.hub.load": "it fetches and runs code",
    "torch.hub.load_state_dict_from_url": "it fetches",
    "torch.serialization.add_safe_globals": "it widens weights_only",
    "torch.serialization.safe_globals": "it widens weights_only",
    "importlib.util.spec_from_file_location": "it runs a file",
    "runpy.run_path": "it runs a file",
    "runpy.run_module": "it runs a module",
    "pydoc.locate": "it imports by name",
    "pkgutil.resolve_name": "it imports by name",
    "os.system": "it runs a shell",
    "os.popen": "it runs a shell",
    "yaml.unsafe_load": "it makes any object",
    "yaml.full_load": "it makes more than plain values",
    "yaml.unsafe_load_all": "it makes any object",
    "yaml.full_load_all": "it makes more than plain values",
    "shutil.unpack_archive": "it writes where the archive says",
    "extractall": "it writes where the archive says",
    "read_pickle": "it unpickles",
}
YAML_READERS = {"yaml.load", "yaml.load_all", "yaml.compose", "yaml.compose_all", "yaml.parse", "yaml.scan"}
SAFE_YAML = {"SafeLoader", "CSafeLoader", "BaseLoader", "CBaseLoader"}


def names_of(tree: ast.AST) -> dict[str, str]:
    """What each imported name means: {"t": "torch", "load": "torch.load"}."""
    meaning = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            meaning.update({a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in node.names})
        elif isinstance(node, ast.ImportFrom):
            meaning.update({a.asname or a.name: f"{node.module or ''}.{a.name}" for a in node.names})
    return meaning


def dotted(node: ast.AST, meaning: dict[str, str]) -> str:
    """The full dotted name of an expression such as ``t.load``, or ""; what is called before it is left out."""
    if isinstance(node, ast.Name):
        return meaning.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, meaning)}.{node.attr}".lstrip(".")
    return ""


def import_faults(node: ast.Import | ast.ImportFrom, where: str) -> Iterator[str]:
    names = [a.name for a in node.names] if isinstance(node, ast.Import) else [f"{node.module}.{a.name}" for a in node.names]
    for name in names:
        if name.split(".")[0] in PICKLERS:
            yield f"imports {name}: a pickle runs code"
        if any(name == banned or name.startswith(f"{banned}.") for banned in NETWORK):
            yield f"imports {name}: the library fetches nothing"
        if name.split(".")[0] == "huggingface_hub" and where != HUB_MAY_STAND_IN:
            yield f"imports {name}: only {HUB_MAY_STAND_IN} may, for a hub id that the user names"


def reference_faults(name: str, where: str) -> Iterator[str]:
    """Of a name or attribute that is called, or handed on to be called."""
    if name in BUILTINS or name.removeprefix("builtins.") in BUILTINS:
        yield f"uses {name}"
    for banned, reason in CALLS.items():
        if name == banned or ("." not in banned and name.endswith(f".{banned}")):
            yield f"uses {name}: {reason}"
    if name == "torch.load" and where != TORCH_LOAD_MAY_STAND_IN:
        yield f"uses torch.load: only {TORCH_LOAD_MAY_STAND_IN} may"


def is_literal(node: ast.AST | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def call_faults(node: ast.Call, name: str, where: str) -> Iterator[str]:
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    if name == "torch.load" and not is_literal(given.get("weights_only"), True):
        yield "torch.load without weights_only=True"
    if name in YAML_READERS:
        loader = given.get("Loader", node.args[1] if len(node.args) > 1 else None)
        if getattr(loader, "attr", getattr(loader, "id", None)) not in SAFE_YAML:
            yield f"{name} without Loader=yaml.SafeLoader"
    for flag in ("trust_remote_code", "allow_pickle"):
        if flag in given and not is_literal(given[flag], False):
            yield f"{flag} other than False"
    if "shell" in given and not is_literal(given["shell"], False):
        yield "a shell"
    constant = bool(node.args) and isinstance(node.args[0], ast.Constant)
    if name == "importlib.import_module" and not constant and where != IMPORT_BY_NAME_MAY_STAND_IN:
        yield f"importlib.import_module of a name that is computed: only {IMPORT_BY_NAME_MAY_STAND_IN} may"


def faults(source: str, where: str) -> list[str]:
    """``path:line what`` of everything in a file that the law forbids."""
    tree = ast.parse(source)
    meaning, found = names_of(tree), []
    for node in ast.walk(tree):
        several: list[str] = []
        if isinstance(node, ast.Import | ast.ImportFrom):
            several += import_faults(node, where)
        elif isinstance(node, ast.Name | ast.Attribute):
            several += reference_faults(dotted(node, meaning), where)
        elif isinstance(node, ast.Call):
            several += call_faults(node, dotted(node.func, meaning), where)
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            several += [
                f"{key.value} other than False"
                for key, value in pairs
                if isinstance(key, ast.Constant) and key.value in ("trust_remote_code", "allow_pickle") and not is_literal(value, False)
            ]
        found += [f"{where}:{getattr(node, 'lineno', 0)} {what}" for what in several]
    return found


def test_the_library_runs_nothing_that_a_file_says() -> None:
    found = [fault for path in SOURCES for fault in faults(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())]
    assert not found, "law 11, no code from data:\n  " + "\n  ".join(found)


def test_scripts_keep_to_it_too() -> None:
    found = [fault for path in SCRIPTS for fault in faults(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())]
    assert not found, "law 11, no code from data:\n  " + "\n  ".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import requests",
        "from urllib.request import urlopen",
        "from huggingface_hub import snapshot_download",
        "import torch\ntorch.load('x', weights_only=True)",
        "from torch import load\nload('x')",
        "import torch as t\nreader = t.load",
        "import torch\ntorch.save({}, 'x')",
        "eval('1')",
        "run = exec",
        "import builtins\nbuiltins.compile('1', 'x', 'eval')",
        "__import__(name)",
        "import yaml\nyaml.load(text)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import yaml\nyaml.compose(text)",
        "import yaml\nyaml.unsafe_load(text)",
        "f(trust_remote_code=True)",
        "f(trust_remote_code=flag)",
        "f(**{'trust_remote_code': flag})",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import importlib\nimportlib.import_module(name)",
        "from importlib import import_module as get\nget(name)",
        "import os\nos.system('ls')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import tarfile\ntarfile.open('x').extractall()",
        "import pandas as pd\npd.read_pickle('x')",
    ],
)
def test_the_check_finds(source: str) -> None:
    assert faults(source, "frostline/data/x.py")


@pytest.mark.parametrize(
    ("source", "where"),
    [
        ("import torch\ntorch.load('x', weights_only=True)", TORCH_LOAD_MAY_STAND_IN),
        ("import importlib\nimportlib.import_module(package)", IMPORT_BY_NAME_MAY_STAND_IN),
        ("from huggingface_hub import snapshot_download", HUB_MAY_STAND_IN),
        ("import importlib\nimportlib.import_module('h5py')", "frostline/models/x.py"),
        ("import re, torch\nmodule.eval()\nre.compile('a')\ntorch.compile(module)", "frostline/models/x.py"),
        ("import yaml\nyaml.load(text, Loader=yaml.SafeLoader)\nyaml.safe_load(text)", "frostline/x.py"),
        ("f(trust_remote_code=False)", "frostline/models/x.py"),
        ("import ast\nast.literal_eval(text)", "frostline/x.py"),
    ],
)
def test_the_check_lets_pass(source: str, where: str) -> None:
    assert not faults(source, where)


def test_torch_load_without_weights_only_is_found_even_where_it_may_stand() -> None:
    assert faults("import torch\ntorch.load('x')", TORCH_LOAD_MAY_STAND_IN)
    assert faults("import torch\ntorch.load('x', weights_only=flag)", TORCH_LOAD_MAY_STAND_IN)
