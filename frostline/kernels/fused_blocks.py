"""What the blocks of a language model compute between their matrix products, each as one function of autograd."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType

from torch import nn

from frostline.kernels import rms_norm, rotary, swiglu


@dataclass(frozen=True, kw_only=True)
class FusedBlocks:
    """The parts of one network that are computed so."""

    norms: dict[str, rms_norm.Norm] = field(default_factory=dict)
    """RMS norms, by their names."""
    gated: list[str] = field(default_factory=list)
    """SwiGLU blocks, by their names."""
    rotary: list[ModuleType] = field(default_factory=list)
    """Python modules with a function for rotary positions."""

    def __str__(self) -> str:
        counts = {"RMS norms": len(self.norms), "SwiGLU blocks": len(self.gated)}
        return ", ".join([f"{count} {what}" for what, count in counts.items() if count] + ["rotary positions"] * bool(self.rotary))


def find(module: nn.Module, blocks: list[str]) -> FusedBlocks:
    """Try what could be one; ``blocks``: the names of the repeated ones."""
    return FusedBlocks(norms=rms_norm.find(module, blocks), gated=swiglu.find(module), rotary=rotary.find(module))


@contextlib.contextmanager
def computing(module: nn.Module, blocks: FusedBlocks) -> Iterator[None]:
    """Within, these parts are computed so."""
    with rms_norm.normed(module, blocks.norms), swiglu.gated(module, blocks.gated), rotary.rotated(blocks.rotary):
        yield
