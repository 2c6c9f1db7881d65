"""What this machine, or its GPU, multiplies by fastest: matrix products and convolutions of three sizes, by type and back end.

The passes do not read these: each times the shapes of the network at hand, in the run's own batches. They are for the reader of a plan,
who wants to know why a machine that is "the same" got another one.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional

from frostline.device import CPU, use
from frostline.files import cache_folder, write_atomically
from frostline.kernels.convolution_unit import ConvolutionUnit
from frostline.kernels.int8_convolution import Int8Convolution
from frostline.kernels.int8_product import can_lower
from frostline.kernels.lowered_product import lowered_product
from frostline.kernels.packed_convolution import PackedConvolution
from frostline.kernels.packed_product import PackedProduct, can_pack
from frostline.plan.machine import best_seconds_each, fingerprint
from frostline.terminal import table

SIDES, GPU_SIDES = (256, 768, 2048), (1024, 4096, 8192)
"""Of square matrices."""
CONVOLUTIONS = ((64, 56), (128, 28), (512, 7))
"""Channels in and out, and the side of the images; the kernel is 3 × 3."""
_IMAGES, _GPU_IMAGES = 4, 64
Rates = dict[str, dict[str, float]]
"""Of each product, by type and back end: 10⁹ operations a second, a multiplication and an addition being two."""


def product_rates(device: torch.device = CPU, *, again: bool = False) -> Rates | None:
    """From the cache, or None where they were never measured; ``again``: measured now, in about five seconds."""
    path = cache_folder() / f"products-{fingerprint(device)}.json"
    if again:
        use(device)
        with torch.device(device):
            on_cpu = device.type == "cpu"
            measured = {**_matrices(SIDES if on_cpu else GPU_SIDES), **_convolutions(_IMAGES if on_cpu else _GPU_IMAGES)}
        write_atomically(path, json.dumps(measured, indent=1).encode())
        return measured
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def as_table(rates: Rates | None) -> str:
    """A row for each product, a column for each way; the fastest is marked."""
    if rates is None:
        return "Products by type and back end are not measured yet. Use: frostline info --calibrate"
    ways = list(dict.fromkeys(way for found in rates.values() for way in found))
    rows = [
        [name, *("" if way not in found else f"{found[way]:.0f}{' ←' if found[way] == max(found.values()) else ''}" for way in ways)]
        for name, found in rates.items()
    ]
    return f"10⁹ operations a second; ← the fastest\n{table(['product', *ways], rows)}"


@torch.no_grad()
def _matrices(sides: Sequence[int]) -> Rates:
    found = {}
    for side in sides:
        x, layer = torch.randn(side, side), nn.Linear(side, side, bias=False)
        ways: dict[str, Callable[[], object]] = {}
        for name, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}.items():
            a, b = x.to(dtype), layer.weight.to(dtype)
            ways[name] = functools.partial(functional.linear, a, b)
            if can_pack(layer.weight, dtype):
                packed = PackedProduct(layer.weight, dtype=dtype, rows=side)
                ways[f"{name} packed"] = functools.partial(packed.forward, a, None)
        if (lowered := lowered_product(layer.weight)) is not None:
            ways[lowered.lowered_to] = functools.partial(lowered.forward, x, None)
        found[f"matrix {side}"] = _rates(ways, 2 * side**3)
    return found


@torch.no_grad()
def _convolutions(images: int) -> Rates:
    found = {}
    for channels, side in CONVOLUTIONS:
        layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        x, unit = torch.randn(images, channels, side, side), ConvolutionUnit(convolution=layer)
        ways: dict[str, Callable[[], object]] = {}
        for name, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16}.items():
            for inner, layout in {"": torch.contiguous_format, " channels last": torch.channels_last}.items():
                a, b = (tensor.to(dtype).contiguous(memory_format=layout) for tensor in (x, layer.weight))
                ways[f"{name}{inner}"] = functools.partial(functional.conv2d, a, b, padding=1)
            if can_pack(layer.weight, dtype):
                convolution = PackedConvolution(unit, dtype=dtype, images=tuple(x.shape))
                ways[f"{name} packed"] = functools.partial(convolution.forward, a, None)
        if can_lower(layer.weight):
            ways["int8"] = functools.partial(
                Int8Convolution(unit, low=-4.0, high=4.0).forward, x.contiguous(memory_format=torch.channels_last), None
            )
        found[f"convolution {channels}, {side} × {side}"] = _rates(ways, 2 * 9 * channels**2 * side**2 * images)
    return found


def _rates(ways: dict[str, Callable[[], object]], operations: int) -> dict[str, float]:
    seconds = best_seconds_each(list(ways.values()), budget=0.05)
    return {name: operations / one / 1e9 for name, one in zip(ways, seconds)}
