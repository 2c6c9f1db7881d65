"""Progress: on standard error, on a terminal only, and nowhere where the user wants quiet."""

from __future__ import annotations

import io
import sys
import types

import pytest

from frostline.progress import progress, say, say_nothing


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "quiet", "notebook", "shown"),
    [
        (Terminal(), False, False, True),
        (Terminal(), True, False, False),
        (io.StringIO(), False, False, False),
        (io.StringIO(), False, True, True),
        (io.StringIO(), True, True, False),
    ],
)
def test_where_a_bar_is_shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, quiet: bool, notebook: bool, shown: bool) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("tqdm.auto.tqdm", __import__("tqdm").tqdm)  # in a real notebook, tqdm.auto chooses widgets
    if notebook:
        monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    else:
        monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    with progress(total=4, label="训练", quiet=quiet) as bar:
        for _ in range(4):
            bar.update(1)
            bar.set_postfix({"loss": "0.1"}, refresh=False)
    assert ("训练" in stream.getvalue()) is shown
    assert shown or not stream.getvalue()


def test_an_error_goes_through_the_bar() -> None:
    with pytest.raises(ZeroDivisionError), progress(total=1, label="x", quiet=False):
        raise ZeroDivisionError


def test_say(capsys: pytest.CaptureFixture[str]) -> None:
    say("一行")
    say_nothing("never")
    assert capsys.readouterr() == ("", "一行\n")
