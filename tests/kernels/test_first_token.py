"""The last block for the first token alone: the same logits and gradients, padded and packed, and only where it is so built."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostline.kernels.first_token import FirstToken, find, reading_first
from frostline.kernels.recompute import recomputing
from frostline.kernels.unpad import unpadded

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, "num_labels": 3}
TEXT = {"vocab_size": 40, "max_position_embeddings": 64}
KINDS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "bert": ("bert.encoder.layer", {**SMALL, **TEXT}, None),
    "roberta": ("roberta.encoder.layer", {**SMALL, **TEXT, "pad_token_id": 0}, None),
    "distilbert": (
        "distilbert.transformer.layer",
        {"vocab_size": 40, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "num_labels": 3},
        None,
    ),
    "vit": ("vit.layers", {**SMALL, "image_size": 32, "patch_size": 8}, "layernorm_before"),
    "electra": ("electra.encoder.layer", {**SMALL, **TEXT, "embedding_size": 32}, None),
}


def build(kind: str) -> tuple[nn.Module, list[str]]:
    from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

    blocks, options, _ = KINDS[kind]
    torch.manual_seed(0)
    made = AutoModelForImageClassification if "image_size" in options else AutoModelForSequenceClassification
    module = made.from_config(AutoConfig.for_model(kind, **options)).eval()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return module, [f"{blocks}.{number}" for number in range(3)]


def inputs(kind: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    if "image_size" in KINDS[kind][1]:
        return {"pixel_values": torch.randn(4, 3, 32, 32, generator=generator)}
    mask = (torch.arange(9) < torch.tensor([9, 4, 7, 1])[:, None]).long()
    return {"input_ids": torch.randint(3, 40, (4, 9), generator=generator) * mask, "attention_mask": mask}


def computed(module: nn.Module, given: dict[str, Tensor], around: Any) -> tuple[Tensor, dict[str, Tensor]]:
    module.zero_grad()
    with around:
        logits = module(**given).logits
        (logits * torch.arange(1.0, 4.0)).tanh().sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@contextlib.contextmanager
def multiplied_rows(rows: list[int], layers: list[nn.Module]) -> Iterator[None]:
    """Within, notes how many rows these linear layers multiply."""
    weights, plain = [layer.weight for layer in layers], nn.functional.linear

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if any(weight is one for one in weights):
            rows.append(x.shape[:-1].numel())
        return plain(x, weight, bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "linear", linear)
        yield


@pytest.mark.parametrize("way", ["padded", "packed", "packed, filled up", "recomputed", "packed, recomputed"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_the_same(kind: str, way: str) -> None:
    module, blocks = build(kind)
    given = inputs(kind)
    if "packed" in way and "attention_mask" not in given:
        pytest.skip("images are not padded")
    found = find(module, blocks, lambda: module(**given))
    assert found is not None and found.block == blocks[-1] and (found.norm or "").endswith(KINDS[kind][2] or "")
    assert (found.norm is None) == (KINDS[kind][2] is None)
    plain, expected = computed(module, given, contextlib.nullcontext())
    wide = {name: value.double() if value.is_floating_point() else value for name, value in given.items()}
    seen: list[int] = []
    parts = module.get_submodule(found.block).named_modules()
    behind = [part for name, part in parts if isinstance(part, nn.Linear) and "attention" not in name]
    handles = [part.register_forward_hook(lambda part, args, output: seen.append(output.shape[:-1].numel())) for part in behind]
    assert found.query is not None and found.output is not None and found.query.startswith(found.attention)
    asked: list[int] = []
    ends = [] if "packed" in way else [module.get_submodule(found.query), module.get_submodule(found.output)]
    with contextlib.ExitStack() as around:
        if "packed" in way:
            around.enter_context(unpadded(module, blocks, given["attention_mask"], "filled up" in way))
        around.enter_context(reading_first(module, found))
        if "recomputed" in way:
            around.enter_context(recomputing(module, blocks))
        around.enter_context(multiplied_rows(asked, ends))
        ours, gradients = computed(module, given, around)
    for handle in handles:
        handle.remove()
    assert behind and seen and set(seen) == {4}, "one token of each row"
    assert set(asked) == ({4} if ends else set()), "and one of each asks"
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    assert set(gradients) == set(expected)
    _, exact = computed(copy.deepcopy(module).double(), wide, contextlib.nullcontext())
    unit = 1e-7 * max(float(gradient.norm()) for gradient in exact.values())
    for name, gradient in exact.items():
        off, plainly_off = (float((found[name] - gradient).norm()) for found in (gradients, expected))
        assert off <= 2 * plainly_off + unit, f"{name}: {off:.1e} from float64, {plainly_off:.1e} as transformers computes it"
    assert not any("forward" in vars(part) for part in module.modules()), "left as it was"
    assert torch.equal(module(**given).logits, plain)


def test_none_where_the_last_block_is_built_in_another_way() -> None:
    from transformers import AlbertConfig, AlbertForSequenceClassification

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.ModuleList([nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))])

        def forward(self, x: Tensor) -> Tensor:
            return self.layer[0](x)

    own = Own()
    assert find(own, ["layer.0"], lambda: own(torch.ones(2, 3, 8))) is None, "no attention"
    assert find(own, [], lambda: None) is None
    albert = AlbertForSequenceClassification(AlbertConfig(**SMALL, **TEXT, embedding_size=16)).eval()
    given = inputs("bert")
    assert find(albert, ["albert.encoder.albert_layer_groups.0"], lambda: albert(**given)) is None, "one block three times"


def test_names_alone_change_nothing() -> None:
    module = nn.Linear(2, 2)
    with reading_first(module, None):
        assert "forward" not in vars(module)
    assert FirstToken(block="a", attention="a.b", norm=None).to_dict() == {
        "block": "a", "attention": "a.b", "norm": None, "query": None, "output": None,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["one layer for all three", "no such function", "two behind"])
def test_attention_that_is_built_in_another_way_is_computed_whole(kind: str) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.all, self.query, self.out, self.more = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.all(x).chunk(3, dim=-1))
            if kind != "one layer for all three":
                q = self.query(x).unflatten(-1, (2, 4)).transpose(1, 2)
            if kind == "no such function":
                mixed = (q @ k.transpose(2, 3)).softmax(-1) @ v
            else:
                mixed = nn.functional.scaled_dot_product_attention(q, k, v)
            given = self.out(mixed.transpose(1, 2).flatten(2))
            return self.more(given) if kind == "two behind" else given

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.mlp = Attention(), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attention(x)
            return x + self.mlp(x)

    torch.manual_seed(0)
    module, x = nn.ModuleDict({"block": Block()}), torch.randn(3, 5, 8)
    plain = module["block"](x)
    found = find(module, ["block"], lambda: module["block"](x))
    assert found == FirstToken(block="block", attention="block.attention", norm=None)
    with reading_first(module, found):
        torch.testing.assert_close(module["block"](x), plain[:, :1])
