"""Blocks that are compiled are reached only while gradients are wanted, and their kernels are kept where nobody else can write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from frostline.kernels import compiled_blocks
from frostline.kernels.compiled_blocks import compile_blocks, compiling


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """In place of the compiler; the calls of what it gives."""
    calls: list[int] = []

    def stand_in(plain):
        return lambda *args: (calls.append(1), plain(*args))[1]

    monkeypatch.setattr(compiled_blocks, "_compiled", stand_in)
    return calls


def test_for_gradients_only_and_as_long_as_it_is_meant(compiled: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    x = torch.ones(1, 2)
    plain = module(x)
    with compiling(module, compile_blocks(module, ["1"])):
        assert torch.equal(module(x), plain) and len(compiled) == 1
        with torch.no_grad():
            assert torch.equal(module(x), plain) and len(compiled) == 1
    assert torch.equal(module(x), plain) and len(compiled) == 1


def test_where_kernels_are_kept(compiled: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    module = nn.Sequential(nn.Linear(2, 3))
    assert compile_blocks(module, []) == {} and not (tmp_path / "inductor").exists()
    (tmp_path / "inductor").mkdir()
    (tmp_path / "inductor").chmod(0o777)
    with pytest.raises(OSError, match="can be written to by others"):
        compile_blocks(module, ["0"])
    (tmp_path / "inductor").chmod(0o700)
    compile_blocks(module, ["0"])
    assert os.environ.pop("TORCHINDUCTOR_CACHE_DIR") == str(tmp_path / "inductor")
