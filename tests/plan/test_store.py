"""The store proves itself: round trips, one damaged row found, stale or half-written stores never found, the limit kept.

What was stored before a process ended, however it ended, is there for the next one, and for no two at once.
"""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from frostline.errors import RunError
from frostline.plan.frost_line import BorderTensor, FrostLine
from frostline.plan.recorded_calls import Call
from frostline.plan.store import StoreDamaged, create_store, evict, open_store, prefix_hash, store_key, stores_folder

DENSE = BorderTensor(call=Call(name="body", index=0), position=0, per_token=False, shape=(3, 5), dtype=torch.float32)
TOKENS = BorderTensor(call=Call(name="body", index=0), position=1, per_token=True, shape=(4,), dtype=torch.bfloat16)
OFFSETS = torch.tensor([0, 2, 7, 8, 12])


def filled(key="k" * 40):
    torch.manual_seed(0)
    store = create_store(key, [DENSE, TOKENS], 4, OFFSETS, 1e9)
    dense, padded = torch.randn(4, 3, 5), torch.randn(4, 5, 4).bfloat16()
    store.write(torch.tensor([2, 0]), [dense[[2, 0]], padded[[2, 0], :2]])
    store.write(torch.tensor([1, 3]), [dense[[1, 3]], padded[[1, 3]]])
    store.finish({})
    return store, dense, padded


def test_rows_come_back_bit_for_bit_and_padding_is_zero():
    _, dense, padded = filled()
    store = open_store("k" * 40, [DENSE, TOKENS], 4, OFFSETS)
    got_dense, got_tokens = store.read(torch.tensor([3, 1]), width=6)
    assert torch.equal(got_dense, dense[[3, 1]])
    assert torch.equal(got_tokens[0, :4], padded[3, :4]) and torch.equal(got_tokens[1, :5], padded[1, :5])
    assert not got_tokens[0, 4:].any() and not got_tokens[1, 5:].any()


@pytest.mark.parametrize("array", [0, 1])
def test_one_damaged_number_is_found_at_its_first_reading(array):
    store, *_ = filled()
    store.arrays[array].view(-1)[3] += 1  # row 0's in both
    store.read(torch.tensor([1, 2, 3]), width=5)
    with pytest.raises(StoreDamaged, match="row 0"):
        store.read(torch.tensor([3, 0]), width=5)


def test_half_a_store_is_not_found():
    create_store("h" * 40, [DENSE], 4, torch.arange(5), 1e9)
    assert open_store("h" * 40, [DENSE], 4, torch.arange(5)) is None


def test_a_truncated_file_is_not_used():
    store, *_ = filled()
    with open(store.folder / "border0.bin", "r+b") as file:
        file.truncate(8)
    assert open_store("k" * 40, [DENSE, TOKENS], 4, OFFSETS) is None
    assert not store.folder.exists()


def test_the_key_depends_on_everything_that_the_content_depends_on():
    def key(ids=("a", "b"), weights="w", preprocess="p", border=DENSE):
        return store_key(FrostLine(prefix=[border.call], border=[border]), ids, weights, preprocess)

    others = [key(ids=("b", "a")), key(ids=("a", "c")), key(weights="v"), key(preprocess="q"), key(border=TOKENS)]
    assert key() == key() and len({key(), *others}) == 6


def test_the_stores_used_longest_ago_go_first():
    for age, letter in [(30, "a"), (20, "b"), (10, "c")]:
        store, *_ = filled(letter * 40)
        os.utime(store.folder, (1e9 - age, 1e9 - age))
    size = sum(file.stat().st_size for file in store.folder.iterdir())
    evict(2 * size)
    assert sorted(folder.name[0] for folder in stores_folder().iterdir()) == ["b", "c"]


def test_a_full_disk_is_an_error_with_advice(monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RunError, match=r"No space left on device.*plan.cache=off"):
        create_store("f" * 40, [DENSE], 4, torch.arange(5), 1e9)
    assert list(stores_folder().iterdir()) == []


def test_what_a_killed_process_left_of_its_own_is_swept_up():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for owner in (gone.pid, f"going-{gone.pid}", "no-number", os.getpid()):
        folder = stores_folder() / f"{'h' * 40}.{owner}"
        folder.mkdir(parents=True)
        (folder / "border0.bin").write_bytes(b"x" * 100)
    filled("k" * 40)  # making a store looks after the others
    assert sorted(folder.name for folder in stores_folder().iterdir()) == [f"{'h' * 40}.{os.getpid()}", "k" * 40]


KEY = "p" * 40
BORDER = [DENSE, TOKENS]


def create(limit=1e9):
    return create_store(KEY, BORDER, 4, OFFSETS, limit)


def tensors(rows):
    """What the prefix gives for these rows."""
    dense, padded = torch.arange(1.0, 61.0).reshape(4, 3, 5), torch.arange(1.0, 81.0).reshape(4, 5, 4).bfloat16()
    return [dense[rows], padded[rows]]


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".bin"}


def whole(order=((2, 0), (1, 3))):
    store = create()
    for rows in order:
        store.write(torch.tensor(rows), tensors(list(rows)))
    store.finish({})
    return store


class TestPart:
    """A store that is not whole yet."""

    def test_what_was_stored_is_there_for_the_next_and_the_bytes_are_the_same(self):
        expected = content((first := whole()).folder)
        first.discard()
        store = create()
        store.write(torch.tensor([2, 0]), tensors([2, 0]))
        store.leave()
        assert open_store(KEY, BORDER, 4, OFFSETS) is None
        again = create()
        assert again.folder == store.folder and again.folder.name == f"{KEY}.part"
        assert again.stored().tolist() == [True, False, True, False]
        again.write(torch.tensor([1, 3]), tensors([1, 3]))
        assert again.stored().all()
        again.finish({})
        assert content(again.folder) == expected
        assert sorted(path.name for path in again.folder.iterdir()) == ["border0.bin", "border1.bin", "manifest.json", "sums.bin"]
        assert [path.name for path in stores_folder().iterdir()] == [KEY]

    def test_a_row_is_there_only_with_all_its_tensors(self):
        store = create()
        store.write(torch.tensor([0, 1]), tensors([0, 1]))
        store.sums[1, 1] = 0  # the process ended between one tensor and the next
        assert store.stored().tolist() == [True, False, False, False]

    @pytest.mark.parametrize("lost", ["border0.bin", "border1.bin", "sums.bin", "all"])
    def test_pages_that_a_power_cut_lost_are_noticed(self, lost):
        store = create()
        store.write(torch.tensor([0, 1, 2]), tensors([0, 1, 2]))
        store.leave()
        for path in store.folder.glob("*.bin"):
            if lost in (path.name, "all"):
                path.write_bytes(bytes(path.stat().st_size))
        assert not create().stored().any()

    def test_a_row_of_zeros_is_stored_and_one_that_is_not_stored_is_not_taken_for_it(self):
        store = create()
        store.write(torch.tensor([1]), [torch.zeros(1, 3, 5), torch.zeros(1, 5, 4).bfloat16()])
        assert store.stored().tolist() == [False, True, False, False]
        assert not store.read(torch.tensor([1]), 5)[0].any()

    @pytest.mark.parametrize("name", ["border1.bin", "sums.bin"])
    def test_files_of_another_size_begin_anew(self, name):
        store = create()
        store.write(torch.tensor([0, 1]), tensors([0, 1]))
        store.leave()
        path = store.folder / name
        path.write_bytes(path.read_bytes()[:-8])
        assert not create().stored().any()

    def test_a_damaged_row_alone_is_not_taken(self):
        store = create()
        store.write(torch.tensor([0, 1, 2, 3]), tensors([0, 1, 2, 3]))
        store.leave()
        with open(store.folder / "border0.bin", "r+b") as file:
            file.seek(2 * 60 + 8)  # row 2
            file.write(b"\x55")
        assert create().stored().tolist() == [True, True, False, True]

    def test_who_finds_it_taken_fills_a_store_of_its_own(self):
        first, second = create(), create()
        assert second.folder.name == f"{KEY}.{os.getpid()}" and second.lock is None
        second.write(torch.tensor([0]), tensors([0]))
        second.leave()
        assert not second.folder.exists() and not first.stored().any()
        second = create()
        for store in (second, first):  # the second is ready before the first
            store.write(torch.arange(4), tensors([0, 1, 2, 3]))
            store.finish({})
        assert [path.name for path in stores_folder().iterdir()] == [KEY]
        assert torch.equal(first.read(torch.arange(4), 5)[0], tensors([0, 1, 2, 3])[0])
        assert open_store(KEY, BORDER, 4, OFFSETS).stored().all()

    def test_the_limit_counts_a_part_that_nobody_fills_by_its_last_use(self):
        for age, letter in [(30, "a"), (20, "b"), (10, "c")]:
            store = create_store(letter * 40, BORDER, 4, OFFSETS, 1e9)
            store.finish({}) if letter == "b" else store.leave()
            for path in (store.folder, store.folder / "sums.bin"):
                os.utime(path, (1e9 - age, 1e9 - age))
        held = create()
        size = sum(path.stat().st_size for path in store.folder.iterdir())
        evict(2.5 * size)
        assert sorted(path.name[0] for path in stores_folder().iterdir()) == ["b", "c", "p"]
        evict(0)
        assert [path.name for path in stores_folder().iterdir()] == [held.folder.name]
        held.leave()
        evict(0)
        assert list(stores_folder().iterdir()) == []

    def test_the_part_of_a_finished_store_goes(self):
        part = create()
        whole(order=[(0, 1, 2, 3)])  # of its own, since the part is taken
        part.leave()
        evict(1e9)
        assert [path.name for path in stores_folder().iterdir()] == [KEY]

    def test_going_on_does_not_evict_the_part_itself(self):
        store = create()
        store.write(torch.tensor([0]), tensors([0]))
        store.leave()
        assert create(limit=0).stored()[0]


def in_another_process(code):
    """A process that has these helpers, in this test's cache."""
    code = f"from tests.plan.test_store import *\n{textwrap.dedent(code)}"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_killed_in_the_middle_of_filling_while_another_process_looks_on():
    """SIGKILL: no handler runs. While the process lives the part is its own; when it is dead, its rows are there."""
    process = in_another_process("""
        store = create()
        store.write(torch.tensor([2, 0]), tensors([2, 0]))
        store.arrays[0][1] = 7.0  # half of the next batch
        print("stored", flush=True)
        sys.stdin.read()
    """)
    assert process.stdout.readline() == "stored\n"
    private = create()
    assert private.folder.name == f"{KEY}.{os.getpid()}"
    private.leave()
    evict(0)
    assert [path.name for path in stores_folder().iterdir()] == [f"{KEY}.part"]
    process.kill()
    assert process.wait() == -signal.SIGKILL
    store = create()
    assert store.folder.name == f"{KEY}.part" and store.stored().tolist() == [True, False, True, False]
    store.write(torch.tensor([1, 3]), tensors([1, 3]))
    store.finish({})
    killed = content(store.folder)
    store.discard()
    assert killed == content(whole().folder)
    process.communicate()


def test_the_hash_of_a_prefix_covers_all_that_is_frozen_and_nothing_that_learns():
    module = torch.nn.Module()
    module.body, module.head = torch.nn.Linear(3, 3).requires_grad_(False), torch.nn.BatchNorm1d(3)
    module.position = torch.nn.Parameter(torch.zeros(1, 3), requires_grad=False)
    module.register_buffer("angles", torch.zeros(3), persistent=False)
    seen = {prefix_hash(module, ["body"])}
    for tensor in (module.position, module.angles, module.body.weight):
        tensor.data += 1
        seen.add(prefix_hash(module, ["body"]))
    assert len(seen) == 4
    module.head.weight.data += 1
    module.head.running_mean += 1
    assert prefix_hash(module, ["body"]) in seen
