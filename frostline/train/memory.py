"""The peak of resident memory, or of a GPU's, so that a run can set what it took beside what was predicted."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

import frostline.device
from frostline.device import CPU


def reset_peak(device: torch.device = CPU) -> None:
    """Start to measure the peak anew, where the system can (Linux); elsewhere the peak is the process's. ``device``: whose memory."""
    if device.type != "cpu":
        frostline.device.reset_peak(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # not Linux, or not allowed in this container: peak_bytes then gives the process's peak


def peak_bytes(device: torch.device = CPU) -> int:
    """The peak of resident memory since :func:`reset_peak`, in bytes; of a GPU, what tensors took of its memory."""
    if device.type != "cpu":
        return frostline.device.peak_bytes(device)
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
