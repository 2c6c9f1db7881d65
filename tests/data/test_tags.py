"""Entities as seqeval reads them by default, also from broken sequences; repairs are counted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from frostline.data.tags import entities, repaired, tag_counts, tag_set

BIOES = ["O", *(f"{letter}-{kind}" for letter in "BIES" for kind in ("人", "LOC-2"))]


def found(sentences, names):
    known = tag_set(names)
    flat = np.array([known.names.index(tag) for tags in sentences for tag in tags], dtype=np.int64)
    rows = np.repeat(np.arange(len(sentences)), [len(tags) for tags in sentences])
    start = np.concatenate([[0], np.cumsum([len(tags) for tags in sentences])])
    made = entities(flat, rows, known)
    return [
        sorted(
            (known.types[k], f - start[row], s - start[row]) for r, f, s, k in zip(made.row, made.first, made.last, made.kind) if r == row
        )
        for row in range(len(sentences))
    ]


@given(st.lists(st.lists(st.sampled_from(BIOES), max_size=8), max_size=5))
def test_entities_are_seqevals(sentences):
    assert found(sentences, BIOES) == [sorted(get_entities(tags)) for tags in sentences]


@given(st.lists(st.lists(st.sampled_from(["B", "I", "E", "S", "O"]), max_size=8), max_size=5))
def test_prefixes_alone(sentences):
    assert found(sentences, list("OBIES")) == [sorted(get_entities(tags)) for tags in sentences]


@pytest.mark.parametrize(
    ("names", "scheme", "types"),
    [
        (["O", "B-a", "I-a"], "BIO", ("a",)),
        (["O", "I-a"], "BIO", ("a",)),
        (["O", "B-a", "I-a", "S-a"], "BIOES", ("a",)),
        (["B", "E", "I", "S"], "BIOES", ("_",)),
        (["NOUN", "VERB"], "plain", ("NOUN", "VERB")),
        (["O", "PER"], "plain", ("PER",)),
        (["O", "B-a", "NOUN"], "plain", ("B-a", "NOUN")),
        (["O"], "plain", ()),
    ],
)
def test_schemes(names, scheme, types):
    known = tag_set(names)
    assert (known.scheme, known.types) == (scheme, types)


def test_of_plain_tags_each_token_is_one():
    assert found([["NOUN", "O", "NOUN"], ["VERB"]], ["O", "NOUN", "VERB"]) == [[("NOUN", 0, 0), ("NOUN", 2, 2)], [("VERB", 0, 0)]]


@given(st.lists(st.lists(st.sampled_from(["O", "B-a", "I-a", "B-b", "I-b"]), max_size=8), min_size=1, max_size=5), st.booleans())
def test_a_repair_changes_no_entity_and_has_nothing_left_to_repair(sentences, ending):
    if ending:
        sentences = [*sentences, ["S-a"], ["B-b", "E-b"]]
    fixed, notes = repaired(sentences, [f"x:{row}" for row in range(len(sentences))])
    assert [get_entities(tags) for tags in fixed] == [get_entities(tags) for tags in sentences]
    assert bool(notes) == (fixed != sentences)
    assert repaired(fixed, [""] * len(fixed)) == (fixed, [])


def test_repairs_are_counted_with_an_example():
    fixed, notes = repaired([["B-a", "I-b"], ["O", "I-a", "I-a"]], ["x.conll:1", "x.conll:4"])
    assert fixed == [["B-a", "B-b"], ["O", "B-a", "I-a"]]
    assert notes == ["warning: 2 of 5 tags did not fit BIO and were repaired, e.g. x.conll:1: I-b became B-b"]


def test_iob1_is_told_from_broken_bio():
    fixed, notes = repaired([["I-a", "B-a", "I-a", "O", "I-b"]], ["x:1"])
    assert fixed == [["B-a", "B-a", "I-a", "O", "B-b"]] and notes == ["tags: IOB1, written as BIO (2 entities begin with B now)"]


def test_bmes_and_bilou_are_bioes():
    fixed, notes = repaired([["B", "M", "E", "S"]], ["x:1"])
    assert fixed == [["B", "I", "E", "S"]] and notes == ["tags: BMES, written as BIOES"]
    fixed, notes = repaired([["B-a", "I-a", "L-a", "U-b", "O"]], ["x:1"])
    assert fixed == [["B-a", "I-a", "E-a", "S-b", "O"]] and notes == ["tags: BILOU, written as BIOES"]
    plain = [["MD", "B", "UH"]]
    assert repaired(plain, ["x:1"]) == (plain, [])


def test_a_prefix_that_some_tags_lack_is_told():
    assert repaired([["B-a", "NOUN"]], ["x:1"])[1] == [
        "warning: tags such as 'B-a' have a prefix, but 'NOUN' has none, so every tag is measured as it stands"
    ]


def test_lengths_that_differ_are_set_aside():
    kept, aside = tag_counts([["O"], ["O", "O"], []], [["a"], ["b"], []], ["x:1", "x:2", "x:3"])
    assert kept == [0] and [(row.origin, row.reason) for row in aside] == [("x:2", "1 tokens but 2 tags"), ("x:3", "no token")]
