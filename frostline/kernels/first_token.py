"""The last block of an encoder computed for the first token alone, where that is all that its reader looks at.

A classifier of texts or images reads the output of the first token (BERT's [CLS], ViT's class token). Attention in the last block
still looks at all tokens; what stands behind it, two thirds of a block's multiply-adds, is computed for each token by itself, and
needed for one. So the block is run on the first token, except that its attention gets the whole sequence and gives what it has for
the first. The sums are the same; dropout draws masks of other shapes from the same distribution.

The block's own code runs, whatever model it is of. It is known by what its calls show: one attention, which is handed either what
the block is, or that after one norm. Whoever reads more than the first token gets another result: this is tried before it is used.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frostline.kernels.unpad import leave_first_tokens
from frostline.models.model import with_own


@dataclass(frozen=True, kw_only=True)
class FirstToken:
    """Names of the last block, of its attention, and of the norm before that, if there is one."""

    block: str
    attention: str
    norm: str | None

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

    with contextlib.ExitStack() as stack:
        for part, kept in ((last, entered), (last.get_submodule(name), heard)):
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
    return FirstToken(block=blocks[-1], attention=f"{blocks[-1]}.{name}", norm=f"{blocks[-1]}.{norms[0]}" if norms else None)


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
    with with_own(block, "forward", functools.partial(_forward, block.forward, attention, norm)):
        yield


def _forward(plain: Callable[..., Any], attention: nn.Module, norm: nn.Module | None, *args: Any, **kwargs: Any) -> Any:
    hidden = _hidden(args, kwargs)
    places = leave_first_tokens(hidden)

    def first(x: Tensor) -> Tensor:
        return x[:, :1] if places is None else x[:, places]

    def attend(whole: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        args, kwargs = _with_hidden(hidden if norm is None else norm(hidden), args, kwargs)
        output = whole(*args, **kwargs)
        return first(output) if isinstance(output, Tensor) else (first(output[0]), *output[1:])

    args, kwargs = _with_hidden(first(hidden), args, kwargs)
    with with_own(attention, "forward", functools.partial(attend, attention.forward)):
        return plain(*args, **kwargs)


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else kwargs.get("hidden_states")


def _with_hidden(hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})
