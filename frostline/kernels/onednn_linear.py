"""A linear layer that learns, multiplied by oneDNN in float32: as a convolution of 1 × 1 over its rows.

    y = x Wᵀ + b        dx = dy W        dW = dyᵀ x        db = Σ dy

``F.linear`` and its gradients go to the library that PyTorch has for matrices, MKL in its own builds, which on processors that are not
Intel's multiplies float32 at half of oneDNN's rate; a frozen weight is packed for oneDNN (:mod:`frostline.kernels.packed_product`), but one
that changes in each step is not. Convolutions go to oneDNN with all three products. The rows are one image, one number wide, whose
channels are the features and lie innermost, so that nothing is copied.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from frostline.kernels.precision import cast
from frostline.models.model import with_own


def linear_by_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear(x, weight, bias)``: ``x`` (…, inputs), at least one row → (…, outputs)."""
    image = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    return conv2d(image, weight[:, :, None, None], bias).permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


@contextlib.contextmanager
def multiplying_by_convolution(module: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Within, the linear layers of these names (as in ``named_modules``) multiply so where they multiply float32 on a CPU."""
    with contextlib.ExitStack() as stack:
        for name in names:
            layer = module.get_submodule(name)
            stack.enter_context(with_own(layer, "forward", functools.partial(_forward, layer, layer.forward)))
        yield


def _forward(layer: nn.Module, plain: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
    assert isinstance(layer, nn.Linear), "only linear layers are exchanged"
    operands = [tensor for tensor in cast(input, layer.weight, layer.bias) if tensor is not None]
    takes = input.numel() and all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in operands)
    return linear_by_convolution(input, layer.weight, layer.bias) if takes else plain(input)
