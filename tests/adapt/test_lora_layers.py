from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from frostline.adapt.lora_layers import LoRAConv, LoRAEmbedding, LoRALinear, Variant
from frostline.adapt.quantize import QuantizedLinear
from frostline.errors import ModelError


def stirred(layer, spread: float = 0.3):
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if not name.startswith("base."):
                parameter.add_(torch.randn_like(parameter) * spread)
    return layer


def test_rslora_scales_by_the_root_of_the_rank():
    assert LoRALinear(nn.Linear(4, 4), 4, 6.0, variant=Variant(rslora=True)).scaling == 3.0


def test_dora_is_what_the_paper_writes():
    base = nn.Linear(6, 5)
    layer = LoRALinear(base, 2, 4.0, variant=Variant(dora=True))
    x = torch.randn(7, 6)
    assert torch.equal(layer(x), base(x)) and torch.equal(layer.lora_magnitude_vector, base.weight.norm(dim=1))
    stirred(layer)
    updated = base.weight + 2.0 * layer.lora_B @ layer.lora_A
    expected = functional.linear(x, layer.lora_magnitude_vector[:, None] * updated / updated.norm(dim=1, keepdim=True), base.bias)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(functional.linear(x, layer.weight, base.bias), expected)


@pytest.mark.parametrize("groups", [1, 2])
def test_dora_of_convolutions_folds(groups):
    base = nn.Conv2d(4, 6, 3, padding=1, groups=groups)
    layer = LoRAConv(base, 2, 4.0, variant=Variant(dora=True))
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(layer(x), base(x)) and layer.lora_magnitude_vector.shape == (1, 6, 1, 1)
    stirred(layer)
    torch.testing.assert_close(base._conv_forward(x, layer.weight, base.bias), layer(x), rtol=1e-4, atol=1e-5)


def test_no_gradient_reaches_doras_norm():
    layer = stirred(LoRALinear(nn.Linear(6, 5), 2, 4.0, variant=Variant(dora=True)))
    x = torch.randn(3, 6)
    layer(x).square().sum().backward()
    ratio = (layer.lora_magnitude_vector / layer.norm(layer.base.weight + 2.0 * layer.delta())).detach()
    own = layer.lora_B.grad.clone()
    layer.lora_B.grad = None
    (ratio * (x @ layer.base.weight.T + 2.0 * layer.update(x)) + layer.base.bias).square().sum().backward()
    torch.testing.assert_close(layer.lora_B.grad, own)


def test_pissa_begins_with_the_principal_part():
    base = nn.Linear(8, 6)
    layer = LoRALinear(base, 2, 4.0, variant=Variant(pissa=True))
    u, s, v = torch.linalg.svd(base.weight.detach())
    torch.testing.assert_close(2.0 * layer.lora_B @ layer.lora_A, u[:, :2] @ torch.diag(s[:2]) @ v[:2])
    x = torch.randn(5, 8)
    assert torch.equal(layer(x), base(x))
    stirred(layer)
    residual = base.weight - 2.0 * layer.pissa_B @ layer.pissa_A
    torch.testing.assert_close(layer(x), functional.linear(x, residual + 2.0 * layer.lora_B @ layer.lora_A, base.bias))
    a, b = layer.factors()
    assert len(a) == 4
    torch.testing.assert_close(base.weight + 2.0 * b @ a, layer.weight)


def test_pissa_of_a_rank_above_the_weights_own():
    base = nn.Linear(3, 2)
    layer = LoRALinear(base, 8, 8.0, variant=Variant(pissa=True))
    torch.testing.assert_close(layer.lora_B @ layer.lora_A, base.weight)


def test_pissa_is_for_linear_layers():
    with pytest.raises(ModelError, match="got 'pissa' on a 'Conv2d', expected linear layers"):
        LoRAConv(nn.Conv2d(3, 3, 1), 2, 2.0, variant=Variant(pissa=True))


@pytest.mark.parametrize("dora", [False, True])
def test_embeddings(dora):
    base = nn.Embedding(9, 4, padding_idx=0)
    layer = LoRAEmbedding(base, 2, 3.0, variant=Variant(dora=dora))
    ids = torch.tensor([[1, 8, 0], [2, 2, 3]])
    assert not layer.lora_A.any() and layer.lora_B.any() and torch.equal(layer(ids), base(ids))
    stirred(layer)
    torch.testing.assert_close(layer(ids), functional.embedding(ids, layer.weight))
    assert not torch.allclose(layer(ids), base(ids))


def test_an_embedding_that_scales_what_it_looks_up():
    from transformers.models.bart.modeling_bart import BartScaledWordEmbedding

    base = BartScaledWordEmbedding(9, 4, 0, embed_scale=2.0)
    layer = stirred(LoRAEmbedding(base, 2, 3.0))
    ids = torch.tensor([1, 8])
    torch.testing.assert_close(layer(ids), 2.0 * functional.embedding(ids, layer.weight))


def test_the_kernels_slot_serves_one_plain_update():
    layer, calls = LoRALinear(nn.Linear(4, 3), 2, 3.0, 0.5), []

    def kernel(x, weight, bias, a, b, scaling):
        calls.append(scaling)
        return x @ (weight + scaling * b @ a).T + bias

    x = torch.randn(5, 4)
    stirred(layer).eval()
    plain = layer(x)
    layer.kernel = kernel
    torch.testing.assert_close(layer(x), plain)
    assert calls == [1.5]
    layer.train()(x)  # dropout is on
    layer.eval().off = True
    assert torch.equal(layer(x), layer.base(x)) and len(calls) == 1
    dora = LoRALinear(nn.Linear(4, 3), 2, 3.0, variant=Variant(dora=True))
    dora.kernel = kernel
    dora(x)
    assert len(calls) == 1


def test_the_kernel_does_not_serve_a_base_in_few_bits():
    base = QuantizedLinear(64, 3, "nf4", bias=True)
    base.store(torch.randn(3, 64))
    layer = LoRALinear(base, 2, 3.0)
    layer.kernel = lambda *_: 1 / 0
    assert torch.equal(layer(torch.ones(2, 64)), base(torch.ones(2, 64)))


def test_the_draw_is_pefts():
    layer = LoRALinear(nn.Linear(300, 20), 50, 1.0, generator=torch.Generator().manual_seed(1))
    assert layer.lora_A.abs().max() <= 1 / math.sqrt(300)


@pytest.mark.parametrize("options", [{}, {"dora": True}, {"pissa": True}, {"rslora": True}], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_as_a_product_it_is_the_layer(options, dropout):
    layer = LoRALinear(nn.Linear(6, 5), 3, 6.0, dropout, torch.Generator().manual_seed(0), Variant(**options))
    nn.init.normal_(layer.lora_B)
    if not options.get("dora"):
        layer.add("second", LoRALinear(layer.base, 2, 2.0, dropout, torch.Generator().manual_seed(1)))
        nn.init.normal_(layer.piece("second").lora_B)
        layer.active = ("default", "second")
    x = torch.randn(4, 6)
    for mode in (True, False):
        layer.train(mode)
        torch.manual_seed(3)
        expected = layer(x)
        torch.manual_seed(3)
        inputs, weight = layer.as_product(x)
        torch.testing.assert_close(functional.linear(inputs, weight, layer.bias), expected)
        assert (inputs.shape[1] > 6) == (mode and dropout > 0)
        first, second = (torch.autograd.grad(made.square().sum(), layer.lora_B)[0] for made in (expected, _again(layer, x)))
        torch.testing.assert_close(first, second)
    layer.off = True
    assert torch.equal(functional.linear(*layer.as_product(x), layer.bias), layer.base(x))


def _again(layer, x):
    torch.manual_seed(3)
    return functional.linear(*layer.as_product(x), layer.bias)
