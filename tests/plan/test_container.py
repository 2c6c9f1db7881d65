"""Limits of control groups, of both versions, wherever above the process they stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from frostline.plan import container
from frostline.plan.container import container_room
from frostline.plan.machine import memory_limit


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(container, "_MOUNTED", tmp_path / "cgroup")
    monkeypatch.setattr(container, "_OWN", tmp_path / "own")
    return tmp_path / "cgroup"


def own(mounted: Path, text: str) -> None:
    (mounted.parent / "own").write_text(text)


def group(folder: Path, limit: str, used: int, *, files: int = 0, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (limit, str(used)), strict=True):
        (folder / name).write_text(f"{value}\n")
    prefix = "" if version == 2 else "total_"
    (folder / "memory.stat").write_text(f"anon 7\n{prefix}inactive_file {files // 2}\n{prefix}active_file {files - files // 2}\n")


def test_no_limit_at_all(mounted: Path) -> None:
    assert container_room() is None, "nothing is mounted, as on a Mac"
    own(mounted, "0::/user.slice\n")
    group(mounted / "user.slice", "max", 400)
    assert container_room() is None


def test_a_container_s_own(mounted: Path) -> None:
    own(mounted, "0::/\n")
    group(mounted, "1000000", 400_000)
    assert container_room() == 600_000


def test_of_a_parent_of_a_process_in_a_group(mounted: Path) -> None:
    own(mounted, "1:cpu:/elsewhere\n0::/batch/job 7/step\n")
    group(mounted / "batch/job 7/step", "max", 100)
    group(mounted / "batch/job 7", "1000", 400)
    group(mounted / "batch", "5000", 1000)
    group(mounted / "elsewhere", "10", 9)
    assert container_room() == 600


def test_version_one(mounted: Path) -> None:
    own(mounted, "5:cpuset:/\n4:cpu,memory:/service/a\n0::/\n")
    group(mounted / "memory", str(2**63 - 4096), 10**9, version=1)
    group(mounted / "memory/service/a", "1000", 900, files=300, version=1)
    assert container_room() == 400


def test_pages_of_files_are_taken_back(mounted: Path) -> None:
    own(mounted, "0::/\n")
    group(mounted, "1000", 900, files=301)
    assert container_room() == 401
    (mounted / "memory.stat").write_text("file\n")
    assert container_room() == 100


def test_the_path_outside_of_a_container(mounted: Path) -> None:
    own(mounted, "0::/docker/0123\n")
    group(mounted, "1000", 900)
    assert container_room() == 100


def test_the_machine_has_no_more_than_that(mounted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own(mounted, "0::/\n")
    group(mounted, "1000000", 400_000)
    assert memory_limit() == 600_000
    group(mounted, "max", 400_000)
    assert memory_limit() > 600_000
