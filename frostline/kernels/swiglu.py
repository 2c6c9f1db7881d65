"""The gated product of SwiGLU as one function of autograd: silu(gate) · up (Shazeer, "GLU variants improve Transformer", 2020).

Written as layers, autograd keeps the gate, silu(gate) and the other factor; here silu(gate) is computed anew for the gradient, which
costs one pass and saves a quarter of what such a block keeps.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from frostline.kernels import block_kernels
from frostline.models.model import evaluating, with_own

_PARTS = ("gate_proj", "up_proj", "down_proj")


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``gate`` and ``up`` of one shape and type → the same."""
    return _SwiGLU.apply(gate, up)


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return block_kernels.swiglu(gate, up) if _one_pass(gate, up) else silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        if _one_pass(gate, up, grad):
            return block_kernels.swiglu_gradient(grad, gate, up)
        return torch.ops.aten.silu_backward(grad * up, gate), silu(gate).mul_(grad)


def _one_pass(gate: Tensor, *others: Tensor) -> bool:
    """On a CPU, either direction (:mod:`frostline.kernels.block_kernels`)."""
    return block_kernels.takes(gate, *others) and all(other.dtype == gate.dtype for other in others)


def find(module: nn.Module) -> list[str]:
    """The parts of a network that compute ``down_proj(silu(gate_proj(x)) · up_proj(x))``, by their names: each is tried."""
    candidates = {name: part for name, part in module.named_modules() if all(hasattr(part, one) for one in _PARTS)}
    with torch.random.fork_rng(devices=[]):
        return [name for name, part in candidates.items() if _computes(part)]


@contextlib.contextmanager
def gated(module: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Within, these parts are computed by :func:`swiglu`."""
    with contextlib.ExitStack() as stack:
        for name in names:
            part = module.get_submodule(name)
            stack.enter_context(with_own(part, "forward", functools.partial(_forward, part)))
        yield


def _forward(part: Any, *args: Tensor, **kwargs: Tensor) -> Tensor:
    (x,) = (*args, *kwargs.values())
    return part.down_proj(swiglu(part.gate_proj(x), part.up_proj(x)))


@torch.no_grad()
def _computes(part: Any) -> bool:
    weight = next(part.gate_proj.parameters(), None)
    if weight is None:
        return False
    features = getattr(part.gate_proj, "in_features", weight.shape[-1])
    x = torch.linspace(-2, 3, 2 * features, device=weight.device, dtype=weight.dtype).sin().view(1, 2, features)
    try:
        with evaluating(part):
            if not _passes_down_the_product(part, x):
                return False
            part.train()  # a dropout of the part's own would show
            return _passes_down_the_product(part, x)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return False  # it wants other inputs


def _passes_down_the_product(part: Any, x: Tensor) -> bool:
    """Whether the output is the product where ``down_proj`` gives what it gets, for its weights may be zeros, which say nothing."""
    with with_own(part.down_proj, "forward", lambda hidden: hidden):
        torch.manual_seed(0)
        output = part(x)
        torch.manual_seed(0)
        product = swiglu(part.gate_proj(x), part.up_proj(x))
    size = float(product.abs().max())
    return output.shape == product.shape and size > 0 and float((output - product).abs().max()) <= 1e-5 * size
