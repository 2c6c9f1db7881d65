"""A shortened body's count, continued, is the whole body's; what learns is what a run would let learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from frostline.errors import ModelError
from frostline.plan import meta_model
from frostline.plan.meta_model import build, count_body, weight_bytes
from frostline.recipe import AdaptRecipe

SMALL: dict[str, Any] = {
    "model_type": "llama", "num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 128, "tie_word_embeddings": False, "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {**SMALL, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
LINEAR = 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)


def config(folder: Path, values: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt_neox", "mixtral"])
@pytest.mark.parametrize("recipe", [
    AdaptRecipe(method="full"),
    AdaptRecipe(method="lora"),
    AdaptRecipe(method="lora", dora=True, dropout=0.1, rank_pattern={"q_proj|query_key_value": 16}),
    AdaptRecipe(method="lora", modules_to_save=["*embed*"]),
], ids=["full", "lora", "dora", "embedding"])  # fmt: skip
def test_blocks_that_are_alike_are_counted_once(tmp_path: Path, kind: str, recipe: AdaptRecipe, rows: int) -> None:
    model = build(config(tmp_path, {**EXPERTS, "model_type": kind}), recipe, torch.bfloat16)
    assert len(meta_model._alike_blocks(model)) == 4
    assert count_body(model, rows=rows, length=32) == meta_model._count(model, rows, 32)
    assert len(model.module.get_submodule(model.blocks[0].rpartition(".")[0])) == 4  # type: ignore[arg-type]  # put back


def test_many_blocks_are_no_other_than_four(tmp_path: Path) -> None:
    model = build(config(tmp_path, {**SMALL, "num_hidden_layers": 9}), AdaptRecipe(method="lora"), torch.bfloat16)
    assert count_body(model, rows=2, length=16) == meta_model._count(model, 2, 16)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_blocks_that_are_computed_once_more(tmp_path: Path, kind: str) -> None:
    model = build(config(tmp_path, {**SMALL, "num_hidden_layers": 7, "model_type": kind}), AdaptRecipe(method="lora"), torch.bfloat16)
    plain, again = (count_body(model, rows=2, length=32, recompute=recompute) for recompute in (False, True))
    assert again == meta_model._count(model, 2, 32, recompute=True)
    assert again.saved_bytes < 0.3 * plain.saved_bytes and 1.2 * plain.flops < again.flops < 1.6 * plain.flops


@pytest.mark.parametrize(("change", "recipe"), [
    ({}, AdaptRecipe(method="lora", rank_pattern={"layers.2.mlp.up_proj": 32})),
    ({}, AdaptRecipe(method="lora", targets=["layers.1.*.q_proj"])),
    ({"model_type": "gemma3_text", "sliding_window_pattern": 3}, AdaptRecipe(method="full")),
    ({"model_type": "qwen3_moe", "mlp_only_layers": [1], "num_experts": 4, "num_experts_per_tok": 2}, AdaptRecipe(method="full")),
    ({"model_type": "smollm3", "no_rope_layer_interval": 2}, AdaptRecipe(method="full")),
], ids=["ranks", "targets", "windows", "experts", "positions"])  # fmt: skip
def test_blocks_that_are_not_alike_are_counted_in_full(tmp_path: Path, change: dict[str, Any], recipe: AdaptRecipe) -> None:
    model = build(config(tmp_path, {**SMALL, **change}), recipe, torch.bfloat16)
    assert meta_model._alike_blocks(model) == []
    assert count_body(model, rows=1, length=32) == meta_model._count(model, 1, 32)


def test_experts_are_counted_for_the_tokens_that_meet_them(tmp_path: Path) -> None:
    one, two = (
        count_body(build(config(tmp_path, {**EXPERTS, "num_experts_per_tok": number}), AdaptRecipe(method="full"), torch.bfloat16),
                   rows=1, length=32).flops
        for number in (1, 2)
    )  # fmt: skip
    assert two - one == 3 * 2 * 32 * 4 * 3 * 64 * 128  # forward and two gradients; tokens; blocks; three matrices


def learning(model: Any) -> int:
    return sum(p.numel() for p in model.module.parameters() if p.requires_grad)


def test_what_learns_follows_the_recipe(tmp_path: Path) -> None:
    folder = config(tmp_path, SMALL)
    rank = 4 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))
    plain = AdaptRecipe(method="lora", rank=2)
    assert learning(build(folder, plain, torch.float32)) == 2 * rank
    wider = AdaptRecipe(method="lora", rank=2, rank_pattern={"q_proj": 10})
    assert learning(build(folder, wider, torch.float32)) == 2 * rank + 4 * 8 * (64 + 64)
    saved = AdaptRecipe(method="lora", rank=2, modules_to_save=["embed_tokens"])
    assert learning(build(folder, saved, torch.float32)) == 2 * rank + 128 * 64
    assert learning(build(folder, AdaptRecipe(method="lora", rank=2, targets=["q_proj"]), torch.float32)) == 4 * 2 * (64 + 64)
    assert learning(build(folder, AdaptRecipe(method="full"), torch.float32)) == LINEAR + 2 * 128 * 64 + 9 * 64
    assert all(p.is_meta for p in build(folder, plain, torch.float32).module.parameters())


def test_weights_in_few_bits_are_those_that_a_run_keeps_so(tmp_path: Path) -> None:
    folder = config(tmp_path, SMALL)
    sizes = {}
    for base in ("full", "int8", "int4", "nf4"):
        recipe = AdaptRecipe(method="lora", base=base)  # type: ignore[arg-type]
        sizes[base] = weight_bytes(build(folder, recipe, torch.bfloat16), recipe, torch.bfloat16)
    assert sizes["full"] - sizes["nf4"] == LINEAR * 2 - LINEAR * (0.5 + 4 / 64) and sizes["int4"] == sizes["nf4"]
    outputs = 4 * (2 * 64 + 2 * 32 + 2 * 128 + 64)
    assert sizes["full"] - sizes["int8"] == LINEAR * 2 - (LINEAR + 4 * outputs)


def test_pissa_keeps_what_it_began_with(tmp_path: Path) -> None:
    plain, pissa = AdaptRecipe(method="lora", rank=2), AdaptRecipe(method="lora", rank=2, init="pissa")
    folder = config(tmp_path, SMALL)
    models = [build(folder, recipe, torch.float32) for recipe in (plain, pissa)]
    sizes = [weight_bytes(model, plain, torch.float32) for model in models]
    assert sizes[1] - sizes[0] == 4 * learning(models[0])


@pytest.mark.parametrize(("values", "recipe", "hint"), [
    ({"model_type": "t5"}, AdaptRecipe(method="full"), "expected the config of a causal language model"),
    ({"model_type": "nothing"}, AdaptRecipe(method="full"), "model_type got 'nothing'"),
    ({**SMALL, "num_hidden_layers": 100_000}, AdaptRecipe(method="full"), "100000 layers"),
    ({**SMALL, "hidden_size": 63}, AdaptRecipe(method="full"), "model got|configuration of"),
    (SMALL, AdaptRecipe(method="lora", targets=["nothing"]), "adapt.targets: got 'nothing'"),
    (SMALL, AdaptRecipe(method="lora", rank_pattern={"nothing": 2}), "adapt.rank_pattern: got 'nothing'"),
    (SMALL, AdaptRecipe(method="lora", modules_to_save=["nothing"]), "adapt.modules_to_save: got"),
    (SMALL, AdaptRecipe(method="lora", rank=0), "adapt.rank: got 0"),
])  # fmt: skip
def test_what_cannot_be_built_is_refused(tmp_path: Path, values: dict[str, Any], recipe: AdaptRecipe, hint: str) -> None:
    with pytest.raises(ModelError, match=hint):
        count_body(build(config(tmp_path, values), recipe, torch.bfloat16), rows=1, length=8)


@pytest.mark.parametrize(
    ("text", "hint"), [(None, "No such file"), ("{", "is no JSON"), ("[]", "which holds list"), ("\xff", "is no JSON")]
)
def test_files_that_are_no_config(tmp_path: Path, text: str | None, hint: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=hint):
        build(tmp_path, AdaptRecipe(method="full"), torch.float32)


def test_a_network_that_needs_values_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(config(tmp_path, SMALL), AdaptRecipe(method="full"), torch.bfloat16)

    class Choosing(nn.Module):
        def forward(self, x: Any, *args: Any, **options: Any) -> Any:
            return x[x.nonzero(as_tuple=True)]

    for name in model.blocks:
        monkeypatch.setattr(model.module.get_submodule(name), "forward", Choosing().forward)
    with pytest.raises(ModelError, match="cannot be counted without its weights and data"):
        count_body(model, rows=1, length=8)


def test_nothing_is_drawn(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    build(config(tmp_path, SMALL), AdaptRecipe(method="lora"), torch.bfloat16)
    assert torch.equal(before, torch.get_rng_state())
