"""Splits: what must hold for any rows (identical rows and groups stay together, given splits stay), then exact shares."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline.data.raw import SetAside
from frostline.data.split import leaking_rows, limit_rows, refuse_lost, split_rows
from frostline.errors import DataError

ids_and_labels = st.lists(
    st.tuples(st.integers(0, 40).map(str), st.sampled_from("abc"), st.sampled_from([None, "u", "v", "w", "x", "y"])), max_size=60
)
shares = st.sampled_from([0, 0.1, 0.2, 0.33, 0.45])


def together(names, keys):
    seen: dict[str, set[str]] = {}
    for name, key in zip(names, keys, strict=True):
        if key is not None:
            seen.setdefault(key, set()).add(name)
    return all(len(splits) == 1 for splits in seen.values())


@settings(max_examples=200, deadline=None)
@given(ids_and_labels, shares, shares, st.integers(0, 3), st.randoms(use_true_random=False))
def test_what_must_always_hold(rows, val, test_share, seed, random):
    ids, labels, groups = ([row[column] for row in rows] for column in range(3))
    names = split_rows(ids, labels, groups, None, val, test_share, seed)
    assert together(names, ids) and together(names, groups)
    assert set(names) <= {"train", *(["validation"] if val else []), *(["test"] if test_share else [])}
    assert {label for label, name in zip(labels, names, strict=True) if name == "train"} == set(labels)
    shuffled = list(range(len(rows)))
    random.shuffle(shuffled)
    again = split_rows(
        [ids[i] for i in shuffled], [labels[i] for i in shuffled], [groups[i] for i in shuffled], None, val, test_share, seed
    )
    assert again == [names[i] for i in shuffled]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), shares, shares, st.integers(0, 3))
def test_shares_of_distinct_rows_are_right_to_the_row(sizes, val, test_share, seed):
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    names = split_rows([str(row) for row in range(len(labels))], labels, None, None, val, test_share, seed)
    table = Counter(zip(labels, names, strict=True))
    wanted = [name for name, share in (("validation", val), ("test", test_share)) if share]
    for name, share in (("validation", val), ("test", test_share)):
        total = sum(table[label, name] for label in range(len(sizes)))
        assert total == 0 if share == 0 else True
        if all(size >= 12 for size in sizes) and share:
            assert total == round(share * len(labels))
        for label, size in enumerate(sizes):
            if share and size > len(wanted):
                assert table[label, name] >= 1
            if size >= 12:
                assert abs(table[label, name] - share * size) <= 1 + (min(sizes) < 12) * len(sizes)
    assert all(table[label, "train"] >= 1 for label in range(len(sizes)))


def test_eighty_ten_ten_and_another_seed():
    ids, labels = [f"row {row}" for row in range(1000)], ["a"] * 700 + ["b"] * 300
    names = split_rows(ids, labels, None, None, 0.1, 0.1, seed=0)
    assert Counter(zip(labels, names, strict=True)) == {
        ("a", "train"): 560,
        ("a", "validation"): 70,
        ("a", "test"): 70,
        ("b", "train"): 240,
        ("b", "validation"): 30,
        ("b", "test"): 30,
    }
    assert names == split_rows(ids, labels, None, None, 0.1, 0.1, seed=0)
    assert names != split_rows(ids, labels, None, None, 0.1, 0.1, seed=1)


def test_groups_come_close_to_the_shares():
    ids, labels = [str(row) for row in range(1000)], [row % 2 for row in range(1000)]
    names = Counter(split_rows(ids, labels, [str(row // 7) for row in range(1000)], None, 0.2, 0.1, seed=0))
    assert abs(names["validation"] - 200) <= 7 and abs(names["test"] - 100) <= 7


def test_two_large_groups_still_give_a_validation_split():
    names = split_rows([str(row) for row in range(20)], [row % 2 for row in range(20)], ["u"] * 10 + ["v"] * 10, None, 0.1, 0, seed=0)
    assert Counter(names) == {"train": 10, "validation": 10}


@pytest.mark.parametrize(
    ("given_names", "expected"),
    [
        (["train"] * 10 + ["test"] * 5, {"train": 8, "validation": 2, "test": 5}),
        (["train"] * 10 + ["validation"] * 5, {"train": 10, "validation": 5}),
        (["train"] * 10 + ["validation"] * 2 + ["test"] * 3, {"train": 10, "validation": 2, "test": 3}),
        (["train"] * 10 + [None] * 5, {"train": 10, "validation": 3, "test": 2}),
    ],
)
def test_given_splits_are_kept(given_names, expected):
    ids, labels = [str(row) for row in range(15)], [row % 2 for row in range(15)]
    names = split_rows(ids, labels, None, given_names, 0.2, 0.1, seed=0)
    assert Counter(names) == expected
    assert all(got == name for got, name in zip(names, given_names, strict=True) if name in ("validation", "test"))


def test_leaking_rows_leave_training_and_then_validation():
    ids = ["1", "2", "3", "1", "4", "3", "5"]
    given_names = ["train", "train", "train", "test", "validation", "validation", None]
    assert leaking_rows(ids, None, given_names) == [0, 2]
    assert leaking_rows(["1", "1"], None, ["validation", "test"]) == [0]
    assert leaking_rows(["1", "2", "3"], ["u", "u", None], [None, "test", "train"]) == [0]
    assert leaking_rows(["1", "1"], None, ["train", "train"]) == [] == leaking_rows(["1", "1"], None, None)


@pytest.mark.parametrize(
    ("val", "test_share", "message"),
    [
        (1.0, 0, r"data\.val got 1\.0"),
        (0, -0.1, r"data\.test_share got -0\.1"),
        (0.5, 0.5, r"data\.val=0\.5 and data\.test_share=0\.5 leave no rows"),
    ],
)
def test_impossible_shares(val, test_share, message):
    with pytest.raises(DataError, match=message):
        split_rows(["1"], ["a"], None, None, val, test_share, 0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("aab"), min_size=1, max_size=50), st.integers(1, 60), st.integers(0, 3))
def test_limit_is_stratified_seeded_and_exact(labels, limit, seed):
    ids = [f"{row}" for row in range(len(labels))]
    rows = limit_rows(ids, labels, limit, seed)
    assert len(rows) == min(limit, len(labels)) and rows == sorted(set(rows)) == limit_rows(ids, labels, limit, seed)
    kept = Counter(labels[row] for row in rows)
    for label, size in Counter(labels).items():
        assert abs(kept[label] - len(rows) * size / len(labels)) <= 1
        assert kept[label] >= 1 or limit < 2


def test_limit_zero():
    with pytest.raises(DataError, match=r"data\.limit got 0"):
        limit_rows(["1"], ["a"], 0, 0)


def test_a_split_of_which_nothing_is_left_is_named():
    aside = [SetAside(origin="a:9", reason="odd"), SetAside(origin="a:2", reason="no label")]
    refuse_lost(["a:1", "a:2"], ["train", "test"], ["train", "test"], aside)
    refuse_lost(["a:1", "a:2"], [None, "train"], ["train"], aside)
    expected = r"no row of the test split can be used \(the first set aside: a:2: no label\), expected at least one"
    with pytest.raises(DataError, match=expected):
        refuse_lost(["a:1", "a:2", "a:3"], ["train", "test", "test"], ["train"], aside)
