"""The last block of an encoder computed for the first token alone, where that is all that its reader looks at.

A classifier of texts or images reads the output of the first token (BERT's [CLS], ViT's class token). Attention in the last block
still looks at all tokens; what stands behind it, two thirds of a block's multiply-adds, is computed for each token by itself, and
needed for one. So the block is run on the first token, except that its attention gets the whole sequence and gives what it has for
the first. Where the attention's own query and output layers are known and rows are not packed, these, too, compute one token, and it
alone looks at the others: keys and values are all that is left for all. The sums are the same; dropout draws masks of other shapes from
the same distribution.

The block's own code runs, whatever model it is of. It is known by what its calls show: one attention, which is handed either what
the block is, or that after one norm. Whoever reads more than the first token gets another result: this is tried before it is used.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from frostline.kernels.batch_attention import Attend, exchanged, options_of
from frostline.kernels.unpad import leave_first_tokens
from frostline.models.model import with_own


@dataclass(frozen=True, kw_only=True)
class FirstToken:
    """Names of the last block, of its attention, and of the norm before that, if there is one."""

    block: str
    attention: str
    norm: str | None
    query: str | None = None
    """The linear layer that gives the attention's queries and nothing else; None where none is known."""
    output: str | None = None
    """The linear layer that takes what attention gives."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def find(module: nn.Module, blocks: Sequence[str], run: Callable[[], object]) -> FirstToken | None:
    """What ``run``, a forward pass, shows of the last block; None where it is built in another way."""
    if not blocks:
        return None
    last = module.get_submodule(blocks[-1])
    attentions = _attentions(last)
    if len(attentions) != 1:
        return None
    (name,) = attentions
    entered: list[Any] = []
    heard: list[Any] = []
    after: dict[str, list[tuple[Any, Any]]] = {}

    def enter(kept: list[Any], _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept.append(_hidden(args, kwargs))

    def leave(child: str, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        after.setdefault(child, []).append((args[0] if args else None, output))

    attention = last.get_submodule(name)
    with contextlib.ExitStack() as stack:
        around = stack.enter_context(_watching(attention))
        for part, kept in ((last, entered), (attention, heard)):
            stack.callback(part.register_forward_pre_hook(functools.partial(enter, kept), with_kwargs=True).remove)
        for child, part in last.named_children():
            stack.callback(part.register_forward_hook(functools.partial(leave, child)).remove)
        with torch.no_grad():
            run()
    if len(entered) != 1 or len(heard) != 1 or not isinstance(entered[0], Tensor) or entered[0].dim() != 3:
        return None
    norms = [child for child, calls in after.items() if any(given is entered[0] and output is heard[0] for given, output in calls)]
    if heard[0] is not entered[0] and not norms:
        return None
    query, output = around.layers(heard[0])
    place = f"{blocks[-1]}.{name}"
    return FirstToken(
        block=blocks[-1], attention=place, norm=f"{blocks[-1]}.{norms[0]}" if norms else None,
        query=f"{place}.{query}" if query and output else None, output=f"{place}.{output}" if query and output else None,
    )  # fmt: skip


@dataclass(kw_only=True)
class _Watched:
    """What a pass shows of an attention's linear layers: each call's name, input and output; those before attention itself, and behind."""

    before: list[tuple[str, Any, Tensor]] = field(default_factory=list)
    operands: list[Tensor] = field(default_factory=list)
    """Query, key and value."""
    behind: list[tuple[str, Any, Tensor]] = field(default_factory=list)

    def layers(self, hidden: Any) -> tuple[str | None, str | None]:
        """Names of those that give the queries and take the output, where there is one attention with just one such layer each."""
        if len(self.operands) != 3 or len(self.behind) != 1:
            return None, None
        query, key, value = (part.untyped_storage().data_ptr() for part in self.operands)
        found = [name for name, x, y in self.before if x is hidden and y.untyped_storage().data_ptr() == query]
        return (found[0] if len(found) == 1 and query not in (key, value) else None), self.behind[0][0]


@contextlib.contextmanager
def _watching(attention: nn.Module) -> Iterator[_Watched]:
    """Within, what the attention's linear layers and the attention itself are called with is noted."""
    seen = _Watched()

    def see(plain: Attend, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.operands += [query, key, value]
        return plain(query, key, value, *args, **kwargs)

    def leave(name: str, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        (seen.behind if seen.operands else seen.before).append((name, args[0] if args else None, output))

    def attend(plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with exchanged(see):
            return plain(*args, **kwargs)

    with contextlib.ExitStack() as stack:
        for name, part in attention.named_modules():
            if type(part) is nn.Linear:
                stack.callback(part.register_forward_hook(functools.partial(leave, name)).remove)
        stack.enter_context(with_own(attention, "forward", functools.partial(attend, attention.forward)))
        yield seen


def _attentions(block: nn.Module) -> list[str]:
    """Names of the outermost parts that are called an attention."""
    found: list[str] = []
    for name, part in block.named_modules():
        if name and "attention" in type(part).__name__.lower() and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
    return found


@contextlib.contextmanager
def reading_first(module: nn.Module, found: FirstToken | None) -> Iterator[None]:
    """Within, the last block gives (rows, 1, features)."""
    if found is None:
        yield
        return
    block, attention = module.get_submodule(found.block), module.get_submodule(found.attention)
    norm = None if found.norm is None else module.get_submodule(found.norm)
    ends = [module.get_submodule(name) for name in (found.query, found.output) if name is not None]
    with with_own(block, "forward", functools.partial(_forward, block.forward, attention, norm, ends)):
        yield


def _forward(
    plain: Callable[..., Any], attention: nn.Module, norm: nn.Module | None, ends: Sequence[nn.Module], *args: Any, **kwargs: Any
) -> Any:
    """``ends``: the attention's query and output layers, where they are known."""
    hidden = _hidden(args, kwargs)
    places = leave_first_tokens(hidden)

    def first(x: Tensor) -> Tensor:
        return x[:, :1] if places is None else x[:, places]

    def attend(whole: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        args, kwargs = _with_hidden(hidden if norm is None else norm(hidden), args, kwargs)
        with _asking_once(*ends) if ends and places is None else contextlib.nullcontext():
            output = whole(*args, **kwargs)
        return first(output) if isinstance(output, Tensor) else (first(output[0]), *output[1:])

    args, kwargs = _with_hidden(first(hidden), args, kwargs)
    with with_own(attention, "forward", functools.partial(attend, attention.forward)):
        return plain(*args, **kwargs)


@contextlib.contextmanager
def _asking_once(query: nn.Module, output: nn.Module) -> Iterator[None]:
    """Within, the first token of each row alone asks; its answer stands at every token of what attention gives, in memory once."""

    def ask(plain: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return plain(x[:, :1]).expand(-1, x.shape[1], -1)

    def attend(plain: Attend, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        options = options_of(args, kwargs)
        if (mask := options["attn_mask"]) is not None and mask.dim() > 1:
            options["attn_mask"] = mask[..., :1, :]
        return plain(query[:, :, :1], key, value, **options).expand(-1, -1, query.shape[2], -1)

    def take(plain: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return plain(x[:, :1])

    asked = with_own(query, "forward", functools.partial(ask, query.forward))
    taken = with_own(output, "forward", functools.partial(take, output.forward))
    with asked, taken, exchanged(attend):
        yield


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else kwargs.get("hidden_states")


def _with_hidden(hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})
