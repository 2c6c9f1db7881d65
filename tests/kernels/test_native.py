"""Libraries are built once, and where they cannot be, or should not be loaded, the reason is told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from frostline.kernels import native

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not shutil.which("c++"), reason="for Linux, with a C++ compiler: apt-get install g++"
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "native"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "seven.cpp"
    path.write_text('extern "C" int seven() { return SEVEN; }')
    return path


def test_built_once_for_each_source_and_its_options(source: Path, cache: Path) -> None:
    assert native.load(source, "-DSEVEN=7").seven() == 7
    (library,) = cache.iterdir()
    written = library.stat().st_mtime_ns
    assert native.load(source, "-DSEVEN=7").seven() == 7 and library.stat().st_mtime_ns == written
    assert native.load(source, "-DSEVEN=8").seven() == 8
    source.write_text('extern "C" int seven() { return 9; }')
    assert native.load(source, "-DSEVEN=7").seven() == 9
    assert len(list(cache.iterdir())) == 3, "nothing is left beside them"
    header = source.with_name("eight.h")
    for number in (8, 10):  # what it includes counts
        source.write_text('#include "eight.h"\nextern "C" int seven() { return EIGHT; }')
        header.write_text(f"#define EIGHT {number}")
        assert native.load(source).seven() == number


def test_another_processor_gets_its_own(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native.load(source, "-DSEVEN=7")
    monkeypatch.setattr(native, "_processor", lambda: "flags: none")
    native.load(source, "-DSEVEN=7")
    assert len(list(cache.iterdir())) == 2


def test_what_others_could_have_put_there_is_not_loaded(source: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.raises(OSError, match="can be written to by others"):
        native.load(source, "-DSEVEN=7")
    assert not list(cache.iterdir())


def test_without_a_compiler_or_with_a_broken_one(source: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="SEVEN") as error:
        native.load(source)  # the source itself does not compile
    assert "\n" not in native.reason(error.value) and len(native.reason(error.value)) <= 200
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such standard >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(OSError, match="could not build it: no such standard"):
        native.load(source, "-DSEVEN=7")
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(OSError, match=r"there is no C\+\+ compiler"):
        native.load(source, "-DSEVEN=7")
    assert not list(cache.glob("*"))


def test_nowhere_else(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(OSError, match="it is for Linux"):
        native.load(source)


def test_a_library_is_built_once_and_says_what_is_missing(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = native.Library(source, "-DSEVEN=7")
    assert library.missing is None and library.found.seven() == 7  # type: ignore[union-attr]
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert library.missing is None, "it is not asked for again"
    other = native.Library(source, "-DSEVEN=9")
    assert other.missing == other.found == "there is no C++ compiler"
    with pytest.raises(AssertionError):
        other.function("seven")


def test_what_is_built_ahead_is_waited_for(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began, goes_on, runs, run = threading.Event(), threading.Event(), [], subprocess.run

    def slow(command: list[str], **options: Any) -> Any:
        began.set()
        assert goes_on.wait(60)
        runs.append(command)
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", slow)
    native.build_ahead(source, "-DSEVEN=7")
    assert began.wait(60)
    threading.Timer(0.05, goes_on.set).start()
    assert native.load(source, "-DSEVEN=7").seven() == 7 and len(runs) == 1


def test_what_cannot_be_built_ahead_is_told_when_it_is_asked_for(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", failures.append)
    native.build_ahead(source, "-DSEVEN=;")
    with pytest.raises(OSError, match="could not build it"):
        native.load(source, "-DSEVEN=;")
    assert not failures
