"""What the limits of a container, a service or a batch job (Linux control groups) leave of the memory.

A process is in a group for memory, and so are that group's parents; each may have a limit. What a group has used counts pages of files,
which the system takes back when it needs them, so these are not counted here. Both versions of control groups are read; inside a
container the path of the process's group may be that outside, where the root of what is mounted holds the container's own limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_OWN = Path("/proc/self/cgroup")
_MOUNTED = Path("/sys/fs/cgroup")
_FILES = {"memory.max": ("memory.current", ""), "memory.limit_in_bytes": ("memory.usage_in_bytes", "total_")}
"""Of the limit → of what is used, and what names in ``memory.stat`` begin with where parents count their children's."""


def container_room() -> int | None:
    """The fewest bytes that any limit leaves; None where there is none."""
    return min((room for folder in _groups() for room in _rooms(folder)), default=None)


def _groups() -> Iterator[Path]:
    """The folders of the groups that this process is in, and of their parents."""
    try:
        lines = _OWN.read_text().splitlines()
    except OSError:
        lines = []  # not Linux
    yield from (_MOUNTED, _MOUNTED / "memory")
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        group = Path(path.lstrip("/"))
        for mounted in [_MOUNTED / "memory"] if controllers else [_MOUNTED, _MOUNTED / "unified"]:
            yield from (mounted / part for part in (group, *group.parents) if part != Path())


def _rooms(folder: Path) -> Iterator[int]:
    for limit, (used, prefix) in _FILES.items():
        try:
            most, now = int((folder / limit).read_text()), int((folder / used).read_text())
        except (OSError, ValueError):
            continue  # no limit ("max"), or not this version
        yield most - max(0, now - _pages_of_files(folder, prefix))


def _pages_of_files(folder: Path, prefix: str) -> int:
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
        numbers = {name: int(value) for name, value in (line.split() for line in lines)}
    except (OSError, ValueError):
        return 0
    return sum(numbers.get(f"{prefix}{name}", 0) for name in ("active_file", "inactive_file"))
