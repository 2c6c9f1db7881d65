"""The frost line: found for any module, and the logits from the border on equal the plain ones."""

import math

import pytest
import torch
from torch import nn

from frostline.adapt.freeze import freeze
from frostline.plan.frost_line import capture, find_frost_line, preserved, resume_from_border

transformers = pytest.importorskip("transformers")


def text_inputs(rows=3, tokens=17):
    torch.manual_seed(0)
    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[1, 9:] = 0
    return {"input_ids": torch.randint(5, 200, (rows, tokens)) * mask, "attention_mask": mask}


def image_inputs(rows=3):
    return {"pixel_values": torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(0))}


SMALL = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
IMAGE = {"image_size": 32, "patch_size": 8}


def _bert():
    return transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=200, **SMALL)), text_inputs()


def _llama():
    config = transformers.LlamaConfig(vocab_size=200, num_key_value_heads=1, pad_token_id=0, **SMALL)
    return transformers.LlamaForSequenceClassification(config), text_inputs()


def _vit():
    return transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL, **IMAGE)), image_inputs()


def _swin():
    config = transformers.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
    return transformers.SwinForImageClassification(config), image_inputs()


def _resnet():
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic")
    return transformers.ResNetForImageClassification(config), image_inputs()


CASES = [
    ("bert head", _bert, ("classifier",), "bert"),
    ("bert last layer", _bert, ("classifier", "bert.pooler", "bert.encoder.layer.3"), "bert.encoder.layer.2"),
    ("llama last layer", _llama, ("score", "model.norm", "model.layers.3"), "model.layers.2"),
    ("vit head", _vit, ("classifier",), "vit"),
    ("vit last two", _vit, ("classifier", "vit.layernorm", "vit.layers.3", "vit.layers.2"), "vit.layers.1"),
    ("swin head", _swin, ("classifier",), "swin"),
    ("resnet last stage", _resnet, ("classifier", "resnet.encoder.stages.1"), "resnet.encoder.stages.0"),
]


@pytest.mark.parametrize(("make", "learning", "border"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_border_is_found_and_gives_the_plain_logits(make, learning, border):
    torch.manual_seed(1)
    module, inputs = make()
    freeze(module, lambda name: name.startswith(learning))
    module.train()
    line = find_frost_line(module, inputs)
    assert [item.call.name for item in line.border] == [border]
    assert line.deviation == 0.0


def test_nothing_frozen_has_no_line():
    module, inputs = _bert()
    module.train()
    assert find_frost_line(module, inputs) is None


def test_what_chance_changes_is_not_before_the_line():
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4), nn.Linear(4, 2))
    for parameter in module[:3].parameters():
        parameter.requires_grad_(False)
    module.train()  # dropout left on, as another framework would
    line = find_frost_line(_Keyword(module), {"x": torch.ones(3, 4)})
    assert [call.name for call in line.prefix] == ["inner.0"]


class _Keyword(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


class _UsesAReluTwice(nn.Module):
    """The second call of the shared module lies behind what learns."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.relu = nn.Linear(4, 4), nn.Linear(4, 2), nn.ReLU()

    def forward(self, x):
        return self.relu(self.second(self.relu(self.first(x))))


def test_a_module_called_on_both_sides_of_the_line():
    torch.manual_seed(0)
    module = _UsesAReluTwice()
    module.first.requires_grad_(False)
    inputs = {"x": torch.randn(5, 4)}
    line = find_frost_line(module, inputs)
    assert [(item.call.name, item.call.index) for item in line.border] == [("relu", 0)]
    assert line.deviation == 0.0


class _DoublesInPlace(nn.Module):
    """What learns changes the border itself."""

    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.a(x).mul_(2))


def test_a_border_that_is_changed_in_place_is_stored_as_it_was():
    module = _DoublesInPlace()
    module.a.requires_grad_(False)
    inputs = {"x": torch.randn(3, 4)}
    line = find_frost_line(module, inputs)
    assert [item.call.name for item in line.border] == ["a"]
    assert line.deviation == 0.0
    assert torch.equal(capture(module, line, inputs)[0], module.a(inputs["x"]))


class _ReadsBehindAutogradsBack(nn.Module):
    """Reads a prefix output through detach, which no gradient shows."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        hidden = self.a(x)
        return self.head(self.b(x) + hidden.detach())


def test_a_line_that_autograd_cannot_see_is_found_out():
    module = _ReadsBehindAutogradsBack()
    module.a.requires_grad_(False)
    module.b.requires_grad_(False)
    inputs = {"x": torch.randn(3, 4)}
    line = find_frost_line(module, inputs)
    assert math.isnan(line.deviation)  # the planner then declines


def test_finding_the_line_disturbs_nothing():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 30 * 30, 2))
    module[0].requires_grad_(False)
    wrapped = _Keyword(module).train()
    before = {name: tensor.clone() for name, tensor in wrapped.state_dict().items()}
    inputs = {"x": torch.randn(4, 3, 32, 32)}
    random = torch.get_rng_state()
    find_frost_line(wrapped, inputs)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in wrapped.state_dict().items())
    assert "forward" not in wrapped.inner[0].__dict__


def test_gradients_from_the_border_equal_the_plain_ones():
    torch.manual_seed(0)
    module, inputs = _vit()
    freeze(module, lambda name: name.startswith(("classifier", "vit.layernorm", "vit.layers.3")))
    module.train()
    line = find_frost_line(module, inputs)

    def gradients(logits):
        module.zero_grad()
        logits.square().sum().backward()
        return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}

    torch.manual_seed(5)
    plain = gradients(module(**inputs).logits)
    border = tuple(capture(module, line, inputs))
    torch.manual_seed(5)
    short = gradients(resume_from_border(module, line, inputs, border))
    assert plain.keys() == short.keys()
    assert all(torch.equal(plain[name], short[name]) for name in plain)


class _LastStates(nn.Module):
    """Reads what a frozen LSTM's two directions end with: (directions, rows, width)."""

    def __init__(self):
        super().__init__()
        self.first, self.lstm, self.head = nn.Linear(4, 4), nn.LSTM(4, 5, bidirectional=True, batch_first=True), nn.Linear(10, 3)

    def forward(self, x):
        _, (last, _) = self.lstm(self.first(x))
        return self.head(torch.cat([last[0], last[1]], dim=1))


@pytest.mark.parametrize("rows", [2, 3])
def test_as_many_directions_as_rows_are_no_rows(rows):
    torch.manual_seed(0)
    module = _LastStates()
    module.first.requires_grad_(False), module.lstm.requires_grad_(False)
    line = find_frost_line(module, {"x": torch.randn(rows, 6, 4)})
    assert line is None or all(item.call.name != "lstm" for item in line.border)


def test_as_many_features_as_rows_are_still_rows():
    module = _Keyword(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3)))
    module.inner[0].requires_grad_(False)
    line = find_frost_line(module, {"x": torch.randn(2, 4)})
    assert [(item.call.name, item.shape) for item in line.border] == [("inner.0", (2,))]


def test_buffers_that_are_made_anew_expanded_or_written_to_are_put_back():
    module = nn.Module()
    module.register_buffer("made", torch.arange(3))
    module.register_buffer("expanded", torch.ones(1, 3, 1).expand(1, 3, 8))
    module.register_buffer("counted", torch.zeros(2))
    before = dict(module.named_buffers())
    with preserved(module):
        module.made = torch.arange(5)
        module.counted += 1
    assert all(module.get_buffer(name) is buffer for name, buffer in before.items())
    assert module.made.tolist() == [0, 1, 2] and not module.counted.any()
