"""A frozen convolution whose weight multiplies in a form of its own, with what follows it: packed for this machine, or in int8.

No gradient passes: neither to the images, before which nothing learns, nor to the bias. Layers are reached for the length of a pass
only (:func:`convolving`), so that a module is never left changed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from frostline.kernels.convolution_unit import ConvolutionUnit, computing
from frostline.kernels.frozen_product import FrozenProduct
from frostline.kernels.precision import cast, no_autocast


class FrozenConvolution(FrozenProduct):
    """What computes a unit; the bias is the unit's own."""

    def __init__(self, unit: ConvolutionUnit) -> None:
        super().__init__(unit.convolution.weight)
        self.unit = unit

    def version(self) -> object:
        return self.unit.version()

    def gradient(self, grad: Tensor) -> Tensor:
        """Raises NotImplementedError: what learns before a convolution keeps it as it is."""
        raise NotImplementedError("a frozen convolution computed so passes no gradient")


def convolving(module: nn.Module, products: Mapping[str, FrozenProduct]) -> contextlib.AbstractContextManager[None]:
    """Within, convolutions of these names (as in ``named_modules``) compute their units by their products."""
    ways = {}
    for name, product in products.items():
        if isinstance(product, FrozenConvolution) and not product.unit.learns:
            ways[name] = (product.unit, functools.partial(_compute, product))
    return computing(module, ways)


def _compute(product: FrozenConvolution, input: Tensor) -> Tensor | None:
    images: Any = cast(input)[0]
    if not product.takes(images.dtype):
        return None
    with torch.no_grad(), no_autocast(input):
        return laid_out(product.forward(images, None), images, product.weight)


def laid_out(y: Tensor, images: Tensor, weight: Tensor) -> Tensor:
    """What oneDNN gives, its channels innermost, in the layout that the plain convolution would give it: ``view`` and the order in which
    dropout draws depend on it."""
    inner = any(x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous() for x in (images, weight))
    return y if inner else y.contiguous()
