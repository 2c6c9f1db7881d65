"""Frozen linear layers, and what each multiplies in a batch: what the passes that change how they multiply choose from."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from frostline.adapt.lora_layers import LoRALinear
from frostline.data.token_rows import IGNORED
from frostline.kernels.frozen_product import FrozenProduct
from frostline.models.model import evaluating
from frostline.plan.execution import Execution
from frostline.plan.machine import best_seconds

_MOST_ROWS = 2048
"""Timed with; more tell nothing new."""
_SMALLEST = 2**14  # numbers: a smaller weight is multiplied in no time


@dataclass(frozen=True, kw_only=True)
class FrozenLayer:
    """A frozen ``nn.Linear`` of the network."""

    name: str
    layer: nn.Linear
    rows: int
    """That it multiplies in one training batch, about."""
    passes_gradient: bool
    """Whether something before it learns, so that it multiplies in both directions."""

    @property
    def shape(self) -> str:
        """By which layers are alike, as in plan.json."""
        return f"{self.layer.in_features}x{self.layer.out_features}{'' if self.passes_gradient else ' forward'}"


def frozen_layers(execution: Execution, batch: int) -> list[FrozenLayer]:
    """The layers that a few rows pass through; ``batch``: rows of a training batch."""
    module, source = execution.model.module, execution.sources["train"]
    layers = _frozen(module)
    if not layers:
        return []
    few = source.encode(np.linspace(0, source.rows - 1, num=min(3, source.rows), dtype=int), None)
    rows, passing = dict.fromkeys(layers, 0), dict.fromkeys(layers, False)

    def see(name: str, x: Tensor) -> None:
        rows[name] += x.shape.numel() // x.shape[-1]
        passing[name] |= x.requires_grad

    with evaluating(module), observed(module, layers, see), torch.enable_grad():
        execution.forward(few)
    output = execution.model.output
    if output in layers and few.labels.dim() == 2:  # called by outputs_of with the labelled positions, and not as a module
        rows[output], passing[output] = int((few.labels != IGNORED).sum()), True
    scale = batch / len(few.rows)
    return [
        FrozenLayer(name=name, layer=layers[name], rows=max(1, round(scale * count)), passes_gradient=passing[name])
        for name, count in rows.items()
        if count
    ]


def alike(layers: Iterable[FrozenLayer]) -> dict[str, list[FrozenLayer]]:
    """By shape."""
    groups: dict[str, list[FrozenLayer]] = {}
    for item in layers:
        groups.setdefault(item.shape, []).append(item)
    return groups


def seconds_plain(item: FrozenLayer, execution: Execution) -> float:
    """Of a batch's rows through a layer as it multiplies now, and of their gradient back."""
    product, weight = execution.products.get(item.name), item.layer.weight.detach()
    if product is not None:
        return seconds_with(item, execution, product)

    def forward(x: Tensor) -> Tensor:
        with execution.autocast():
            return nn.functional.linear(x, weight)

    return _seconds(item, execution, forward, lambda grad: grad @ weight.to(grad.dtype))


def seconds_with(item: FrozenLayer, execution: Execution, product: FrozenProduct) -> float:
    """The same, by a product."""
    return _seconds(item, execution, lambda x: product.forward(x, None), product.gradient)


def _seconds(item: FrozenLayer, execution: Execution, forward: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> float:
    rows = min(item.rows, _MOST_ROWS)
    dtype = computed_in(item, execution)
    x, grad = torch.randn(rows, item.layer.in_features, dtype=dtype), torch.randn(rows, item.layer.out_features, dtype=dtype)

    def once() -> None:
        forward(x)
        if item.passes_gradient:
            back(grad)

    with torch.no_grad():
        return item.rows / rows * best_seconds(once, budget=0.05)


def computed_in(item: FrozenLayer, execution: Execution) -> torch.dtype:
    """The type of what comes in."""
    return torch.bfloat16 if execution.precision == "bf16" else item.layer.weight.dtype


def form_megabytes(layers: Iterable[FrozenLayer], execution: Execution) -> str:
    """What the forms of these layers' products take, for a plan's costs."""
    sizes = (execution.products[item.name].bytes_per_number * item.layer.weight.numel() * (1 + item.passes_gradient) for item in layers)
    return f"{sum(sizes) / 1e6:.0f} MB of memory"


def _frozen(module: nn.Module) -> dict[str, nn.Linear]:
    return {
        name: part
        for name, part in module.named_modules()
        if type(part) is nn.Linear and not part.weight.requires_grad and part.weight.numel() >= _SMALLEST
    }


@contextlib.contextmanager
def observed(module: nn.Module, names: Iterable[str], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within, ``see`` gets what comes into each of these layers; a LoRA layer's base is not called where both are one function."""

    def enter(name: str, part: nn.Module, args: tuple[Tensor, ...]) -> None:
        see(name, args[0])

    with contextlib.ExitStack() as stack:
        for name in names:
            around = module.get_submodule(name.rpartition(".")[0])
            part = around if isinstance(around, LoRALinear) else module.get_submodule(name)
            stack.callback(part.register_forward_pre_hook(functools.partial(enter, name)).remove)
        yield
