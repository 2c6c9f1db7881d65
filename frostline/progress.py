"""Progress bars for long work: on a terminal or in a notebook, on standard error, never where the user wants quiet."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def progress(total: int, label: str, quiet: bool) -> Iterator[Any]:
    """A tqdm bar over ``total`` rows; hidden where standard error is no terminal (a log file) and outside notebooks."""
    from tqdm.auto import tqdm

    notebook = "ipykernel" in sys.modules
    with tqdm(
        total=total, desc=label, unit="row", leave=False, disable=quiet or not (sys.stderr.isatty() or notebook), dynamic_ncols=True
    ) as bar:
        yield bar


def say_nothing(text: str) -> None:
    """Where a user wants quiet."""


def say(text: str) -> None:
    """A line on standard error, above any progress bar."""
    from tqdm.auto import tqdm

    tqdm.write(text, file=sys.stderr)
