"""A layer with something that learns around it: what LoRA, VeRA, IA³ and bottleneck adapters have in common.

The wrapper stands around its target from outside: ``TARGET.base`` is the very module that was there, and no model and no
layer knows of it. ``weight`` and ``bias`` are the folded ones, so code that reads a layer's weight instead of calling the
layer (``nn.MultiheadAttention``, the fast path of ``nn.TransformerEncoderLayer``) computes the same, and folding is written
once, here. A folded weight is a new parameter: a tied one (an output layer that shares the embedding's) is so taken apart,
and the other place keeps what it had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from frostline.errors import ModelError


class Wrapper(nn.Module):
    """A target and what learns beside it. Subclasses say what ``forward`` and the folded ``weight`` are."""

    base: Any
    off: bool
    """Within ``adapters_off``: the base answers alone."""
    LEARNING: tuple[str, ...] = ()
    """The parameters' names, below the wrapper."""
    FOLDS: bool = True
    """Whether it can be folded into the base's weight."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base
        self.off = False

    @property
    def weight(self) -> Tensor:
        """The folded weight."""
        raise NotImplementedError

    @property
    def bias(self) -> Tensor | None:
        """The folded bias."""
        return self.base.bias

    def learning(self) -> list[str]:
        """Names, below this one, of what learns."""
        return list(self.LEARNING)

    def as_product(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of a linear layer: inputs (rows, n) and a weight (outputs, n) whose product is its output for ``x``, but for the bias.

        For code that multiplies in its own way, as the loss of a vocabulary does. Where dropout is on, n is larger than the width of
        ``x``: what it acts on cannot be folded into a weight.
        """
        return x, self.weight

    def check_for_folding(self, name: str) -> None:
        """Raises ModelError where what stands in the wrapper must not go into a weight."""
        for parameter, tensor in self.named_parameters():
            if not parameter.startswith("base.") and not torch.isfinite(tensor).all():
                raise ModelError(
                    f"adapter: {f'{name}.{parameter}'!r} holds NaN or infinite numbers, expected finite ones. "
                    "Go back to a checkpoint from before the loss was not finite"
                )


def is_transposed(module: nn.Module) -> bool:
    """Whether it is the ``Conv1D`` of GPT-2, a linear layer whose weight is (inputs, outputs)."""
    kind = type(module)  # named, to leave transformers unimported
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def wrappers(module: nn.Module) -> Iterator[tuple[str, Wrapper]]:
    """Every place of every wrapper. A further adapter that lies in a wrapper has no base of its own and does not count."""
    for name, part in module.named_modules(remove_duplicate=False):
        if isinstance(part, Wrapper) and "base" in part._modules:
            yield name, part


def learning_names(module: nn.Module) -> set[str]:
    """Full names of all parameters that learn in wrappers."""
    return {f"{name}.{inner}" for name, part in wrappers(module) for inner in part.learning()}


def replace(module: nn.Module, name: str, new: nn.Module) -> None:
    """Put ``new`` where ``name`` stands."""
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, new)


def fold(module: nn.Module) -> None:
    """Fold every wrapper into its base's weight and put the base back; the outputs are the same to rounding. Not reversible.

    A quantised base comes back as a layer of full precision: what it stood for, and the change (law 9). Raises ModelError, before
    anything is touched, for an adapter that was never trained, holds NaN, or cannot be folded.
    """
    found = list(wrappers(module))
    refuse_what_cannot_fold(found)
    bases: dict[nn.Module, nn.Module] = {}
    for _, part in found:
        if part not in bases:
            tied = _is_tied(module, part.base)
            bases[part] = folded(part, into=part.base)
            config: Any = getattr(module, "config", None)
            if tied and config is not None:
                config.tie_word_embeddings = False
    for name, part in found:
        replace(module, name, bases[part])


def refuse_what_cannot_fold(found: list[tuple[str, Wrapper]], weight_of: Callable[[Wrapper], Tensor] | None = None) -> None:
    """Raises ModelError for wrappers that must not be folded. ``found``: as :func:`wrappers` gives them.

    ``weight_of``: the weight that is to be put in place, where it is not the folded one.
    """
    if not found:
        raise ModelError("adapter: got a model without one, expected one to fold. It may be merged already; load the model anew")
    for name, part in found:
        if not part.FOLDS:
            raise ModelError(f"adapter: {name!r} holds a {type(part).__name__!r}, which no weight can take up. Save the model as it is")
        part.check_for_folding(name)
    if all(not _changes(part, weight_of) for _, part in found):
        raise ModelError("adapter: got one that was never trained (it changes no weight), expected a trained one. Train it first")


def folded(part: Wrapper, into: nn.Module, weight: Tensor | None = None) -> nn.Module:
    """``into`` (the base or a copy) with the folded weight (or ``weight``) and bias; a layer in full precision for a quantised base."""
    with torch.no_grad():
        weight = (part.weight if weight is None else weight).detach().clone()
        bias = part.bias.detach().clone() if part.bias is not None else None
    if not isinstance(getattr(into, "weight", None), nn.Parameter):
        into = into.full()  # type: ignore[operator]  # a quantised base
        weight = weight.T.contiguous() if is_transposed(into) else weight
    learns = [parameter.requires_grad for parameter in into.parameters() if not parameter.is_meta]
    into.weight = nn.Parameter(weight, requires_grad=any(learns))
    if bias is not None:
        into.bias = nn.Parameter(bias, requires_grad=any(learns))
    return into


def _changes(part: Wrapper, weight_of: Callable[[Wrapper], Tensor] | None) -> bool:
    with torch.no_grad():
        if weight_of is not None:
            return not torch.equal(weight_of(part), part.base.weight)
        same_bias = part.bias is None or part.base.bias is None or torch.equal(part.bias, part.base.bias)
        return not (same_bias and torch.equal(part.weight, part.base.weight))


def _is_tied(module: nn.Module, base: nn.Module) -> bool:
    weight = base._parameters.get("weight")
    owners = [part for part in module.modules() if any(parameter is weight for parameter in part._parameters.values())]
    return weight is not None and len(owners) > 1
