"""What one training step takes, counted without computing it: FLOPs, bytes moved, what is kept, and the peak of what is alive.

The module runs forward and backward on the ``meta`` device, where tensors have shapes and no contents, and every operation is
seen as it is dispatched. FLOPs come from the formulas of ``torch.utils.flop_counter``. In the backward pass a product that reads a
weight makes an input's gradient; a product of two tensors that come from the data makes a weight's gradient. Attention is
counted in its fused form, which keeps no (tokens × tokens) matrix. Code that asks for a value gets ``True`` or 1, so a row without
padding is counted. A product that no formula is known for is an error, and so is code whose shapes depend on values (``nonzero``).

Memory is followed by storage: an allocation at the operation that makes it, a release when the last tensor on it is gone. What
autograd saves is an activation, what ends as a parameter's ``.grad`` is a gradient, everything else is temporary.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry
from torch.utils.module_tracker import ModuleTracker

from frostline.errors import ModelError
from frostline.kernels.recompute import recomputing

_aten = torch.ops.aten
_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu: 2,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: 5,  # the scores again, and the gradients of four operands
}
"""Products of (queries × keys × width) in each; a causal mask is not taken off, as in ``torch.utils.flop_counter``."""
_BATCHED = (_aten.bmm, _aten.baddbmm)
_OF_EXPERTS = _aten._grouped_mm
"""Each token with the matrix of its expert; not in ``flop_registry``."""
FORWARD, INPUT, WEIGHT = "forward", "input gradient", "weight gradient"
ACTIVATION, GRADIENT, TEMPORARY = "activations", "gradients", "temporaries"


@dataclass(frozen=True, kw_only=True)
class StepCount:
    """One forward and backward pass. A multiplication and an addition are two FLOPs."""

    flops: dict[str, dict[str, int]]
    """``forward``, ``input gradient``, ``weight gradient`` → ``gemm``, ``convolution``, ``attention`` → FLOPs."""
    blocks: dict[str, int]
    """FLOPs by block (an entry of a module list, else a child of the module); ``""``: outside of all, the loss included. Not told
    apart where blocks are recomputed."""
    moved_bytes: dict[str, int]
    """``forward``, ``backward`` → bytes that all other operations (norms, activations, sums) read and write."""
    saved_bytes: int
    """Activations kept for the backward pass: distinct storages, parameters and buffers left out."""
    frozen_bytes: int
    """Weights and buffers that do not learn, as stored in the module."""
    learning_bytes: int
    gradients_bytes: int
    peak_bytes: int
    """The most that is alive at once, besides weights and the inputs."""
    timeline: list[dict[str, int]]
    """Live bytes by category (``activations``, ``gradients``, ``temporaries``) after each allocation and release."""

    @property
    def total_flops(self) -> int:
        return sum(sum(kinds.values()) for kinds in self.flops.values())

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def count_step(
    module: nn.Module, inputs: Mapping[str, Any] | tuple[Any, ...], *, loss: Callable[[Any], Tensor], recomputed: Sequence[str] = ()
) -> StepCount:
    """Count one step of ``module(**inputs)`` (or ``module(*inputs)``) and of ``loss(outputs)``, a scalar, and its gradients.

    The module may be real or on ``meta``; it is neither computed with nor changed. The loss decides what is counted behind the
    module's output: give it the labelled positions only, where only these reach the head. ``recomputed``: the names of blocks that keep
    what they are handed and are computed once more in the backward pass (:mod:`frostline.kernels.recompute`). Raises ModelError for a
    matrix product that cannot be counted; what cannot run without values raises an error of PyTorch's.
    """
    twin = _on_meta(module)
    given = tree_map(lambda value: value.to("meta") if isinstance(value, Tensor) else value, inputs)
    constants = [*twin.parameters(), *twin.buffers()]
    memory = _Memory({_key(t) for t in constants} | {_key(t) for t in tree_leaves(given) if isinstance(t, Tensor)})
    tracker = _Untold() if recomputed else ModuleTracker()
    counter = _Counter(memory, tracker, _block_names(twin))
    counter.data.update({_key(t) for t in tree_leaves(given) if isinstance(t, Tensor)})
    constant_keys = {_key(t) for t in constants}
    saved = _Saved(constant_keys, memory)
    for name in recomputed:
        twin.get_submodule(name).register_forward_pre_hook(saved.keep_handed, with_kwargs=True)
    with tracker, _FusedAttention(), counter, recomputing(twin, recomputed, around=_FusedAttention):
        with torch.autograd.graph.saved_tensors_hooks(saved.keep, lambda tensor: tensor):
            outputs = twin(**given) if isinstance(given, Mapping) else twin(*given)
            value = loss(outputs)
        del outputs
        counter.backward = True
        if value.requires_grad:
            value.backward()
    gradients = [p.grad for p in twin.parameters() if p.grad is not None]
    timeline = memory.timeline({memory.numbers[_key(g)] for g in gradients if _key(g) in memory.numbers})
    learning = sum(p.nbytes for p in twin.parameters() if p.requires_grad)
    return StepCount(
        flops=counter.flops, blocks=counter.blocks, moved_bytes=counter.moved, saved_bytes=saved.total,
        frozen_bytes=sum(t.nbytes for t in constants) - learning, learning_bytes=learning,
        gradients_bytes=sum(g.nbytes for g in gradients),
        peak_bytes=max((sum(point.values()) for point in timeline), default=0), timeline=timeline,
    )  # fmt: skip


def _on_meta(module: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers have shapes only; the real ones are never copied, and tied ones stay tied."""
    known: dict[int, Any] = {}
    for parameter in module.parameters():
        known[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        known[id(buffer)] = buffer.detach().to("meta")
    return copy.deepcopy(module, known)


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _block_names(module: nn.Module) -> dict[str, str]:
    """The tracker's name of each block → the block's own."""
    inside = [name for name, part in module.named_modules() if isinstance(part, nn.ModuleList | nn.Sequential) and name]
    outer = [name for name in inside if not any(name.startswith(f"{other}.") for other in inside)]
    names = [f"{name}.{child}" for name in outer for child, _ in module.get_submodule(name).named_children()]
    names += [name for name, _ in module.named_children() if not any(f"{other}.".startswith(f"{name}.") for other in outer)]
    return {f"{type(module).__name__}.{name}": name for name in names}


class _Untold(contextlib.nullcontext[None]):
    """In place of a ModuleTracker, which keeps what a recomputed block computes until the end of the backward pass."""

    parents = frozenset[str]()


class _Memory:
    """Storages that were made and not yet released, as a list of events."""

    def __init__(self, apart: set[int]) -> None:
        self.apart = apart
        self.numbers: dict[int, int] = {}
        self.events: list[tuple[int, int]] = []
        self.kept: set[int] = set()
        self.made = 0

    def see(self, tensor: Tensor, released: Callable[[int], None]) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.apart or key in self.numbers:
            return
        self.made += 1
        self.numbers[key] = self.made
        self.events.append((self.made, storage.nbytes()))
        weakref.finalize(storage, self._release, key, self.made, storage.nbytes(), released)

    def _release(self, key: int, number: int, size: int, released: Callable[[int], None]) -> None:
        if self.numbers.get(key) == number:
            del self.numbers[key]
            released(key)
        self.events.append((number, -size))

    def timeline(self, gradients: set[int]) -> list[dict[str, int]]:
        live = {ACTIVATION: 0, GRADIENT: 0, TEMPORARY: 0}
        points = []
        for number, size in list(self.events):
            live[GRADIENT if number in gradients else ACTIVATION if number in self.kept else TEMPORARY] += size
            points.append(dict(live))
        return points


class _Saved:
    """What autograd keeps, each storage once."""

    def __init__(self, constants: set[int], memory: _Memory) -> None:
        self.constants, self.memory = constants, memory
        self.seen: set[tuple[int, int]] = set()
        self.total = 0

    def keep(self, tensor: Tensor) -> Tensor:
        """What autograd asks to keep."""
        key = _key(tensor)
        number = self.memory.numbers.get(key, 0)
        if key not in self.constants and (key, number) not in self.seen:
            self.seen.add((key, number))
            self.memory.kept.add(number)
            self.total += tensor.untyped_storage().nbytes()
        return tensor

    def keep_handed(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        """Hidden states, once for each block; positions and masks are those of all blocks, and kept once."""
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self.keep(leaf)


class _Counter(TorchDispatchMode):
    def __init__(self, memory: _Memory, tracker: ModuleTracker | _Untold, names: dict[str, str]) -> None:
        super().__init__()
        self.memory, self.tracker, self.names = memory, tracker, names
        self.backward = False
        self.data: set[int] = set()
        """Storages that come from the inputs."""
        self.flops = {part: {"gemm": 0, "convolution": 0, "attention": 0} for part in (FORWARD, INPUT, WEIGHT)}
        self.blocks: dict[str, int] = {}
        self.moved = {"forward": 0, "backward": 0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _aten._local_scalar_dense.default and args[0].is_meta:
            return True if args[0].dtype == torch.bool else 1  # models ask whether a mask is all ones, or a range is valid
        out = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        of_data = [_key(tensor) in self.data for tensor in given]
        for tensor in made:
            self.memory.see(tensor, self.data.discard)
            if any(of_data):
                self.data.add(_key(tensor))
        packet = func.overloadpacket
        if packet in flop_registry or packet in _ATTENTION or packet.__name__.endswith("mm"):
            self._count(packet, args, kwargs or {}, out, of_data)
        elif not func.is_view and packet not in (_aten.detach, _aten.empty, _aten.empty_strided, _aten.empty_like):
            self.moved["backward" if self.backward else "forward"] += sum(t.nbytes for t in (*given, *made))
        return out

    def _count(self, packet: Any, args: Any, kwargs: dict[str, Any], out: Any, of_data: list[bool]) -> None:
        if packet in _ATTENTION:
            query, key = args[:2] if packet is _aten._scaled_dot_product_flash_attention_for_cpu else args[1:3]
            count = _ATTENTION[packet] * 2 * query.numel() * key.shape[2]
        elif packet is _OF_EXPERTS:
            count = 2 * args[0].numel() * args[1].shape[-1]
        elif packet not in flop_registry:
            raise ModelError(f"count: got the product {packet.__name__!r}, expected one whose FLOPs are known. Use nn.functional.linear")
        else:
            count = int(flop_registry[packet](*args, **kwargs, out_val=out))
        block = next((self.names[parent] for parent in self.tracker.parents if parent in self.names), "")
        self.blocks[block] = self.blocks.get(block, 0) + count
        name = packet.__name__
        kind = "attention" if "attention" in name or packet in _BATCHED else "convolution" if "conv" in name else "gemm"
        if packet is _aten.convolution_backward:
            mask = list(args[10]) if len(args) > 10 else list(kwargs["output_mask"])
            asked = [False, mask[1], False]
            of_weight = int(flop_registry[packet](*args[:10], asked, out_val=out)) if mask[1] else 0
            self.flops[WEIGHT][kind] += of_weight
            self.flops[INPUT][kind] += count - of_weight
        elif not self.backward:
            self.flops[FORWARD][kind] += count
        else:
            self.flops[WEIGHT if kind == "gemm" and all(of_data) else INPUT][kind] += count


class _FusedAttention(TorchFunctionMode):
    """Attention as the fused kernels do it: on ``meta`` PyTorch would take the form that writes every score."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        return self._attention(func, *args, **kwargs)

    @staticmethod
    def _attention(
        func: Any, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **options: Any
    ) -> Tensor:
        plain = query.dim() == 4 and not dropout_p and (attn_mask is None or not attn_mask.requires_grad)
        if not plain:
            return func(query, key, value, attn_mask, dropout_p, **options)
        mask = attn_mask if attn_mask is None or attn_mask.dtype != torch.bool else attn_mask.to(query.dtype)
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return fused(query, key, value, 0.0, options.get("is_causal", False), attn_mask=mask, scale=options.get("scale"))[0]
