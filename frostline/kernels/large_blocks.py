"""Large tensors from an allocator that uses freed memory again (large_blocks.cpp), built once for this PyTorch by the system's compiler.

With glibc 2.36 a step of a transformer held three times as much as lived at once: an aligned block that is freed is a little too
small for the next request of its size. Blocks that are joined when they are freed, and the best fit, keep the peak at what lives.
PyTorch takes another allocator for new tensors while old ones go back where they came from; it holds for the process.

Needs Linux and a C++ compiler (``CXX``, c++, g++ or clang++): two seconds once, then the library is read from the cache folder.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from frostline.files import cache_folder

_SOURCE = Path(__file__).with_suffix(".cpp")
_used: list[ctypes.CDLL] = []
"""The library, once it is in use."""


def use_large_blocks() -> str | None:
    """From now on large tensors come from there. Returns why they do not; None where they do."""
    if _used:
        return None
    if not sys.platform.startswith("linux"):
        return "it is for Linux"
    try:
        path = _built()
        library = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        return " ".join(str(error).split())[:200]
    library.frostline_use_large_blocks.argtypes = [ctypes.c_size_t]
    library.frostline_free_bytes.restype = ctypes.c_size_t
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # what is larger is refused, as ever
    if not library.frostline_use_large_blocks(memory):
        return f"the system gave no {memory / 1e9:.0f} GB of addresses"
    _used.append(library)
    return None


def free_bytes() -> int:
    """Memory of this process that tensors had and the next ones will take; part of what is resident."""
    return int(_used[0].frostline_free_bytes()) if _used else 0


def _built() -> Path:
    """The library for this source, PyTorch and compiler. Raises OSError, SubprocessError."""
    compiler = next((found for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name and (found := shutil.which(name))), None)
    if compiler is None:
        raise OSError("there is no C++ compiler")
    key = hashlib.sha256(_SOURCE.read_bytes() + f"{torch.__version__} {compiler} {os.uname().machine}".encode()).hexdigest()[:20]
    folder = cache_folder() / "native"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = folder.stat()
    if about.st_uid != os.getuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"{str(folder)!r} can be written to by others, and what lies there would be run")
    path = folder / f"large_blocks-{key}.so"
    if not path.exists():
        root = Path(torch.__file__).parent
        with tempfile.TemporaryDirectory(dir=folder) as place:
            made = Path(place) / path.name
            command = [
                compiler, "-O2", "-std=c++20", "-fPIC", "-shared", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
                f"-I{root / 'include'}", str(_SOURCE), "-o", str(made), f"-L{root / 'lib'}", "-lc10",
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            if done.returncode:
                raise OSError(f"{compiler} could not build it: {done.stderr}")
            os.replace(made, path)
    return path
