"""Frozen linear layers and convolutions, and what each multiplies in a batch: what the passes that change how they multiply choose
from."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frostline.adapt.lora_layers import LoRALinear
from frostline.data.loader import spread
from frostline.data.token_rows import IGNORED
from frostline.device import device_of
from frostline.kernels.convolution_unit import ConvolutionUnit, noticing, proven
from frostline.kernels.frozen_product import FrozenProduct
from frostline.models.model import evaluating
from frostline.plan.execution import Execution
from frostline.plan.machine import best_seconds_each

_MOST_ROWS, _MOST_IMAGES = 2048, 4  # timed with; more tell nothing new
_LARGE = 2**14  # places of an image: of such, half as many
_SMALLEST = 2**14  # numbers of a matrix: a smaller one is multiplied in no time


@dataclass(frozen=True, kw_only=True)
class FrozenLayer:
    """A frozen ``nn.Linear`` or ``nn.Conv2d`` of the network."""

    name: str
    layer: nn.Linear | nn.Conv2d
    rows: int
    """That it multiplies in one training batch, about; of a convolution, images."""
    row: tuple[int, ...]
    """The shape of one: (inputs,), or (channels, height, width)."""
    passes_gradient: bool
    """Whether something before it learns, so that it multiplies in both directions."""
    low: float
    high: float
    """The range of what came in."""
    unit: ConvolutionUnit | None = None
    """Of a convolution that no gradient passes: it, and what follows it."""

    @property
    def convolves(self) -> bool:
        """Whether it is a convolution."""
        return isinstance(self.layer, nn.Conv2d)

    @property
    def rows_to_time(self) -> int:
        """As many of its rows as show how fast it is."""
        if not self.convolves:
            return min(self.rows, _MOST_ROWS)
        return min(self.rows, _MOST_IMAGES if self.row[1] * self.row[2] < _LARGE else _MOST_IMAGES // 2)

    @property
    def shape(self) -> str:
        """By which layers are alike, as in plan.json."""
        if isinstance(self.layer, nn.Linear):
            what = f"{self.layer.in_features}x{self.layer.out_features}"
        else:
            sizes = [self.layer.kernel_size, self.layer.stride, self.layer.padding, self.layer.dilation, self.row[1:]]
            (kernel, stride, padding, dilation, image) = ("x".join(map(str, size)) for size in sizes)
            what = f"{self.layer.in_channels}x{self.layer.out_channels}/{self.layer.groups}"
            what += f" {kernel} stride {stride} padding {padding} dilation {dilation} of {image}"
            what += "".join(f" {type(part).__name__}" for part in self.unit.members[1:]) if self.unit else ""
        return f"{what}{'' if self.passes_gradient else ' forward'}"

    @property
    def plain(self) -> Callable[[Tensor], Tensor]:
        """What its product computes, by the layers themselves."""
        return self.unit or functools.partial(type(self.layer).forward, self.layer)  # type: ignore[arg-type]


def frozen_layers(execution: Execution, batch: int) -> list[FrozenLayer]:
    """The layers that a few rows pass through; ``batch``: rows of a training batch. On a GPU linear ones alone, for convolutions have forms
    of the processor's only, and none of those whose weights stay in the host's memory."""
    module, source = execution.model.module, execution.sources["train"]
    layers = _frozen(module, execution.hosted)
    if device_of(module).type != "cpu":
        layers = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Linear)}
    if not layers:
        return []
    few = source.encode(spread(source.rows, 3), None)
    convolutions = [name for name, layer in layers.items() if isinstance(layer, nn.Conv2d)]
    rows, passing = dict.fromkeys(layers, 0), dict.fromkeys(layers, False)
    shapes: dict[str, tuple[int, ...]] = {name: (layer.weight.shape[1],) for name, layer in layers.items()}
    ranges = dict.fromkeys(layers, (0.0, 0.0))

    def see(name: str, x: Tensor) -> None:
        inner = 3 if isinstance(layers[name], nn.Conv2d) else 1
        rows[name] += x.shape[:-inner].numel()
        passing[name] |= x.requires_grad
        shapes[name] = tuple(x.shape[-inner:])
        low, high = torch.aminmax(x.detach())
        ranges[name] = min(ranges[name][0], float(low)), max(ranges[name][1], float(high))

    with noticing(module, convolutions) as units, evaluating(module), observed(module, layers, see), torch.enable_grad():
        execution.forward(few)
    units = {name: unit for name, unit in units.items() if not (passing[name] or unit.learns)}
    one = source.encode(few.rows[:1].numpy(), None)
    if not proven(module, units, lambda: execution.forward(one)):
        units = {name: ConvolutionUnit(convolution=unit.convolution) for name, unit in units.items()}
    output = execution.model.output
    if output in layers and few.labels.dim() == 2:  # called by outputs_of with the labelled positions, and not as a module
        rows[output], passing[output] = int((few.labels != IGNORED).sum()), True
    scale = batch / len(few.rows)
    return [
        FrozenLayer(
            name=name, layer=layers[name], rows=max(1, round(scale * count)), row=shapes[name], passes_gradient=passing[name],
            low=ranges[name][0], high=ranges[name][1], unit=units.get(name),
        )
        for name, count in rows.items()
        if count
    ]  # fmt: skip


def alike(layers: Iterable[FrozenLayer]) -> dict[str, list[FrozenLayer]]:
    """By shape."""
    groups: dict[str, list[FrozenLayer]] = {}
    for item in layers:
        groups.setdefault(item.shape, []).append(item)
    return groups


def seconds_now_and_with(item: FrozenLayer, execution: Execution, product: FrozenProduct) -> tuple[float, float]:
    """Of a batch's rows through a layer as it multiplies now, and by a product; of a linear layer that a gradient passes, there and
    back."""
    rows, dtype = item.rows_to_time, computed_in(item, execution)
    device = item.layer.weight.device
    x = torch.randn(rows, *item.row, dtype=dtype, device=device)
    if item.convolves and execution.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    grad = torch.randn(rows, item.layer.weight.shape[0], dtype=dtype, device=device)
    back = item.passes_gradient and not item.convolves

    def plain() -> None:
        with execution.autocast():
            item.plain(x)
        if back:
            _ = grad @ item.layer.weight.to(grad.dtype)

    def by(chosen: FrozenProduct) -> None:
        chosen.forward(x, None)
        if back:
            chosen.gradient(grad)

    current = execution.products.get(item.name)
    with torch.no_grad():
        now, then = best_seconds_each([plain if current is None else lambda: by(current), lambda: by(product)], budget=0.05)
    return item.rows / rows * now, item.rows / rows * then


def computed_in(item: FrozenLayer, execution: Execution) -> torch.dtype:
    """The type of what comes in."""
    return torch.bfloat16 if execution.precision == "bf16" else item.layer.weight.dtype


def form_megabytes(layers: Iterable[FrozenLayer], execution: Execution) -> str:
    """What the forms of these layers' products take, for a plan's costs."""
    sizes = (execution.products[item.name].bytes_per_number * item.layer.weight.numel() * (1 + item.passes_gradient) for item in layers)
    return f"{sum(sizes) / 1e6:.0f} MB of memory"


def _frozen(module: nn.Module, hosted: Iterable[str]) -> dict[str, nn.Linear | nn.Conv2d]:
    """``hosted``: blocks that are left out."""
    return {
        name: part
        for name, part in module.named_modules()
        if (type(part) is nn.Linear or (type(part) is nn.Conv2d and part.padding_mode == "zeros" and not isinstance(part.padding, str)))
        and _is_frozen_parameter(part._parameters.get("weight"))  # a pruned or normed weight is made of parameters that may learn
        and "forward" not in vars(part)
        and (type(part) is nn.Conv2d or part.weight.numel() >= _SMALLEST)
        and not any(name.startswith(f"{block}.") for block in hosted)
    }


def _is_frozen_parameter(weight: nn.Parameter | None) -> bool:
    return weight is not None and not weight.requires_grad and weight.dtype != torch.float64


@contextlib.contextmanager
def observed(module: nn.Module, names: Iterable[str], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within, ``see`` gets what comes into each of these layers; a LoRA layer's base is not called where both are one function."""

    def enter(name: str, part: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        see(name, next(iter([*args, *kwargs.values()])))

    with contextlib.ExitStack() as stack:
        for name in names:
            around = module.get_submodule(name.rpartition(".")[0])
            part = around if isinstance(around, LoRALinear) else module.get_submodule(name)
            stack.callback(part.register_forward_pre_hook(functools.partial(enter, name), with_kwargs=True).remove)
        yield
