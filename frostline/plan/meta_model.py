"""A language model from its config alone, with what learns settled and no weights, and what a row takes in its body.

The network is built on the ``meta`` device and adapted by the rules of adapt/. A step is then counted (:mod:`frostline.plan.count`)
without the output layer, whose logits never exist (law 6). Blocks that are alike take alike, so a body of L blocks is counted with
two and with three of them and every sum is continued along a line:

    c(L) = c(2) + (L - 2) · (c(3) - c(2))

Two, because the first block differs: where what comes in does not learn, it makes no gradient for it. The most that is alive at once
beside what is kept lies within one block or at the ends and is the same from three blocks on. Blocks that are not alike (other
shapes, other numbers, other kinds of attention) are counted in full.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from frostline.adapt import full, lora, wrapper
from frostline.adapt.lora_layers import Variant, wrap
from frostline.adapt.quantize import GROUP, quantizable
from frostline.adapt.targets import let_learn, saved_modules
from frostline.data.dataset import Schema
from frostline.errors import ModelError
from frostline.models import hf_module
from frostline.models.language import blocks_of
from frostline.models.model import Card, Model
from frostline.plan.count import TEMPORARY, count_step
from frostline.recipe import AdaptRecipe

_COUNTED = (2, 3)
"""Blocks of the shortened bodies."""


@dataclass(frozen=True, kw_only=True)
class BodyCount:
    """A forward and a backward pass of the body for some rows."""

    flops: int
    moved_bytes: int
    """Read and written by all but matrix products."""
    saved_bytes: int
    temporary_bytes: int
    """The most at once besides what is kept and gradients."""

    def continued(self, other: BodyCount, times: int) -> BodyCount:
        """Along the line from this one to ``other``, so many times as far; temporaries are those of ``other``."""
        return BodyCount(
            flops=self.flops + times * (other.flops - self.flops),
            moved_bytes=self.moved_bytes + times * (other.moved_bytes - self.moved_bytes),
            saved_bytes=self.saved_bytes + times * (other.saved_bytes - self.saved_bytes),
            temporary_bytes=other.temporary_bytes,
        )


def build(path: Path, recipe: AdaptRecipe, stored: torch.dtype) -> Model:
    """The network of a config.json (or the folder that holds one) on ``meta``, adapted by ``lora`` or ``full``.

    Raises ModelError for a config that cannot be read or that is no causal language model, and for an adapter that does not fit it.
    """
    from transformers.initialization import no_init_weights

    values = _read(path)
    config = hf_module.parse_config(values)
    with no_init_weights():  # which takes its time on meta too
        module = _network(config, str(path), stored).train()
    output = next((name for name, part in module.named_modules() if part is module.get_output_embeddings()), "")
    if not output:
        raise ModelError(f"model got {str(path)!r}, which has no output layer, expected a causal language model. Give another config")
    unread = cast(Any, None)  # a tokenizer, which nothing here asks for
    card = Card(name=str(values["model_type"]), schema=Schema(task="causal-lm", target="none"), preprocess=unread)
    model = Model(module=module, card=card, blocks=blocks_of(module), output=output)
    if recipe.method == "lora":
        with no_init_weights():
            _put_lora(model, recipe)
    else:
        full.apply(model, recipe, 0)
    return model


def weight_bytes(model: Model, recipe: AdaptRecipe, stored: torch.dtype) -> int:
    """Of all weights with frozen linear layers in ``recipe.base``, other frozen ones in ``stored``, what learns in float32."""
    kept = (*saved_modules(model, recipe), model.output)
    packed = {id(model.module.get_submodule(name).weight) for name in quantizable(model.module, kept)} if recipe.base != "full" else set()
    total = sum(buffer.nbytes for buffer in model.module.buffers())
    for parameter in model.module.parameters():
        if parameter.requires_grad:
            total += parameter.numel() * 4
        elif id(parameter) in packed:
            outputs, inputs = parameter.shape
            group = inputs if recipe.base == "int8" else GROUP
            groups = -(-inputs // group)
            total += outputs * (groups * group * (8 if recipe.base == "int8" else 4) // 8 + 4 * groups)
        else:
            total += parameter.numel() * stored.itemsize
    return total


def count_body(model: Model, *, rows: int, length: int, recompute: bool = False) -> BodyCount:
    """What the body takes for ``rows`` of ``length`` tokens; ``recompute``: its blocks are computed once more in the backward pass.

    Raises ModelError for a network that cannot run without values."""
    blocks = _alike_blocks(model)
    try:
        if len(blocks) <= max(_COUNTED):
            return _count(model, rows, length, recompute)
        two, three = (_shortened(model, blocks, number, rows, length, recompute) for number in _COUNTED)
    except Exception as error:  # networks fail without values in as many ways as there are networks
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"model got {model.card.name!r}, whose step cannot be counted without its weights and data ({type(error).__name__}: {reason}). "
            "Measure it with: frostline plan DATA --model FOLDER"
        ) from error
    return two.continued(three, len(blocks) - 2)


def _read(path: Path) -> dict[str, Any]:
    file = path / "config.json" if path.is_dir() else path
    wanted = "expected a config.json in the layout of Hugging Face, or a folder that holds one"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"model got {str(path)!r} ({error.strerror}), {wanted}. Use: --model FOLDER/config.json") from error
    except ValueError as error:
        raise ModelError(f"model got {str(path)!r}, which is no JSON ({error}), {wanted}. Use: --model FOLDER/config.json") from error
    if not isinstance(values, dict):
        raise ModelError(f"model got {str(path)!r}, which holds {type(values).__name__}, {wanted}. Use: --model FOLDER/config.json")
    if (layers := hf_module.claimed_layers(values)) > 1000:
        raise ModelError(f"model got {str(path)!r} with {layers} layers, expected at most 1000. Correct the config")
    return values


def _network(config: Any, path: str, stored: torch.dtype) -> Any:
    """Attention in its fused form wherever the architecture has it, as in a run."""
    from transformers import AutoModelForCausalLM

    for attention in ("sdpa", "eager"):
        config._attn_implementation = attention
        try:
            with hf_module.quiet(), torch.device("meta"):
                return AutoModelForCausalLM.from_config(config, dtype=stored, trust_remote_code=False)
        except Exception as error:  # the values of a config are checked by many hands
            reason = " ".join(str(error).split())[:200]
            failure = ModelError(f"model got {path!r}, expected the config of a causal language model, such as llama's: {reason}")
    raise failure


def _put_lora(model: Model, recipe: AdaptRecipe) -> None:
    lora.check(model, recipe)
    settings = lora.settings_of(model, recipe)
    variant = Variant(rslora=recipe.rslora, dora=recipe.dora, pissa=recipe.init == "pissa")
    with torch.device("meta"):
        for name in settings["targets"]:
            numbers = {"rank": settings["ranks"].get(name, recipe.rank), "alpha": recipe.alpha, "dropout": recipe.dropout}
            wrapper.replace(model.module, name, wrap(model.module.get_submodule(name), numbers, variant, None))
    let_learn(model, recipe, wrapper.learning_names(model.module))


def _count(model: Model, rows: int, length: int, recompute: bool = False) -> BodyCount:
    body = cast(Any, model.module).base_model
    parts = dict(model.module.named_modules())
    blocks = {parts[name] for name in model.blocks if name in parts} if recompute else set()  # a shortened body has fewer
    ids = torch.zeros(rows, length, dtype=torch.long, device="meta")

    def loss(output: Any) -> Tensor:
        return output.last_hidden_state.sum()

    again = [name for name, part in body.named_modules() if part in blocks]
    step = count_step(body, {"input_ids": ids, "use_cache": False}, loss=loss, recomputed=again)
    return BodyCount(
        flops=step.total_flops,
        moved_bytes=sum(step.moved_bytes.values()),
        saved_bytes=step.saved_bytes,
        temporary_bytes=max((point[TEMPORARY] for point in step.timeline), default=0),
    )


def _shortened(model: Model, blocks: list[nn.Module], number: int, rows: int, length: int, recompute: bool) -> BodyCount:
    with _only(model, blocks[:number]):
        return _count(model, rows, length, recompute)


@contextlib.contextmanager
def _only(model: Model, blocks: list[nn.Module]) -> Iterator[None]:
    """Within, the body has these blocks and no others."""
    name = model.blocks[0].rpartition(".")[0]
    whole = model.module.get_submodule(name)
    wrapper.replace(model.module, name, nn.ModuleList(blocks))
    try:
        yield
    finally:
        wrapper.replace(model.module, name, whole)


def _alike_blocks(model: Model) -> list[nn.Module]:
    """The body's blocks where all do the same and nothing in the config tells them apart; else none."""
    parents = {name.rpartition(".")[0] for name in model.blocks}
    parent = model.module.get_submodule(next(iter(parents))) if len(parents) == 1 else None
    if not isinstance(parent, nn.ModuleList) or len(parent) != len(model.blocks):
        return []
    blocks = list(parent)
    lists = [value for value in cast(Any, model.module).config.to_dict().values() if isinstance(value, list)]
    if any(len(values) == len(blocks) and any(value != values[0] for value in values) for values in lists):
        return []
    first, *others = [_facts(block) for block in blocks]
    return blocks if all(_same(first, facts, position) for position, facts in enumerate(others, 1)) else []


def _facts(block: nn.Module) -> dict[str, Any]:
    """Kinds, plain numbers and shapes of all its parts, by name."""
    facts: dict[str, Any] = {}
    for name, part in block.named_modules():
        facts[name] = type(part)
        facts |= {f"{name}:{key}": value for key, value in vars(part).items() if isinstance(value, str | int | float | None)}
    for name, tensor in (*block.named_parameters(), *block.named_buffers()):
        facts[f"{name}="] = (tuple(tensor.shape), tensor.dtype, tensor.requires_grad)
    return facts


def _same(first: dict[str, Any], facts: dict[str, Any], position: int) -> bool:
    """Whether two blocks differ in nothing but their own positions."""
    return first.keys() == facts.keys() and all(
        value == facts[key] or (type(value) is int and value == 0 and facts[key] == position) for key, value in first.items()
    )
