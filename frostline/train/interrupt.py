"""Ctrl-C: the first one ends the run after the current step, with a checkpoint; the second one ends it at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frostline.errors import FrostlineError
from frostline.progress import say_nothing


class Interrupted(FrostlineError):
    """The user stopped the run; a checkpoint was written."""

    exit_code = 130


@dataclass
class StopRequest:
    """Whether the user asked to stop."""

    folder: Path
    requested: bool = False

    def error(self, step: int) -> Interrupted:
        """What to raise once the checkpoint is written."""
        return Interrupted(f"Stopped after step {step}; nothing is lost. Go on with: frostline train --resume {self.folder}")

    def stop_before_training(self) -> None:
        """Raise Interrupted if the user asked to stop while the frozen part was being run for the store."""
        if self.requested:
            raise Interrupted(
                "Stopped while the frozen part was run, before the first step; the rows that were stored are kept. "
                f"Go on with: frostline train --resume {self.folder}"
            )


@contextlib.contextmanager
def stop_on_interrupt(folder: Path, say: Callable[[str], None] = say_nothing) -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request, in the main thread; elsewhere (a notebook's worker, a server) leave them alone."""
    request = StopRequest(folder)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: Any) -> None:
        if request.requested:
            raise KeyboardInterrupt
        request.requested = True
        say("Stopping after this step; a second Ctrl-C stops at once.")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
