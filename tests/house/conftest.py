"""The trap that the corpus of hostile files is read in: what a file may not do, it did not do."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from frostline.errors import FrostlineError

MEMORY = 100_000_000


class Bomb:
    """Unpickling it makes the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


class Trap:
    """A sandbox (`folder`) with hostile payloads; everything else below the test's own folder is out of bounds."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.folder = base / "sandbox"
        self.canary = base / "canary"
        self.outside = base / "outside"
        for place in (self.folder, self.outside):
            place.mkdir()
        (self.outside / "secret.txt").write_text("secret", encoding="utf-8")

    def pickles(self) -> dict[str, bytes]:
        """The same bomb in every wrapping that a pickle comes in."""
        zipped, legacy = io.BytesIO(), io.BytesIO()
        content = {"weight": torch.zeros(2), "extra": Bomb(self.canary)}
        torch.save(content, zipped)
        torch.save(content, legacy, _use_new_zipfile_serialization=False)
        plain = {f"protocol {number}": pickle.dumps(Bomb(self.canary), protocol=number) for number in (0, 2, 4, 5)}
        return {**plain, "zip": zipped.getvalue(), "legacy": legacy.getvalue()}

    def check(self) -> None:
        """Nothing was executed, and nothing outside was made or changed."""
        assert not self.canary.exists(), "code of the file was executed"
        found = {path.relative_to(self.base).as_posix() for path in self.base.rglob("*") if not path.is_relative_to(self.folder)}
        assert found == {"outside", "outside/secret.txt"}, f"made outside: {sorted(found)}"
        assert (self.outside / "secret.txt").read_text(encoding="utf-8") == "secret"

    def spring(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call it; memory stays flat, nothing is executed or written outside. Returns the result or the FrostlineError."""
        before = _start_of_peak()
        try:
            result = call(*arguments, **options)
        except FrostlineError as error:
            result = error
        growth = _peak() - before
        self.check()
        assert growth < MEMORY, f"{growth / 1e6:.0f} MB were taken"
        return result

    def refused(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
        """Call it; it raises a FrostlineError. Returns the message."""
        result = self.spring(call, *arguments, **options)
        assert isinstance(result, FrostlineError), f"not refused: {result!r}"
        return str(result)


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    """A fresh :class:`Trap`."""
    return Trap(tmp_path)


def _start_of_peak() -> int:
    """Resident bytes now; the kernel's peak counts from here. 0 where the kernel has no such counter."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM") if os.access("/proc/self/clear_refs", os.W_OK) else 0


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0
