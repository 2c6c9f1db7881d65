"""The peak is really measured: what was taken and given back is in it, and a new measurement forgets it."""

from __future__ import annotations

import builtins
import gc
import mmap

import pytest

from frostline.plan.machine import resident_bytes
from frostline.train.memory import peak_bytes, reset_peak

SIZE = 200_000_000


def written() -> mmap.mmap:
    """Memory that is resident, and goes back to the system when closed; malloc's may stay with the process (the pass `allocator`)."""
    taken = mmap.mmap(-1, SIZE)
    for _ in range(SIZE // 1_000_000):
        taken.write(b"\1" * 1_000_000)
    return taken


def test_memory_that_came_and_went_is_in_the_peak():
    gc.collect()
    reset_peak()
    before = peak_bytes()
    taken = written()
    during = peak_bytes()
    taken.close()
    after = peak_bytes()
    assert 0.7 * SIZE < during - before < 1.3 * SIZE
    assert after > before + 0.7 * SIZE


def test_a_new_measurement_forgets_the_old_peak():
    taken = written()
    peak = peak_bytes()
    taken.close()
    reset_peak()
    if peak_bytes() == peak:
        pytest.skip("this system does not let a process reset its peak (/proc/self/clear_refs)")
    assert peak_bytes() < peak - 0.5 * SIZE
    assert peak_bytes() >= 0.9 * resident_bytes()


def test_where_there_is_no_proc(monkeypatch):
    plain = builtins.open

    def opened(path, *args, **options):
        if str(path).startswith("/proc"):
            raise FileNotFoundError(path)
        return plain(path, *args, **options)

    expected = peak_bytes()
    monkeypatch.setattr(builtins, "open", opened)
    assert peak_bytes() >= 0.5 * expected  # getrusage's, of the whole process
