"""The kinds of errors, and optional packages."""

from __future__ import annotations

import inspect

import pytest

from frostline import errors
from frostline.errors import FrostlineError, MissingPackage, TrainingStopped, require


def test_kinds_and_exit_codes() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]
    assert all(issubclass(kind, FrostlineError) and kind.__doc__ for kind in kinds)
    assert {kind.__name__: kind.exit_code for kind in kinds if kind.exit_code != 2} == {"TrainingStopped": TrainingStopped.exit_code}
    assert TrainingStopped.exit_code == 3


def test_require() -> None:
    assert require("json", "x", "reading JSON").loads("[1]") == [1]
    with pytest.raises(MissingPackage) as caught:
        require("no_such_package_here", "h5", "Reading Keras weights")
    assert str(caught.value) == (
        "Reading Keras weights needs the package 'no_such_package_here', which is not installed. "
        "Install it with: pip install 'frostline[h5]'"
    )
    assert isinstance(caught.value.__cause__, ImportError)
