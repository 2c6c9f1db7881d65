"""A file is written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from frostline.errors import RunError
from frostline.files import cache_folder, separate, sync_folder, write_atomically


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "新 文件夹" / "文件.json"
    for content in (b"one", bytearray(b"two"), memoryview(b"three")):
        write_atomically(path, content)
        assert path.read_bytes() == bytes(content)
    assert [file.name for file in path.parent.iterdir()] == ["文件.json"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, b"old")

    def fail(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(RunError) as caught:
        write_atomically(path, b"new")
    assert str(caught.value) == (
        f"'{path}' could not be written: No space left on device. Look at the disk with: df -h {tmp_path}; "
        "free space there, or choose another folder with --out"
    )
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.json", b"old")]


@pytest.mark.parametrize("error", [KeyboardInterrupt, TypeError])
def test_nothing_is_left_of_what_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    def fail(handle: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(error):
        write_atomically(tmp_path / "a.json", b"new")
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a", tmp_path / "folder"):
        with pytest.raises(RunError, match="could not be written"):
            write_atomically(path, b"new")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]


def test_the_order_of_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content is durable before the rename, and the rename before the function returns."""
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: (steps.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file"), fsync(handle))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (steps.append("rename"), replace(a, b)))
    write_atomically(tmp_path / "a", b"x")
    assert steps == ["file", "rename", "folder"]


def test_sync_folder_closes_its_handle(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        sync_folder(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROSTLINE_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    monkeypatch.setenv("HOME", "/c")
    assert cache_folder() == Path("/a")
    monkeypatch.delenv("FROSTLINE_CACHE")
    assert cache_folder() == Path("/b/frostline")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/c/.cache/frostline")


def test_tensors_are_copied_only_where_they_share_a_storage_or_are_not_contiguous(tmp_path: Path) -> None:
    one, wide = torch.randn(4, 3, requires_grad=True), torch.randn(6, 4)
    given = {"one": one, "again": one, "turned": wide.t(), "part": wide[2:4], "none": torch.zeros(0), "中": torch.ones(2)}
    found = separate(given)
    assert {name for name, tensor in found.items() if tensor.data_ptr() == given[name].data_ptr() and len(tensor)} == {"one", "part", "中"}
    save_file(found, tmp_path / "all.safetensors")
    read = load_file(tmp_path / "all.safetensors")
    assert read.keys() == given.keys() and all(torch.equal(read[name], tensor) for name, tensor in given.items())
