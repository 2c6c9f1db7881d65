"""Tensors keep what was written to them, freed memory is used again, and where nothing can be built all stays as it was."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from frostline.kernels import large_blocks

LINUX = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not shutil.which("c++"), reason="for Linux, with a C++ compiler: apt-get install g++"
)

START = """
import random, sys, threading, torch
from frostline.kernels.large_blocks import free_bytes, use_large_blocks
from frostline.plan.machine import resident_bytes
before = torch.arange(10**6)
assert free_bytes() == 0
reason = use_large_blocks()
assert reason is None, reason
"""
CONTENTS = """
def churn(seed):
    draw, kept = random.Random(seed), {}
    for turn in range(1500):
        if kept and (draw.random() < 0.5 or len(kept) > 20):
            key = draw.choice(list(kept))
            assert (kept.pop(key) == key).all(), "another tensor was written over this one"
        else:
            size = int(2 ** draw.uniform(4, 21))
            kept[turn + seed] = torch.full((size,), float(turn + seed))
    assert all((tensor == key).all() for key, tensor in kept.items())

threads = [threading.Thread(target=churn, args=(1000 * i,)) for i in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert torch.equal(before, torch.arange(10**6))
del before
torch.empty(3).resize_(10**6).fill_(1)
assert all(torch.empty(size).data_ptr() % 64 == 0 for size in range(16_000, 60_000, 777))
print("whole")
"""
MEMORY = """
def held():
    return resident_bytes() - free_bytes()

began = held()
for turn in range(6):  # as in a step: large ones come and go, small ones stay between them
    large = [torch.ones(3 * 2**18) for _ in range(40)]
    small = [torch.ones(20) for _ in range(2000)]
    del large
    again = [torch.ones(3 * 2**18) for _ in range(40)]
    del again
    peak = resident_bytes() - began
    assert free_bytes() > 0.9 * 40 * 3 * 2**20
assert peak < 1.2 * 40 * 3 * 2**20 + 20e6, peak
joined = torch.ones(30 * 3 * 2**18)  # what thirty of them left
assert resident_bytes() - began < 1.2 * 40 * 3 * 2**20 + 20e6
try:
    torch.empty(2**46)
except RuntimeError as error:
    assert "allocate" in str(error)
else:
    raise AssertionError("256 TB were given out")
print("used again")
"""
NEEDED = """
from frostline.kernels.large_blocks import bytes_needed
size = 3 * 2**20
kept = torch.ones(size // 4)

def run():
    first, second = torch.ones(size // 4), torch.ones(size // 4)
    del first
    return second + torch.ones(size // 4)

for run_of, times in ((run, 3), (lambda: None, 0), (lambda: torch.ones(size // 4), 1)):
    needed = bytes_needed(run_of)
    assert times * size <= needed <= times * (size + 1000), (times, needed)

image, layer = torch.randn(4, 64, 56, 56), torch.nn.Conv2d(64, 64, 3, padding=1)
with torch.no_grad():
    layer(image)
    assert bytes_needed(lambda: layer(image)) >= image.nbytes
print("counted")
"""


def run(code: str, cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the allocator holds for the process."""
    variables = {**os.environ, "FROSTLINE_CACHE": str(cache), **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=variables)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@LINUX
@pytest.mark.parametrize(
    ("code", "expected"), [(CONTENTS, "whole"), (MEMORY, "used again"), (NEEDED, "counted")], ids=["contents", "memory", "needed"]
)
def test_in_a_process_of_its_own(code: str, expected: str, cache: Path) -> None:
    done = run(START + code, cache)
    assert done.stdout.strip() == expected, done.stderr


@LINUX
def test_built_once(cache: Path) -> None:
    run(START, cache)
    (library,) = (cache / "native").glob("*.so")
    written = library.stat().st_mtime_ns
    assert run(START, cache).returncode == 0 and library.stat().st_mtime_ns == written
    assert [path.name for path in (cache / "native").iterdir()] == [library.name], "nothing is left beside it"


def test_where_it_cannot_be_built(tmp_path: Path) -> None:
    ask = "from frostline.kernels.large_blocks import use_large_blocks as use; import torch; print(use()); torch.ones(10**6)"
    assert "there is no C++ compiler" in run(ask, tmp_path, PATH="", CXX="").stdout or not sys.platform.startswith("linux")


def test_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_blocks, "_used", [])
    monkeypatch.setattr(sys, "platform", "darwin")
    assert large_blocks.use_large_blocks() == "it is for Linux" and large_blocks.free_bytes() == 0
    assert large_blocks.bytes_needed(lambda: None) is None


def test_built_ahead_unless_it_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(large_blocks.native, "build_ahead", lambda *what: asked.append(what))
    for used in ([object()], []):
        monkeypatch.setattr(large_blocks, "_used", used)
        large_blocks.build_large_blocks_ahead()
    assert asked == [(large_blocks._SOURCE, large_blocks._OPTION)]
