"""LoRA's layers: a target, one update of low rank or several named ones, and its variants.

    plain   y = W x + s · B A dropout(x)                     s = alpha / r; rsLoRA (Kalajdzievski 2023): alpha / √r
    DoRA    y = m / ‖W + s B A‖ · (W + s B A) x              Liu et al., ICML 2024; ‖·‖ is each output's norm, without gradient
    PiSSA   y = W x + s · (B A - B₀ A₀) x                    Meng et al., NeurIPS 2024

PiSSA begins with the principal part of W, s B₀ A₀ = U_r S_r V_rᵀ, in the update, and leaves the rest, W - s B₀ A₀, as the base.
That difference is never formed here: W stays as it was read, so it keeps its hash, ``adapters_off`` is the base exactly, and
another adapter may stand beside. The update that is saved for others is the plain one of rank 2 r, [B, -B₀] and [A; A₀].

A convolution's A has the base's kernel, stride and padding, and its B is a 1 × 1 convolution; a grouped one has a pair per
group, of a rank no larger than the group's outputs, so that the update always folds into W. An embedding's A is looked up
like the embedding, begins at zero, and B is drawn, as in PEFT.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from frostline.adapt.wrapper import Wrapper, is_transposed
from frostline.errors import ModelError

DEFAULT = "default"
"""The name of the adapter whose parameters stand in the wrapper itself."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What makes an update other than plain LoRA."""

    rslora: bool = False
    dora: bool = False
    pissa: bool = False


PLAIN = Variant()


class Lora(Wrapper):
    """A target and its updates; subclasses say how one is computed and what it adds to the weight.

    The first adapter's parameters are the wrapper's own, those of further ones (see adapters.py) lie under ``others``.
    ``parked`` (see parked.py) is filled in a network's first one only.
    """

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_magnitude_vector: nn.Parameter
    pissa_A: Tensor
    pissa_B: Tensor
    active: tuple[str, ...]
    """The adapters that are switched on."""
    kernel: Callable[..., Tensor] | None = None
    """A faster way to compute (x, weight, bias, A, B, scaling), for the length of a pass; it serves where one plain update is on."""
    output_dims: tuple[int, ...] = (0,)
    """The dimensions of the weight that count outputs; DoRA's norms run over the others."""

    def __init__(
        self, base: nn.Module, rank: int, alpha: float, dropout: float = 0.0,
        generator: torch.Generator | None = None, variant: Variant = PLAIN,
    ):  # fmt: skip
        super().__init__(base)
        self.scaling = alpha / (math.sqrt(rank) if variant.rslora else rank)
        self.dropout = nn.Dropout(dropout)
        self.variant = variant
        self.active = (DEFAULT,)
        self.others = nn.ModuleDict()
        self.parked = nn.ModuleDict()
        weight: Tensor = base.weight  # type: ignore[assignment]  # once: a quantised base makes it anew
        self._draw(weight, rank, generator)
        if variant.pissa:
            self._begin_with_principal_part(weight, rank)
        if variant.dora:
            self.lora_magnitude_vector = nn.Parameter(self.norm(weight.detach()))
        self.to(weight.device)

    def forward(self, x: Tensor) -> Tensor:
        if self.off or not self.active:
            return self.base(x)
        if self.kernel is not None and (only := self.only_update()) is not None:
            return self.kernel(x, self.base.weight, self.base.bias, only.lora_A, only.lora_B, only.scaling)
        plain = result = self.base(x)
        for piece in self.pieces():
            result = result + piece.contribution(x, plain)
        return result

    def only_update(self) -> Lora | None:
        """The one update that is on, where there is one and it is plain: no DoRA, PiSSA or dropout."""
        pieces = [] if self.off else self.pieces()
        return pieces[0] if len(pieces) == 1 and pieces[0].is_plain() else None

    def contribution(self, x: Tensor, plain: Tensor) -> Tensor:
        """What the adapter adds to ``plain``, the base's output."""
        added = self.scaling * self.update(self.dropout(x))
        if not self.variant.dora:
            return added
        ratio = self._ratio(self.base.weight).reshape(self.broadcast)
        bias = self.base.bias.reshape(self.broadcast) if getattr(self.base, "bias", None) is not None else 0.0
        return (ratio - 1) * (plain - bias) + ratio * added

    def update(self, x: Tensor) -> Tensor:
        """B A x."""
        if self.variant.pissa:
            return self.product(x, self.lora_A, self.lora_B) - self.product(x, self.pissa_A, self.pissa_B)
        return self.product(x, self.lora_A, self.lora_B)

    def delta(self) -> Tensor:
        """B A in the shape of the base's weight."""
        a, b = self.factors()
        return self.unfolded(a, b)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of the plain update: of rank 2 r with PiSSA."""
        if self.variant.pissa:
            return torch.cat([self.lora_A, self.pissa_A]), torch.cat([self.lora_B, -self.pissa_B], dim=1)
        return self.lora_A, self.lora_B

    def product(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """B A x of given factors."""
        raise NotImplementedError

    def unfolded(self, a: Tensor, b: Tensor) -> Tensor:
        """B A of given factors, in the shape of the base's weight."""
        raise NotImplementedError

    def norm(self, weight: Tensor) -> Tensor:
        """Each output's norm, in the shape of DoRA's magnitudes."""
        return weight.norm(dim=[d for d in range(weight.dim()) if d not in self.output_dims])

    @property
    def broadcast(self) -> tuple[int, ...]:
        """The shape in which a number per output meets the layer's output."""
        return (-1,)

    @property
    def weight(self) -> Tensor:
        """The folded weight."""
        if self.off:
            return self.base.weight
        weight = folded = self.base.weight
        for piece in self.pieces():
            folded = folded + piece.change(weight)
        return folded

    @property
    def bias(self) -> Tensor | None:
        """The base's bias; an embedding has none."""
        return getattr(self.base, "bias", None)

    def change(self, weight: Tensor) -> Tensor:
        """What the adapter adds to the base's ``weight``."""
        delta = self.scaling * self.delta()
        if not self.variant.dora:
            return delta
        ratio = self._ratio(weight)
        ratio = ratio.reshape([-1 if d in self.output_dims else 1 for d in range(weight.dim())])
        return (ratio - 1) * weight + ratio * delta

    def pieces(self) -> list[Lora]:
        """The adapters that are switched on."""
        return [self.piece(name) for name in self.active]

    def piece(self, name: str) -> Lora:
        """One adapter: the wrapper itself for the first one."""
        return self if name == DEFAULT else self.others[name]  # type: ignore[return-value]

    def add(self, name: str, piece: Lora) -> None:
        """Take in a further adapter, made around the same base."""
        assert piece.base is self.base, "an adapter of another layer"
        del piece._modules["base"]
        object.__setattr__(piece, "base", self.base)  # seen, but registered once only: its weights are in the state once
        self.others[name] = piece

    def own_learning(self) -> list[str]:
        """Names of one adapter's parameters."""
        return ["lora_A", "lora_B", *(["lora_magnitude_vector"] if self.variant.dora else [])]

    def learning(self) -> list[str]:
        """Names of the parameters of the adapters that are on."""
        places = {name: "" if name == DEFAULT else f"others.{name}." for name in self.active}
        return [f"{place}{inner}" for name, place in places.items() for inner in self.piece(name).own_learning()]

    def is_plain(self) -> bool:
        """Whether the update is s · B A x and nothing else."""
        return not self.variant.dora and not self.variant.pissa and not (self.training and self.dropout.p)

    def _ratio(self, weight: Tensor) -> Tensor:
        norm = self.norm(weight + self.scaling * self.delta().detach()).detach()
        return self.lora_magnitude_vector / norm

    def _draw(self, weight: Tensor, rank: int, generator: torch.Generator | None) -> None:
        raise NotImplementedError

    def _begin(self, weight: Tensor, a: tuple[int, ...], b: tuple[int, ...], generator: torch.Generator | None) -> None:
        """A drawn (Kaiming uniform, as PEFT does), B zero."""
        dtype = weight.dtype if weight.dtype.is_floating_point else torch.float32
        self.lora_A = nn.Parameter(torch.empty(a, dtype=dtype))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5), generator=generator)
        self.lora_B = nn.Parameter(torch.zeros(b, dtype=dtype))

    def _begin_with_principal_part(self, weight: Tensor, rank: int) -> None:
        raise ModelError(f"adapt.init: got 'pissa' on a {type(self.base).__name__!r}, expected linear layers. Use: adapt.init=default")


class LoRALinear(Lora):
    """Around a linear layer, one in few bits, or the ``Conv1D`` of GPT-2, whose weight is stored transposed."""

    def _draw(self, weight: Tensor, rank: int, generator: torch.Generator | None) -> None:
        self.transposed = is_transposed(self.base)
        self.output_dims = (1,) if self.transposed else (0,)
        outputs, inputs = reversed(weight.shape) if self.transposed else weight.shape
        self._begin(weight, (rank, inputs), (outputs, rank), generator)

    def product(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return functional.linear(functional.linear(x, a), b)

    def as_product(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pieces = [] if self.off else self.pieces()
        if not any(piece.dropout.training and piece.dropout.p for piece in pieces):
            return x, self.weight
        weight = self.base.weight
        factors = [piece.factors() for piece in pieces]
        inputs = [functional.linear(piece.dropout(x), a) for piece, (a, _) in zip(pieces, factors, strict=True)]
        product = torch.cat([weight, *(piece.scaling * b for piece, (_, b) in zip(pieces, factors, strict=True))], dim=1)
        if pieces[0].variant.dora:  # alone, then
            product = pieces[0]._ratio(weight)[:, None] * product
        return torch.cat([x, *inputs], dim=1), product

    def is_plain(self) -> bool:
        stored = self.base._parameters.get("weight") is not None  # a base in few bits would be made anew for the kernel
        return stored and super().is_plain()

    def unfolded(self, a: Tensor, b: Tensor) -> Tensor:
        delta = b @ a
        return delta.T if self.transposed else delta

    def _begin_with_principal_part(self, weight: Tensor, rank: int) -> None:
        """A and B from the r largest singular values, each taking their square roots; both are kept as A₀ and B₀."""
        a, b = self.lora_A, self.lora_B
        if not weight.is_meta:
            matrix = (weight.T if self.transposed else weight).detach().float()
            u, s, v = torch.linalg.svd(matrix, full_matrices=False)
            root = (s[:rank] / self.scaling).sqrt()
            found = min(rank, len(s))
            with torch.no_grad():
                a.zero_(), b.zero_()
                a[:found], b[:, :found] = root[:, None] * v[:rank], u[:, :rank] * root
        self.pissa_A, self.pissa_B = nn.Buffer(a.detach().clone()), nn.Buffer(b.detach().clone())


class LoRAConv(Lora):
    """Around ``nn.Conv1d`` or ``nn.Conv2d``."""

    def _draw(self, weight: Tensor, rank: int, generator: torch.Generator | None) -> None:
        outputs, inputs, *kernel = weight.shape  # inputs: of one group
        if self.base.groups > 1:
            rank = min(rank, outputs // self.base.groups)
        self._begin(weight, (self.base.groups * rank, inputs, *kernel), (outputs, rank, *[1] * len(kernel)), generator)

    def product(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        # The base's own _conv_forward, since its padding mode and its padding "same" have to hold for A too.
        hidden = self.base._conv_forward(x, a, None)
        pointwise = functional.conv2d if b.dim() == 4 else functional.conv1d
        return pointwise(hidden, b, groups=self.base.groups)

    def unfolded(self, a: Tensor, b: Tensor) -> Tensor:
        groups = self.base.groups
        a = a.reshape(groups, -1, math.prod(a.shape[1:]))  # (groups, rank, inputs × kernel)
        b = b.reshape(groups, -1, b.shape[1])  # (groups, outputs of a group, rank)
        return (b @ a).reshape(self.base.weight.shape)

    def norm(self, weight: Tensor) -> Tensor:
        return weight.flatten(1).norm(dim=1).reshape(self.broadcast)  # (1, outputs, 1, 1), as PEFT stores it

    @property
    def broadcast(self) -> tuple[int, ...]:
        return (1, -1, *[1] * (self.base.weight.dim() - 2))


class LoRAEmbedding(Lora):
    """Around ``nn.Embedding``."""

    output_dims = (1,)

    def _draw(self, weight: Tensor, rank: int, generator: torch.Generator | None) -> None:
        rows, width = weight.shape
        self.lora_A = nn.Parameter(torch.zeros(rank, rows, dtype=weight.dtype))
        self.lora_B = nn.Parameter(torch.empty(width, rank, dtype=weight.dtype).normal_(generator=generator))

    def contribution(self, x: Tensor, plain: Tensor) -> Tensor:
        added = self.scaling * self.update(x)  # ids have no dropout
        if not self.variant.dora:
            return added
        ratio = self._ratio(self.base.weight)
        return (ratio - 1) * plain + ratio * added

    def product(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        found = functional.embedding(x, a.T, self.base.padding_idx) @ b.T
        return found * getattr(self.base, "embed_scale", 1.0)  # some embeddings of transformers scale what they look up

    def unfolded(self, a: Tensor, b: Tensor) -> Tensor:
        return (b @ a).T

    def is_plain(self) -> bool:
        return False  # the kernel is for linear layers


def wrap(base: nn.Module, numbers: dict[str, Any], variant: Variant, generator: torch.Generator | None) -> Lora:
    """The layer for a kind of base, in its mode. ``numbers``: rank, alpha, dropout."""
    kind = LoRAConv if isinstance(base, nn.Conv1d | nn.Conv2d) else LoRAEmbedding if isinstance(base, nn.Embedding) else LoRALinear
    wrapper = kind(base, numbers["rank"], numbers["alpha"], numbers["dropout"], generator, variant)
    return wrapper.train(base.training)
