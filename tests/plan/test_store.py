"""The store proves itself: round trips, one damaged row found, stale or half-written stores never found, the limit kept."""

import pytest
import torch

from frostline.errors import RunError
from frostline.plan.frost_line import BorderTensor, Call, FrostLine
from frostline.plan.store import StoreDamaged, create_store, evict, open_store, store_key, stores_folder

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
    import os

    for age, letter in [(30, "a"), (20, "b"), (10, "c")]:
        store, *_ = filled(letter * 40)
        os.utime(store.folder, (1e9 - age, 1e9 - age))
    size = sum(file.stat().st_size for file in store.folder.iterdir())
    evict(2 * size)
    assert sorted(folder.name[0] for folder in stores_folder().iterdir()) == ["b", "c"]


def test_a_full_disk_is_an_error_with_advice(monkeypatch):
    import os

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RunError, match=r"No space left on device.*plan.cache=off"):
        create_store("f" * 40, [DENSE], 4, torch.arange(5), 1e9)
    assert list(stores_folder().iterdir()) == []


def test_what_a_killed_process_left_half_made_is_swept_up():
    import os
    import subprocess
    import sys

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for owner in (gone.pid, "no-number", os.getpid()):
        folder = stores_folder() / f"{'h' * 40}.{owner}"
        folder.mkdir(parents=True)
        (folder / "border0.bin").write_bytes(b"x" * 100)
    filled("k" * 40)  # making a store looks after the others
    assert sorted(folder.name for folder in stores_folder().iterdir()) == [f"{'h' * 40}.{os.getpid()}", "k" * 40]
