"""Where a file that was found in a folder really lies. One that was named by the user may be a link; one found may not lead out."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def place_fault(path: Path, root: Path | None) -> str | None:
    """Why the file is not opened: it lies outside ``root`` (None: anywhere will do) or is none that has an end; None if it is fine."""
    try:
        real = Path(os.path.realpath(path))
        if root is not None and not real.is_relative_to(os.path.realpath(root)):
            return "a link that leads outside the folder"
        if not stat.S_ISREG(os.stat(real).st_mode):  # opening a pipe would wait for ever
            return "not a regular file"
    except FileNotFoundError:
        return "a link to nothing"
    except (OSError, ValueError) as error:
        return f"cannot be looked up ({getattr(error, 'strerror', None) or error})"
    return None
