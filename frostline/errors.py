"""The errors that a user can meet.

Every message follows one grammar: where and which parameter; the value received (``{x!r}``); what was expected; and
the fix, as something to type. The library raises these and never prints or exits; the command line turns them into
one paragraph and an exit code. Violated invariants of our own are plain ``assert`` statements.
"""

from __future__ import annotations

from types import ModuleType


class FrostlineError(Exception):
    """Base of all errors that are the user's to mend. ``exit_code`` is what the command line returns for it."""

    exit_code = 2


class RecipeError(FrostlineError):
    """A recipe holds an unknown key, a value of the wrong type, or settings that exclude each other."""


class DataError(FrostlineError):
    """The data cannot be read, or cannot be learned from."""


class ModelError(FrostlineError):
    """A model is unknown, or its weights do not fit, are damaged, or are unsafe to read."""


class RunError(FrostlineError):
    """A run's folder is missing, in use, belongs to something else, or cannot be written."""


class MissingPackage(FrostlineError):
    """An optional package is not installed; the message holds the exact command that installs it."""


class TrainingStopped(FrostlineError):
    """Training stopped because going on would be useless (a loss that is not finite, a frozen tensor that moved)."""

    exit_code = 3


def require(package: str, extra: str, purpose: str) -> ModuleType:
    """Import and return ``package``, or raise :class:`MissingPackage` with the command that installs it.

    >>> require("json", "x", "reading JSON").dumps([1])
    '[1]'
    """
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingPackage(
            f"{purpose} needs the package {package!r}, which is not installed. Install it with: pip install 'frostline[{extra}]'"
        ) from error
