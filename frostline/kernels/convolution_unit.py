"""A frozen convolution, and the batch norm and the activation behind it, as one function; no gradient passes.

    activation(norm(conv(x)))  =  activation(conv'(x))        W' = W · γ / √(σ² + ε)        b' = (b - μ) · γ / √(σ² + ε) + β

which holds where the norm is frozen too, for then its statistics are constants. What follows a convolution is found by watching
which tensors go where as the network runs, and believed only where the network, computed so, gives the same to the last bit.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frostline.adapt.freeze import is_frozen
from frostline.models.model import evaluating, with_own

_ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
}
"""By oneDNN's names, with its numbers."""


@dataclass(eq=False, kw_only=True)
class ConvolutionUnit:
    """What is computed as one; without norm and activation, the convolution alone. Called, it computes them one after the other."""

    convolution: nn.Conv2d
    norm: nn.BatchNorm2d | None = None
    activation: nn.Module | None = None

    @property
    def members(self) -> list[nn.Module]:
        """In their order."""
        return [part for part in (self.convolution, self.norm, self.activation) if part is not None]

    @property
    def function(self) -> tuple[str, list[float]]:
        """The activation by oneDNN's name, and its numbers."""
        return ("none", []) if self.activation is None else _ACTIVATIONS[type(self.activation)]

    @property
    def geometry(self) -> tuple[list[int], list[int], list[int], int]:
        """Stride, padding, dilation, groups."""
        layer: Any = self.convolution
        return list(layer.stride), list(layer.padding), list(layer.dilation), layer.groups

    @property
    def learns(self) -> bool:
        """Whether one of its numbers changes in training; it could not be computed as one then."""
        return any(p.requires_grad for part in self.members for p in part.parameters()) or (self.norm is not None and self.norm.training)

    def __call__(self, x: Tensor) -> Tensor:
        for part in self.members:
            x = type(part).forward(part, x)
        return x

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """The weight and the bias with the norm in them, float32."""
        layer, norm = self.convolution, self.norm
        weight, bias = layer.weight.detach().float(), None if layer.bias is None else layer.bias.detach().float()
        if norm is None:
            return weight, bias
        mean, variance = (getattr(norm, name).double() for name in ("running_mean", "running_var"))
        factor = (variance + norm.eps).rsqrt()
        if norm.weight is not None:
            factor = factor * norm.weight.detach().double()
        shift = (-mean if bias is None else bias.double() - mean) * factor
        if norm.bias is not None:
            shift = shift + norm.bias.detach().double()
        return (weight.double() * factor[:, None, None, None]).float(), shift.float()

    def version(self) -> tuple[int, ...]:
        """Changes where one of its numbers is written to."""
        return tuple(tensor._version for part in self.members for tensor in (*part.parameters(), *part.buffers()))


class _Origins:
    """Which unit a tensor comes from, as long as nobody has written to it since."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[weakref.ref[Tensor], int, ConvolutionUnit]] = {}

    def set(self, y: Tensor, unit: ConvolutionUnit) -> None:
        self._found[id(y)] = (weakref.ref(y), y._version, unit)

    def get(self, x: Tensor) -> ConvolutionUnit | None:
        reference, version, unit = self._found.get(id(x), (None, 0, None))
        return unit if reference is not None and reference() is x and version == x._version else None


@contextlib.contextmanager
def noticing(module: nn.Module, convolutions: Iterable[str]) -> Iterator[dict[str, ConvolutionUnit]]:
    """Within, a pass of the network fills in what follows each of these convolutions, which are frozen."""
    names = {id(module.get_submodule(name)): name for name in convolutions}
    plain = {id(part) for part in module.modules() if _plain(part)}
    units: dict[str, ConvolutionUnit] = {}
    origins, entered = _Origins(), dict[int, ConvolutionUnit | None]()

    def enter(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entered[id(part)] = origins.get(next(iter([*args, *kwargs.values()])))  # now, since the part may write to it

    def leave(part: Any, _: tuple[Any, ...], y: Tensor) -> None:
        unit = entered[id(part)]
        if id(part) in names:
            again = names[id(part)] in units  # what follows may be another thing each time
            unit = units[names[id(part)]] = ConvolutionUnit(convolution=part)
            if again or id(part) not in plain:
                return
        elif unit is None or unit.activation is not None:
            return
        elif not isinstance(part, nn.BatchNorm2d):
            unit.activation = part
        elif unit.norm is None and is_frozen(part) and part.running_mean is not None:
            unit.norm = part
        else:
            return
        origins.set(y, unit)

    with contextlib.ExitStack() as stack:
        for part in module.modules():
            if id(part) in names or (id(part) in plain and (type(part) is nn.BatchNorm2d or type(part) in _ACTIVATIONS)):
                stack.callback(part.register_forward_pre_hook(enter, with_kwargs=True).remove)
                stack.callback(part.register_forward_hook(leave).remove)
        yield units


def proven(module: nn.Module, units: Mapping[str, ConvolutionUnit], run: Callable[[], object]) -> bool:
    """Whether the network gives the same to the last bit where each convolution computes its unit, and the norms and activations pass on
    what they get. That shows that nobody else reads what lies between; all that enters any other layer is compared. Nothing lies
    between where each unit is a convolution alone."""
    if all(len(unit.members) == 1 for unit in units.values()):
        return True
    inside = {id(part) for unit in units.values() for part in unit.members}
    others = [part for part in module.modules() if id(part) not in inside and not list(part.children())]

    def seen() -> list[str]:
        sums: list[str] = []

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            for value in (*args, *kwargs.values()):
                note(value)

        def note(value: object) -> None:
            if isinstance(value, Tensor):
                wide = value.detach().double()
                sums.append(f"{wide.sum()!r} {wide.abs().sum()!r}")

        with contextlib.ExitStack() as stack:
            for part in others:
                stack.callback(part.register_forward_pre_hook(enter, with_kwargs=True).remove)
            note(run())
        return sums

    with evaluating(module), torch.no_grad():
        plain = seen()
        try:
            with computing(module, {name: (unit, unit) for name, unit in units.items()}):
                return seen() == plain
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):  # each network fails in its own way
            return False


Compute = Callable[[Tensor], Tensor | None]
"""Images → what a unit gives for them, or None where it is to be computed plainly."""


@contextlib.contextmanager
def computing(module: nn.Module, ways: Mapping[str, tuple[ConvolutionUnit, Compute]]) -> Iterator[None]:
    """Within, the convolutions of these names compute their units so, whose norms and activations pass on what they get from them."""
    origins = _Origins()
    readers: dict[int, tuple[nn.Module, set[ConvolutionUnit]]] = {}
    with contextlib.ExitStack() as stack:
        for name, (unit, compute) in ways.items():
            layer = module.get_submodule(name)
            stack.enter_context(with_own(layer, "forward", functools.partial(_compute, unit, compute, layer.forward, origins)))
            for part in unit.members[1:]:
                readers.setdefault(id(part), (part, set()))[1].add(unit)
        for part, from_units in readers.values():
            stack.enter_context(with_own(part, "forward", functools.partial(_pass_on, from_units, part.forward, origins)))
        yield


def _compute(unit: ConvolutionUnit, compute: Compute, plain: Callable[[Tensor], Tensor], origins: _Origins, input: Tensor) -> Tensor:
    y = compute(input)
    if y is None:
        return plain(input)
    origins.set(y, unit)
    return y


def _pass_on(units: set[ConvolutionUnit], plain: Callable[[Tensor], Tensor], origins: _Origins, input: Tensor) -> Tensor:
    return input if origins.get(input) in units else plain(input)


def _plain(part: nn.Module) -> bool:
    return not (part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part))
