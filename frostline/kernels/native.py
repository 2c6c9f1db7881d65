"""Small C++ libraries of ours, built once for this machine and this PyTorch by the system's compiler, and kept in the cache folder.

Needs Linux and a C++ compiler (``CXX``, c++, g++ or clang++); whoever asks has another way where there is none.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch

from frostline.files import private_folder

_WIDE = ("-mprefer-vector-width=512",) if torch.cpu._is_avx512_bf16_supported() else ()
"""Compilers halve the vectors of all processors with AVX-512, as its first ones slowed down under it. Those with bfloat16 do not."""
_PASSES = ("-O3", "-march=native", *_WIDE, "-fno-math-errno", "-fno-trapping-math", "-fopenmp")
VECTORISED = (*_PASSES, "-ffp-contract=off")
"""Options for passes over rows, on all threads of PyTorch; they change no rounding."""
CONTRACTED = (*_PASSES, "-ffp-contract=fast")
"""The same where a product and the sum that it goes into may be rounded once."""
TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""By the names that such functions end with."""
_one_at_a_time = threading.Lock()


def load(source: Path, *options: str) -> ctypes.CDLL:
    """The library of a source beside this file; ``options`` for the compiler.

    Raises OSError where it cannot be built or may not be loaded, with the reason.
    """
    if not sys.platform.startswith("linux"):
        raise OSError("it is for Linux")
    try:
        return ctypes.CDLL(str(_built(source, options)))
    except subprocess.SubprocessError as error:
        raise OSError(str(error)) from error


def build_ahead(source: Path, *options: str) -> None:
    """Begin, in a thread, to build what :func:`load` will be asked for. That waits for it, and says so where it cannot be built."""

    def build() -> None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            _built(source, options)

    if sys.platform.startswith("linux"):
        threading.Thread(target=build).start()


class Library:
    """The functions of a source, built and loaded when they are first asked for."""

    def __init__(self, source: Path, *options: str) -> None:
        self.source, self.options = source, options

    @functools.cached_property
    def found(self) -> ctypes.CDLL | str:
        """It, or why it cannot be used."""
        try:
            return load(self.source, *self.options)
        except OSError as error:
            return reason(error)

    @property
    def missing(self) -> str | None:
        """Why PyTorch computes instead, in more time; None where it does not."""
        return self.found if isinstance(self.found, str) else None

    def function(self, name: str, *types: torch.dtype) -> Any:
        """``frostline_name`` with the names of its types. Ask only where nothing is missing."""
        assert isinstance(self.found, ctypes.CDLL), "whoever calls asked whether it is there"
        return self.found["_".join(["frostline", name, *(TYPES[one] for one in types)])]


def at(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    """Where its numbers lie; null for none."""
    assert tensor is None or tensor.device.type == "cpu", "these functions read the host's memory"
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def sizes(matrix: torch.Tensor) -> tuple[ctypes.c_int64, ctypes.c_int64]:
    """Rows and columns."""
    return ctypes.c_int64(matrix.shape[0]), ctypes.c_int64(matrix.shape[1])


def reason(error: OSError) -> str:
    """Why a library is not used, on one line, for a plan."""
    return " ".join(str(error).split())[:200]


def _built(source: Path, options: tuple[str, ...]) -> Path:
    compiler = next((found for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name and (found := shutil.which(name))), None)
    if compiler is None:
        raise OSError("there is no C++ compiler")
    about = repr((torch.__version__, compiler, options, os.uname().machine, _processor()))
    text = b"".join(path.read_bytes() for path in (source, *sorted(source.parent.glob("*.h"))))
    key = hashlib.sha256(text + about.encode()).hexdigest()[:20]
    folder = private_folder("native")
    path = folder / f"{source.stem}-{key}.so"
    with _one_at_a_time:
        if not path.exists():
            _build(compiler, source, options, path)
    return path


def _build(compiler: str, source: Path, options: tuple[str, ...], path: Path) -> None:
    root = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory(dir=path.parent) as place:
        made = Path(place) / path.name
        command = [
            compiler, "-std=c++20", "-fPIC", "-shared", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
            f"-I{root / 'include'}", *options, str(source), "-o", str(made), f"-L{root / 'lib'}", "-lc10",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise OSError(f"{compiler} could not build it: {done.stderr}")
        os.replace(made, path)


def _processor() -> str:
    """What tells processors apart that share a cache folder: what they can do."""
    with open("/proc/cpuinfo") as file:
        return next((line for line in file if line.startswith(("flags", "Features"))), "")
