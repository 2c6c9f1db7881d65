"""Frozen is frozen (law 3): no gradient, evaluation mode, no buffer written, and ``train()`` cannot undo it.

``requires_grad = False`` alone leaves two holes: BatchNorm in training mode goes on averaging its batches into its running
statistics (and its output depends on a row's batch mates), and Dropout goes on dropping. So every submodule at or below
which nothing learns is put into evaluation mode, and its own ``train`` is shadowed, on the instance, by a function that
stays there. Nothing else changes: the class, the forward pass and the ``state_dict`` are as before, and what shadows follows
``copy.deepcopy`` and ``pickle`` to the copy.

A submodule without parameters (Dropout, BatchNorm without affine parameters) goes with its container: it is frozen where
nothing in the container learns. In a ``Sequential``, whose order is the order of execution, it goes with what it feeds:
dropout between two frozen layers is off, dropout before a learning one is on.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

from frostline.checksum import row_sums


def freeze(module: nn.Module, learns: Callable[[str], bool]) -> None:
    """Let exactly the parameters learn whose dotted name ``learns`` accepts; replaces whatever was frozen before.

    A parameter with several names (tied weights) learns if one of them does. Gradients of frozen parameters are dropped.
    """
    mode = module.training
    _release(module)
    learning = {id(p) for name, p in module.named_parameters(remove_duplicate=False) if learns(name) and p.is_floating_point()}
    for parameter in module.parameters():
        parameter.requires_grad_(id(parameter) in learning)
        if not parameter.requires_grad:
            parameter.grad = None
    for part, learning_part in _walk(module, inherited=True):
        if not learning_part:
            part.train = functools.partial(_stay_in_evaluation_mode, part)  # type: ignore[method-assign]
    module.train(mode)


def unfreeze(module: nn.Module) -> None:
    """Everything learns again."""
    freeze(module, lambda name: True)


def is_frozen(module: nn.Module) -> bool:
    """Whether :func:`freeze` holds this module in evaluation mode."""
    return getattr(module.__dict__.get("train"), "func", None) is _stay_in_evaluation_mode


def frozen_names(module: nn.Module) -> list[str]:
    """Names of all that must not change: frozen parameters, and the buffers of frozen submodules."""
    return [name for name, _ in _frozen_tensors(module)]


def frozen_hash(module: nn.Module) -> str:
    """Hash (hex) of the names, types, shapes and checksums of all that :func:`frozen_names` names: equal before and after a run.

    Cheap enough to be taken every epoch.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in _frozen_tensors(module):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}\n".encode())
        digest.update(str(int(row_sums(tensor.reshape(1, -1)))).encode())
    return digest.hexdigest()


def _walk(module: nn.Module, inherited: bool) -> Iterator[tuple[nn.Module, bool]]:
    """Every module at or below ``module`` and whether it learns; ``inherited`` is for those without parameters."""
    learns = _learns(module, inherited)
    yield module, learns
    following = learns
    for child in reversed(list(module.children())):
        yield from _walk(child, following)
        if isinstance(module, nn.Sequential):
            following = _learns(child, following)


def _learns(module: nn.Module, inherited: bool) -> bool:
    flags = [parameter.requires_grad for parameter in module.parameters()]
    return any(flags) if flags else inherited


def _stay_in_evaluation_mode(self: nn.Module, mode: bool = True) -> nn.Module:
    return type(self).train(self, False)


def _release(module: nn.Module) -> None:
    for part in module.modules():
        if is_frozen(part):
            del part.train


def _frozen_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from ((name, parameter) for name, parameter in module.named_parameters() if not parameter.requires_grad)
    for prefix, part in module.named_modules():
        if is_frozen(part) or getattr(part, "FROZEN_BUFFERS", False):
            yield from part.named_buffers(prefix, recurse=False)
