"""A device for PyTorch that is none, so that training on a GPU can be tested where there is no GPU.

Its memory is the host's (stand_in_device.cpp). Its operations are those of the processor on that memory, so that the numbers must be the
same; they refuse a tensor of the processor with a dimension or more beside one of the device, as CUDA's do. It counts its memory, and how
often it was waited for. Autocast takes products to bf16 on it.

What it does not show: anything of speed, copies that do not wait, kernels that round or add otherwise, memory that runs out or lies in
pieces, and what a GPU lacks.

A device is registered for the whole process, which then has an accelerator: only in a process of its own.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

NAME = "standin"
_SOURCE = Path(__file__).with_suffix(".cpp")


def unavailable() -> str | None:
    """Why it cannot be built here; None where it can."""
    if not sys.platform.startswith("linux"):
        return "the stand-in device is built on Linux"
    return None if shutil.which(_compiler()) else "the stand-in device needs a C++ compiler"


def built(folder: Path) -> Path:
    """The library, from the folder or, the first time, compiled in some ten seconds."""
    key = hashlib.sha256(_SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:20]
    path, root = folder / f"stand_in_device-{key}.so", Path(torch.__file__).parent
    if not path.exists():
        beside = path.with_suffix(f".{os.getpid()}")
        include = (f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}")
        options = ("-std=c++20", "-O0", "-fPIC", "-shared", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}")
        libraries = (f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch")
        subprocess.run([_compiler(), *options, *include, str(_SOURCE), "-o", str(beside), *libraries], check=True, timeout=280)
        os.replace(beside, path)
    return path


def register(library: Path) -> torch.device:
    """Let this process have the device, from now on."""
    torch.utils.rename_privateuse1_backend(NAME)
    module = SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: True, device_count=lambda: 1, current_device=lambda: 0,
        _is_in_bad_fork=lambda: False, manual_seed_all=lambda seed: None, get_amp_supported_dtype=lambda: [torch.bfloat16],
    )  # fmt: skip
    torch._register_device_module(NAME, module)
    torch.ops.load_library(library)
    torch.utils.generate_methods_for_privateuse1_backend()
    torch.nn.Module.to = functools.partialmethod(_to, torch.nn.Module.to)  # type: ignore[assignment]
    return torch.device(NAME, 0)


def waits(library: Path) -> int:
    """How often it was waited for."""
    count = ctypes.CDLL(str(library)).stand_in_waits
    count.restype = ctypes.c_int64
    return int(count())


def let_it_have(library: Path, count: int) -> None:
    """Give it so many bytes of memory; it runs out beyond them."""
    ctypes.CDLL(str(library)).stand_in_has(ctypes.c_int64(count))


def _to(self: torch.nn.Module, plain: Any, *args: Any, **options: Any) -> torch.nn.Module:
    """As for CUDA and MPS: a parameter stays itself where its module is taken there. For other devices PyTorch makes new ones, and tied
    ones come apart."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return plain(self, *args, **options)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def _compiler() -> str:
    return os.environ.get("CXX") or "g++"
