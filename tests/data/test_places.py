"""A file that was found is opened only where it is a regular file inside its folder."""

import os

import pytest

from frostline.data.places import place_fault


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "outside.csv").write_text("secret")
    inside = tmp_path / "数据"
    inside.mkdir()
    (inside / "rows.csv").write_text("rows")
    (inside / "same.csv").symlink_to("rows.csv")
    (inside / "out.csv").symlink_to("../outside.csv")
    (inside / "nothing.csv").symlink_to("gone.csv")
    os.mkfifo(inside / "pipe.csv")
    return inside


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("rows.csv", None),
        ("same.csv", None),
        ("out.csv", "a link that leads outside the folder"),
        ("nothing.csv", "a link to nothing"),
        ("pipe.csv", "not a regular file"),
    ],
)
def test_faults(folder, name, fault):
    assert place_fault(folder / name, folder) == fault


def test_a_file_that_was_named_may_be_a_link_but_no_pipe(folder):
    assert place_fault(folder / "out.csv", None) is None
    assert place_fault(folder / "pipe.csv", None) == "not a regular file"
