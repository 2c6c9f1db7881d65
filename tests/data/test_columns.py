"""Guesses are deterministic, noted, and overridden by the recipe; what is missing is listed."""

import itertools

import pytest

from frostline.data.columns import NAMES, choose_column, find_column, refuse_same
from frostline.errors import DataError


@pytest.mark.parametrize("role", list(NAMES))
def test_every_name_is_recognised_in_any_case(role):
    for name in NAMES[role]:
        assert find_column(["id", name.upper(), "other"], role) == name.upper()


def test_the_first_name_of_the_list_wins_whatever_the_order():
    for names in itertools.permutations(["rating", "label", "content", "review"]):
        assert find_column(names, "label") == "label"
        assert find_column(names, "text") == "review"


def test_a_title_is_joined_with_its_text():
    assert find_column(["title", "content", "stars"], "text") == "title+content"
    assert find_column(["Title", "stars"], "text") == "Title"


def test_a_guess_is_noted_and_a_given_name_is_not():
    column, notes = choose_column(["review", "stars", "rating"], "label", None, "x.csv")
    assert column == "stars" and notes == ["label column: 'stars' (guessed; set data.label_column; 'rating' would fit too)"]
    assert choose_column(["review", "stars"], "text", "review", "x.csv") == ("review", [])
    assert choose_column(["a", "b"], "text", "a+b", "x.csv") == ("a+b", [])
    assert choose_column(["a+b"], "text", "a+b", "x.csv") == ("a+b", [])


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        (["foo", "栏"], None, r"x\.csv: no column looks like the text; the columns are: 'foo', '栏'\. Set data\.input_column=NAME"),
        (["Text", "text"], None, r"the columns 'Text', 'text' could each be the text"),
        (["text"], "tekst", r"data\.input_column got 'tekst', but there is no column 'tekst'; the columns are: 'text'"),
        (["text"], "text+more", r"no column 'more'"),
    ],
)
def test_missing_and_ambiguous_columns(names, given, message):
    with pytest.raises(DataError, match=message):
        choose_column(names, "text", given, "x.csv")


def test_the_input_is_not_the_label():
    refuse_same("text", "label", "x.csv")
    with pytest.raises(DataError, match=r"x\.csv: '标签' is the input and the label.*data\.input_column"):
        refuse_same("标签", "标签", "x.csv")


def test_a_name_that_is_nearly_one_that_tells_the_task():
    with pytest.raises(DataError, match=r"Did you mean 'messages' by 'mesages'\?"):
        choose_column(["mesages"], "label", None, "x.jsonl")
    with pytest.raises(DataError, match=r"[^?]$"):
        choose_column(["foo"], "label", None, "x.jsonl")
