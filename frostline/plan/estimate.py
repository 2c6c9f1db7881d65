"""What fine-tuning a language model would take on a machine that need not be at hand, from its config alone: no weights are read.

    bytes    = weights + gradients + optimiser + (activations + temporaries) · batch
    seconds  = steps · (FLOPs / rate + bytes moved / bandwidth + update)

Activations, temporaries, FLOPs and bytes moved of the body are counted (:mod:`frostline.plan.meta_model`) for one row and for two:
they are affine in the rows. ``plan.checkpoint_activations=on`` counts each block's forward pass twice. Weights in few bits are counted
as if they were whole, which keeps the same activations; the time to turn them back is left out. The output layer is added by formula,
at labelled tokens: its logits live in one buffer (kernels/cross_entropy.py), and it takes three products of (tokens × width ×
vocabulary), two where it is frozen. Frozen weights are stored in bf16 on a GPU in bf16, else in fp32, or in few bits where the recipe
says so; what learns, its gradient and the optimiser's state are fp32.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from frostline.kernels.cross_entropy import CHUNK_BYTES
from frostline.models.model import Model
from frostline.plan.cost import STATE_TENSORS
from frostline.plan.meta_model import BodyCount, build, count_body, weight_bytes
from frostline.plan.target import Target, named_targets
from frostline.plan.wanted import Wanted, check
from frostline.recipe import AdaptRecipe
from frostline.terminal import table

_UNPACKED = 4 * 2**22 * 4
"""Bytes while a part of a weight in few bits is turned back: 2²² numbers, about four tensors of float32."""
_SMALL_RANK = 8
_LORA = AdaptRecipe(method="lora")


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A change to the run and what it would take then."""

    what: str
    """As it is typed behind the command that was asked."""
    total_bytes: int
    seconds: float
    fits: bool


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The answer: ``bytes`` and ``seconds`` of the run as it was asked about, whether it fits or not."""

    wanted: Wanted
    target: Target
    precision: str
    fits: bool
    most_rows: int
    """The most rows in one forward pass, up to the batch; 0: not one fits."""
    bytes: dict[str, int]
    """``weights``, ``gradients``, ``optimizer``, ``activations``, ``temporaries``."""
    flops: int
    """Of the whole run."""
    seconds: float
    advice: list[Advice]

    @property
    def total_bytes(self) -> int:
        return sum(self.bytes.values())

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "total_bytes": self.total_bytes}

    def __str__(self) -> str:
        wanted, room = self.wanted, self.target.memory_bytes
        share = f"{self.target.efficiency:.0%} of the machine's rates"
        most = f"; {self.most_rows} of {wanted.batch} rows at once would" if self.most_rows else ""
        lines = [
            f"{wanted.model} on {self.target.name} ({_gb(room)}): {'fits' if self.fits else f'does not fit{most}'}",
            f"{wanted.settings()}, for {wanted.rows} rows of {wanted.length} tokens, {wanted.labelled:.0%} of them labelled",
            table(["memory", "bytes"], [[name, _gb(size)] for name, size in self.bytes.items()] + [["total", _gb(self.total_bytes)]]),
            f"work: {self.flops:.3g} FLOPs, {_time(self.seconds)} in {self.precision} at {share}",
        ]
        if self.advice:
            changes = [[one.what, _gb(one.total_bytes), _time(one.seconds), "yes" if one.fits else "no"] for one in self.advice]
            lines.append(table(["change", "bytes", "time", "fits"], changes))
        if not any([self.fits, *(advice.fits for advice in self.advice)]):
            lines.append("Neither these changes nor one of the machines that are known by name let it fit. Use a smaller model")
        return "\n".join(lines)


def estimate(wanted: Wanted, target: Target) -> Estimate:
    """Whether the run fits, its seconds and bytes, and what to change where it does not fit or could be much faster.

    Raises ModelError for a config that cannot be read or counted, RecipeError for a run that cannot be estimated.
    """
    check(wanted)
    counts = _Counts()
    costs = counts.costs(wanted, target)
    return Estimate(
        wanted=wanted, target=target, precision=wanted.precision_on(target), fits=costs.fit(wanted.batch, target),
        most_rows=min(wanted.batch, costs.most_rows(target)), bytes=costs.of(wanted.batch),
        flops=wanted.epochs * wanted.rows * costs.flops, seconds=_seconds(wanted, target, costs),
        advice=_advice(wanted, target, counts),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Costs:
    """Bytes that stand, and what each row adds."""

    fixed: dict[str, int]
    per_row: dict[str, int]
    flops: int
    moved: int
    learning: int

    def of(self, rows: int) -> dict[str, int]:
        return {name: size + rows * self.per_row.get(name, 0) for name, size in self.fixed.items()}

    def total(self, rows: int) -> int:
        return sum(self.of(rows).values())

    def fit(self, rows: int, target: Target) -> bool:
        return self.total(rows) <= target.memory_bytes

    def most_rows(self, target: Target) -> int:
        return max(0, (target.memory_bytes - sum(self.fixed.values())) // max(1, sum(self.per_row.values())))


@dataclass(frozen=True, kw_only=True)
class _Counts:
    """Counted networks. The advice asks about the same one again and again: in few bits, on other machines."""

    known: dict[tuple[str, torch.dtype, bool], tuple[Model, BodyCount, BodyCount]] = field(default_factory=dict)
    made: dict[tuple[str, torch.dtype, bool], _Costs] = field(default_factory=dict)

    def costs(self, wanted: Wanted, target: Target) -> _Costs:
        precision = wanted.precision_on(target)
        target.rate(precision)
        stored = torch.bfloat16 if target.device == "gpu" and precision == "bf16" else torch.float32
        key, body = ((repr(adapt), stored, wanted.recompute) for adapt in (wanted.adapt, replace(wanted.adapt, base="full")))
        if body not in self.known:
            model = build(Path(wanted.model), wanted.adapt, stored)
            one, two = (count_body(model, rows=rows, length=wanted.length, recompute=wanted.recompute) for rows in (1, 2))
            self.known[body] = model, one, two
        if key not in self.made:
            self.made[key] = _costs(wanted, stored, *self.known[body])
        return self.made[key]


def _costs(wanted: Wanted, stored: torch.dtype, model: Model, one: BodyCount, two: BodyCount) -> _Costs:
    learning = sum(p.numel() for p in model.module.parameters() if p.requires_grad)
    saved, passing = two.saved_bytes - one.saved_bytes, max(0, two.temporary_bytes - one.temporary_bytes)
    tokens = round(wanted.labelled * wanted.length)
    unpacked = _UNPACKED if wanted.adapt.base != "full" else 0
    return _Costs(
        fixed={
            "weights": weight_bytes(model, wanted.adapt, stored),
            "gradients": learning * 4,
            "optimizer": learning * 4 * STATE_TENSORS[wanted.optimizer],
            "activations": max(0, one.saved_bytes - saved),
            "temporaries": max(0, one.temporary_bytes - passing) + 2 * CHUNK_BYTES + unpacked,
        },
        per_row={"activations": saved + tokens * _width(model) * stored.itemsize, "temporaries": passing},
        flops=two.flops - one.flops + _output_flops(model, tokens),
        moved=two.moved_bytes - one.moved_bytes,
        learning=learning,
    )  # fmt: skip


def _width(model: Model) -> int:
    return int(model.module.get_submodule(model.output).in_features)  # type: ignore[arg-type]


def _output_flops(model: Model, tokens: int) -> int:
    layer: Any = model.module.get_submodule(model.output)
    return (3 if layer.weight.requires_grad else 2) * 2 * tokens * layer.in_features * layer.out_features


def _seconds(wanted: Wanted, target: Target, costs: _Costs) -> float:
    seen, passes = wanted.epochs * wanted.rows, wanted.epochs * -(-wanted.rows // wanted.batch)
    steps = wanted.epochs * -(-wanted.rows // (wanted.batch * wanted.accumulate))
    update = costs.learning * 4 * (4 + 2 * STATE_TENSORS[wanted.optimizer])
    moved = seen * costs.moved + passes * costs.fixed["weights"] * 2 + steps * update  # weights are read forward and backward
    return seen * costs.flops / target.rate(wanted.precision_on(target)) + moved / target.bandwidth


def _advice(wanted: Wanted, target: Target, counts: _Counts) -> list[Advice]:
    """Fewer rows at once, then changes that change more and more, then another machine."""
    costs, changes = counts.costs(wanted, target), _changes(wanted, target)
    if costs.fit(wanted.batch, target):
        return [_judged(words, change, target, counts) for words, change in changes if change.adapt == wanted.adapt]
    smaller = [_judged("", wanted, target, counts)] if costs.most_rows(target) else []
    smaller += _computed_again(wanted, target, counts)
    judged = [_judged(words, change, target, counts) for words, change in changes]
    elsewhere = [("", wanted), *(change for change, here in zip(changes, judged, strict=True) if not here.fits)]
    return [*smaller, *judged, *_another_machine(elsewhere, target, counts)]


def _computed_again(wanted: Wanted, target: Target, counts: _Counts) -> list[Advice]:
    """With the blocks computed once more, where that lets more rows in: what stands must fit without any."""
    costs = counts.costs(wanted, target)
    if wanted.recompute or sum(costs.fixed.values()) - costs.fixed["activations"] > target.memory_bytes:
        return []
    again = replace(wanted, recompute=True)
    more = counts.costs(again, target).most_rows(target) > costs.most_rows(target)
    return [_judged("plan.checkpoint_activations=on", again, target, counts)] if more else []


def _changes(wanted: Wanted, target: Target) -> list[tuple[str, Wanted]]:
    """What is typed, and the run that is then asked about; each holds what those before it save, but for the rank."""
    changes, words = [], ""
    if wanted.precision == "fp32" and target.gflops.get("bf16", 0) > target.gflops["fp32"]:
        words, wanted = "train.precision=bf16", replace(wanted, precision="bf16")
        changes.append((words, wanted))
    if wanted.adapt.method == "full":
        words, wanted = f"{words} adapt=lora".strip(), replace(wanted, adapt=_LORA)
        changes.append((words, wanted))
    elif wanted.adapt.rank > _SMALL_RANK:
        rank = replace(wanted, adapt=replace(wanted.adapt, rank=_SMALL_RANK))
        changes.append((f"{words} adapt.rank={_SMALL_RANK}".strip(), rank))
    if wanted.adapt.base not in ("nf4", "int4"):
        changes.append((f"{words} adapt.base=nf4".strip(), replace(wanted, adapt=replace(wanted.adapt, base="nf4"))))
    return changes


def _judged(words: str, wanted: Wanted, target: Target, counts: _Counts) -> Advice:
    """What the changed run takes: its whole batch where that fits, else so many rows at once as divide the optimiser step."""
    costs, step = counts.costs(wanted, target), wanted.batch * wanted.accumulate
    most = min(wanted.batch, costs.most_rows(target))
    rows = wanted.batch if most == wanted.batch else max((n for n in range(1, most + 1) if step % n == 0), default=1)
    if rows != wanted.batch:
        wanted = replace(wanted, batch=rows, accumulate=step // rows)
        words = f"{words} train.batch={rows} train.accumulate={step // rows}".strip()
    return Advice(what=words, total_bytes=costs.total(rows), seconds=_seconds(wanted, target, costs), fits=costs.fit(rows, target))


def _another_machine(runs: list[tuple[str, Wanted]], target: Target, counts: _Counts) -> list[Advice]:
    """The smallest named machine (by memory, then by rate) for the run as it is; where none does, for the next smaller change."""
    machines = sorted(named_targets(), key=lambda other: (other.memory_bytes, other.gflops["fp32"]))
    for words, wanted in runs:
        able = [other for other in machines if other.name != target.name and wanted.precision_on(other) in other.gflops]
        found = [_judged(f"--on {other.name} {words}".strip(), wanted, other, counts) for other in able]
        whole = [advice for advice, other in zip(found, able, strict=True) if counts.costs(wanted, other).fit(wanted.batch, other)]
        if fitting := [*whole, *(advice for advice in found if advice.fits)]:
            return fitting[:1]
    return []


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min" if seconds < 36_000 else f"{seconds / 3600:.0f} h"
