from __future__ import annotations

import pytest
import torch

from frostline.errors import ModelError
from frostline.models.net import Net
from frostline.models.transformer import Block, build_transformer, build_vit, patch_of

IDS = torch.tensor([[2, 5, 4, 6, 3], [2, 4, 5, 0, 0], [2, 0, 0, 0, 0]])


def test_a_block_is_torchs_pre_norm_layer() -> None:
    """Against ``nn.TransformerEncoderLayer(norm_first=True)`` with the same weights."""
    torch.manual_seed(0)
    block = Block(128, 0.0).double().eval()
    theirs = torch.nn.TransformerEncoderLayer(128, 2, 512, 0.0, "gelu", batch_first=True, norm_first=True).double().train()
    pairs = {
        "self_attn.in_proj_weight": block.qkv.weight, "self_attn.in_proj_bias": block.qkv.bias,
        "self_attn.out_proj.weight": block.projection.weight, "self_attn.out_proj.bias": block.projection.bias,
        "linear1.weight": block.mlp[0].weight, "linear1.bias": block.mlp[0].bias,
        "linear2.weight": block.mlp[2].weight, "linear2.bias": block.mlp[2].bias,
        "norm1.weight": block.attention_norm.weight, "norm1.bias": block.attention_norm.bias,
        "norm2.weight": block.mlp_norm.weight, "norm2.bias": block.mlp_norm.bias,
    }  # fmt: skip
    theirs.load_state_dict(pairs)
    x, mask = torch.randn(2, 6, 128, dtype=torch.float64), torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]).bool()
    got, expected = block(x, mask[:, None, None, :]), theirs(x, src_key_padding_mask=~mask)
    torch.testing.assert_close(got[mask], expected[mask], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pool", [None, "cls", "max", "attention"])
def test_padding_takes_no_part(pool: str | None) -> None:
    torch.manual_seed(0)
    network = build_transformer(Net(outputs=2, width=16, depth=2, pool=pool), 10, 20).double().eval()
    longer = torch.nn.functional.pad(IDS, (0, 9))
    torch.testing.assert_close(network(longer, (longer > 0).long()), network(IDS, (IDS > 0).long()), rtol=1e-12, atol=1e-12)


def test_blocks_have_names_and_everything_learns() -> None:
    for network, inputs in (
        (build_transformer(Net(outputs=2, width=16, depth=3, dropout=0), 10, 5), (IDS, (IDS > 0).long())),
        (build_vit(Net(outputs=2, width=16, depth=3, dropout=0, pool="cls"), 32), (torch.rand(2, 3, 32, 32),)),
    ):
        assert isinstance(network.get_submodule("blocks.2"), Block)
        network(*inputs).square().sum().backward()
        assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_attention_pooling_starts_as_the_mean() -> None:
    network = build_transformer(Net(outputs=2, width=16, pool="attention"), 10, 5)
    assert not network.pool.query.weight.any()


def test_patches() -> None:
    assert [patch_of(size) for size in (28, 32, 64, 96, 224)] == [4, 4, 8, 8, 16]
    with pytest.raises(
        ModelError, match=r"data.size got 29, which cannot be cut into patches; expected a multiple of 8, as in data.size=24"
    ):
        patch_of(29)


def test_inputs_of_another_size() -> None:
    with pytest.raises(ModelError, match="expected images of 32 x 32 pixels"):
        build_vit(Net(outputs=2, width=16), 32)(torch.rand(1, 3, 28, 28))
    with pytest.raises(ModelError, match="input_ids hold 5 tokens a row, expected at most 4"):
        build_transformer(Net(outputs=2, width=16), 10, 4)(IDS, (IDS > 0).long())
