"""Text for a terminal lines up with Chinese in it, and a label cannot steer the terminal."""

from frostline.evaluate.terminal import confused_pairs, confusion, number, seconds, shortened, size, table
from frostline.terminal import display_width


def test_columns_line_up_with_wide_characters():
    lines = table(["类别", "rows"], [["一只猫", 3], ["dog", 1200]]).split("\n")
    assert {display_width(line) for line in lines} == {12}


def test_confusion_of_few_classes_is_the_matrix():
    lines = confusion([[5, 1], [2, 7]], ["猫", "狗狗狗"]).split("\n")
    assert lines[0].split() == ["true", "\\", "predicted", "猫", "狗狗狗"]
    assert [line.split() for line in lines[2:]] == [["猫", "5", "1"], ["狗狗狗", "2", "7"]]
    assert len({display_width(line) for line in lines}) == 1


def test_confusion_of_many_classes_is_the_worst_pairs():
    matrix = [[10 if i == j else 0 for j in range(20)] for i in range(20)]
    matrix[3][4], matrix[7][1] = 5, 9
    names = [f"c{i}" for i in range(20)]
    assert confused_pairs(matrix, names, 5) == [("c7", "c1", 9), ("c3", "c4", 5)]
    lines = confusion(matrix, names).split("\n")
    assert [line.split() for line in lines] == [
        ["true", "predicted", "rows"],
        ["----", "---------", "----"],
        ["c7", "c1", "9"],
        ["c3", "c4", "5"],
    ]


def test_escape_codes_and_line_ends_in_labels_do_nothing():
    shown = confusion([[1, 0], [0, 1]], ["\x1b[31mred\x07", "a\nb"])
    assert "\x1b" not in shown and "\x07" not in shown and "a b" in shown and len(shown.split("\n")) == 4


def test_shortened_counts_columns():
    assert shortened("short", 10) == "short"
    assert shortened("评论" * 50, 11) == "评论评论评…" and display_width(shortened("评论" * 50, 10)) <= 10
    assert shortened("  a \n\t b ", 10) == "a b"


def test_numbers():
    assert [number(value) for value in (0.5, 1.0, 0.0, 12.345, 1234.5, 3e-9, float("nan"), None)] == [
        "0.5000", "1.0000", "0.0000", "12.35", "1,234.5", "3e-09", "–", "–",
    ]  # fmt: skip
    assert [seconds(value) for value in (0.5, 59.94, 61, 7260, None)] == ["0.500 s", "59.9 s", "1 min 01 s", "2 h 01 min", "–"]
    assert [size(value) for value in (0, 999, 1000, 2.5e9, None)] == ["0 B", "999 B", "1.0 kB", "2.5 GB", "–"]
