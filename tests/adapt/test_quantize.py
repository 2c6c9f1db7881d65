from __future__ import annotations

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.adapt import quantize as quantizing
from frostline.adapt.adapters import merge, unmerge
from frostline.adapt.apply import adapt
from frostline.adapt.quantize import GROUP, KINDS, NF4, QuantizedLinear, quantizable, quantize, quantized, requantize
from frostline.adapt.rebuild import rebuild
from frostline.adapt.wrapper import fold
from frostline.errors import ModelError
from frostline.models.save import save_model
from tests.adapt import tiny

BOUND = {"int8": 1 / 254, "int4": 1 / 14, "nf4": (0.6961928009986877 - 1) / -2}
BITS = {"int8": 8.2, "int4": 4.6, "nf4": 4.6}


def layer_of(weight: torch.Tensor, kind: str, bias: bool = False) -> QuantizedLinear:
    layer = QuantizedLinear(weight.shape[1], weight.shape[0], kind, bias=bias)
    layer.store(weight)
    return layer


def test_the_code_book_is_the_papers():
    """Appendix E: the quantiles of N(0, 1) of two sets of equal shares, one for each sign, each divided by its largest."""
    offset = 0.9677083
    normal = torch.distributions.Normal(0.0, 1.0)
    positive = normal.icdf(torch.linspace(offset, 0.5, 9)[:-1])
    negative = -normal.icdf(torch.linspace(offset, 0.5, 8)[:-1])
    book = torch.cat([positive, torch.zeros(1), negative]).sort().values
    torch.testing.assert_close(torch.tensor(NF4), book / book.max(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(8, 128), (5, 100), (3, 7)])
def test_the_error_is_within_its_bound(kind, shape):
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.02
    layer = layer_of(weight, kind)
    group = shape[1] if kind == "int8" else GROUP
    for start in range(0, shape[1], group):
        part = weight[:, start : start + group]
        error = (layer.weight[:, start : start + group] - part).abs()
        assert (error <= part.abs().amax(1, keepdim=True) * BOUND[kind] * 1.0001).all()
    assert layer.weight.shape == shape and torch.equal(layer_of(layer.weight, kind).weight, layer.weight)


def test_nf4_beats_int4_on_normal_weights():
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    errors = {kind: (quantized(weight, kind) - weight).square().mean() for kind in KINDS}
    assert errors["int8"] < errors["nf4"] < errors["int4"]


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros(kind):
    assert not quantized(torch.zeros(3, 70), kind).any()


@pytest.mark.parametrize("kind", KINDS)
def test_product_and_gradient_are_those_of_the_weight_that_is_meant(kind, monkeypatch):
    monkeypatch.setattr(quantizing, "_CHUNK", 150)  # a few rows at a time
    layer = layer_of(torch.randn(9, 70), kind, bias=True)
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 4, 70, requires_grad=True)
    plain = x @ layer.weight.T + layer.bias
    torch.testing.assert_close(layer(x), plain)
    (expected,) = torch.autograd.grad(plain.square().sum(), x)
    torch.testing.assert_close(torch.autograd.grad(layer(x).square().sum(), x)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_falls_and_nothing_is_saved_for_the_backward_pass(kind):
    layer = layer_of(torch.randn(512, 512), kind)
    stored = sum(tensor.nbytes for tensor in layer.state_dict().values())
    assert stored * 8 <= BITS[kind] * 512 * 512
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(torch.randn(3, 512, requires_grad=True))
    assert not saved


def test_what_is_kept_whole():
    model = tiny.model("llama", tie_word_embeddings=True)
    assert "lm_head" not in quantizable(model.module, ())  # tied to the embedding
    adapt(tiny.model("llama"), "lora", base="nf4")
    model = adapt(tiny.model("bert"), "lora", base="nf4", modules_to_save=["pooler"])
    whole = [name for name, part in model.module.named_modules() if type(part) is nn.Linear]
    assert whole == ["bert.pooler.dense", "classifier"]
    assert len(model.card.arguments["adapt"]["quantized"]) == 12


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_8_bit_base_answers_almost_like_the_whole_one(kind):
    plain, model = tiny.model(kind), adapt(tiny.model(kind), "lora", base="int8")
    expected = tiny.outputs(plain, kind)
    assert (tiny.outputs(model, kind) - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_read_back(kind, texts, tmp_path):
    model = fl.adapt(fl.load("transformer", data=texts, width=32, depth=1), "lora", rank=2, base=kind)
    rows = {"input_ids": torch.tensor([[2, 5, 6], [2, 4, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    tiny.stir(model)
    save_model(model, tmp_path / "模型", rows, rebuild=rebuild)
    again = fl.load(tmp_path / "模型")
    with torch.no_grad():
        assert torch.equal(again.module(**rows), model.module.eval()(**rows))
    assert any(isinstance(part, QuantizedLinear) for part in again.module.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_merging_goes_into_full_precision(kind):
    model = tiny.stir(adapt(tiny.model("bert"), "lora", base=kind))
    packed = model.module.bert.encoder.layer[0].attention.self.query.base
    tuned, digest = tiny.outputs(model, "bert"), packed.packed.clone()
    merge(model.module)
    torch.testing.assert_close(tiny.outputs(model, "bert"), tuned, rtol=1e-5, atol=1e-5)
    unmerge(model.module)
    assert model.module.bert.encoder.layer[0].attention.self.query.base is packed and torch.equal(packed.packed, digest)
    assert torch.equal(tiny.outputs(model, "bert"), tuned)
    fold(model.module)
    assert type(model.module.bert.encoder.layer[0].attention.self.query) is nn.Linear
    torch.testing.assert_close(tiny.outputs(model, "bert"), tuned, rtol=1e-5, atol=1e-5)


def merged(spread: float) -> tuple[nn.Sequential, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(256, 64), nn.Linear(64, 8))
    before = {name: part.weight.detach().clone() for name, part in module.named_children()}
    for part in module.children():
        part.weight.data += spread * part.weight.abs().max() * torch.randn_like(part.weight)
    return module, before


def test_requantising_says_what_is_left():
    module, before = merged(0.5)
    now = {name: part.weight.detach().clone() for name, part in module.named_children()}
    shares = requantize(module, "int4", before)
    change = now["0"] - before["0"]
    left = module[0].weight - quantized(before["0"], "int4")
    assert shares["0"] == pytest.approx(float((change * left).sum() / change.square().sum()), rel=1e-5)
    assert 0.9 < shares["total"] < 1.1 and isinstance(module[1], QuantizedLinear)


@pytest.mark.parametrize(("kind", "least"), [("int8", 0.95), ("nf4", 0.8)])
def test_a_small_lora_merged_into_few_bits_reports_its_share(kind, least):
    module, before = merged(0.1)
    assert requantize(module, kind, before)["total"] > least


def test_what_rounding_would_erase_is_refused():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(128, 16))
    module[0].weight.data = quantized(module[0].weight.data, "int4")
    before = {"0": module[0].weight.detach().clone()}
    module[0].weight.data += 1e-4 * torch.randn_like(module[0].weight)
    with pytest.raises(ModelError, match=r"after 'int4' only -?\d% of what was learned would be left, expected at least 50%"):
        requantize(module, "int4", before)
    assert type(module[0]) is nn.Linear
    assert requantize(module, "int4", before, limit=-1.0)["total"] < 0.5


def test_refusals():
    module = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    with pytest.raises(ModelError, match="'1' is 'LayerNorm', expected a linear layer"):
        quantize(module, ["1"], "nf4")
    with pytest.raises(ModelError, match="got 'fp4', expected one of full, int8, int4, nf4"):
        quantize(module, ["0"], "fp4")
