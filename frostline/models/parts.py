"""Finding the repeated blocks and the head of a network that was not written here, from its module tree alone."""

from __future__ import annotations

from torch import nn


def find_blocks(module: nn.Module) -> list[str]:
    """Names of the body's repeated blocks, from input to output: the items of the longest list of modules of one class.

    Only outermost lists count; where each item holds a list called ``blocks`` (Swin's stages), those are taken instead.
    Without any ``nn.ModuleList``, ``nn.Sequential`` is looked at in the same way, its children of any class.
    """
    best = _longest(module, nn.ModuleList)
    if not best:
        return _longest(module, nn.Sequential)
    names: list[str] = []
    for name in best:
        inner = getattr(module.get_submodule(name), "blocks", None)
        names += [f"{name}.blocks.{index}" for index in range(len(inner))] if isinstance(inner, nn.ModuleList) and len(inner) else [name]
    return names


def find_head(module: nn.Module) -> list[str]:
    """The last module that holds parameters itself: in most networks the layer that gives the outputs."""
    owners = [name for name, part in module.named_modules() if name and any(True for _ in part.parameters(recurse=False))]
    return owners[-1:]


def _longest(module: nn.Module, kind: type[nn.Module]) -> list[str]:
    best: list[str] = []
    lists: list[str] = []
    for name, part in module.named_modules():
        if not isinstance(part, kind) or any(name.startswith(f"{outer}.") for outer in lists if outer):
            continue
        lists.append(name)
        children = [child for _, child in part.named_children() if any(True for _ in child.parameters())]
        if kind is nn.ModuleList and len({type(child) for child in children}) > 1:
            continue
        if len(children) > len(best):
            prefix = f"{name}." if name else ""
            best = [f"{prefix}{child}" for child, inner in part.named_children() if any(True for _ in inner.parameters())]
    return best
