"""Cross-entropy and its gradient of rows of logits in C++ (cross_entropy_rows.cpp), where it can be built: one visit to each row, where
PyTorch makes ten passes over memory, and more under bf16, whose exponentials and sums are in float32 here as there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from frostline.kernels.native import TYPES, VECTORISED, Library, at, sizes

library = Library(Path(__file__).with_suffix(".cpp"), *VECTORISED)


def takes(tensor: Tensor) -> bool:
    """Whether logits like this tensor are computed here."""
    return tensor.device.type == "cpu" and tensor.dtype in TYPES and not library.missing


def losses(logits: Tensor, labels: Tensor, nll: Tensor, correct: Tensor, log_sums: Tensor | None, *, slopes: bool) -> None:
    """Of (rows, columns), contiguous: fills ``nll`` and ``log_sums``, float32 (rows,), and ``correct``, bool (rows,): whether the largest
    is the label's (of equal ones the first counts). With ``slopes`` the logits become softmax - onehot."""
    run, labels = _function("losses", logits), labels.contiguous()
    run(at(logits), *sizes(logits), at(labels), at(nll), at(correct), at(log_sums), ctypes.c_int(slopes))


def slopes(logits: Tensor, labels: Tensor, log_sums: Tensor, factors: Tensor) -> None:
    """The logits become (softmax - onehot) times their row's factor; ``log_sums`` and ``factors``: float32 (rows,)."""
    run = _function("slopes", logits)
    labels, log_sums, factors = labels.contiguous(), log_sums.contiguous(), factors.contiguous()  # held until it has run
    run(at(logits), *sizes(logits), at(labels), at(log_sums), at(factors))


def _function(name: str, logits: Tensor) -> Callable[..., None]:
    assert logits.is_contiguous(), "what takes() was asked for"
    return library.function(name, logits.dtype)
