"""Weights in files: the same bits and layout, no file left, and nothing moved that something else holds as well."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from frostline.adapt.freeze import freeze
from frostline.kernels import mapped_weights
from frostline.kernels.mapped_weights import frozen_weights, map_weights


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path))
    return tmp_path / "mapped"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_the_same_bits_and_layout_and_no_file(dtype: torch.dtype, folder: Path) -> None:
    made = (torch.randn(6, 5, 3, 4) * 40).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = nn.Parameter(made.clone(), requires_grad=False)
    before = weight.untyped_storage().data_ptr()
    assert map_weights([weight]) > 0
    assert torch.equal(weight, made) and weight.stride() == made.stride() and weight.dtype == dtype
    assert weight.untyped_storage().data_ptr() != before and list(folder.iterdir()) == []
    with open("/proc/self/maps") as maps:
        assert any(str(folder) in line and "deleted" in line for line in maps)


def test_what_is_computed_with_them(folder: Path) -> None:
    layer, x = nn.Linear(70, 90), torch.randn(8, 70, requires_grad=True)
    layer.requires_grad_(False)
    plain = layer(x)
    (expected,) = torch.autograd.grad(plain.sum(), x)
    map_weights([layer.weight])
    moved = layer(x)
    (gradient,) = torch.autograd.grad(moved.sum(), x)
    assert torch.equal(moved, plain) and torch.equal(gradient, expected)


def test_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_weights, "_LEAST", 16 * 4)
    module = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 8, bias=False), nn.BatchNorm1d(32))
    module[3].weight = module[0].weight  # tied: one tensor, moved once
    shared = torch.zeros(2, 32)
    module[4].running_mean, module[4].running_var = shared[0], shared[1]
    freeze(module, lambda name: name.startswith("2."))
    assert list(frozen_weights(module)) == ["0.weight", "1.weight", "4.weight", "4.bias"]
    map_weights(list(frozen_weights(module).values()))
    assert module[3].weight is module[0].weight
    freeze(module, lambda name: True)
    assert frozen_weights(module) == {}


def test_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    weight = torch.randn(100)
    kept, before = weight.clone(), weight.data_ptr()
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        map_weights([weight])
    assert torch.equal(weight, kept) and weight.data_ptr() == before and list(folder.iterdir()) == []


def test_only_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_weights.sys, "platform", "darwin")
    with pytest.raises(OSError, match="it is for Linux"):
        map_weights([torch.zeros(3)])
