from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from frostline.kernels.rotary import find, rotary, rotated
from tests.kernels.transformers_models import build


def angles(size: int) -> Tensor:
    return torch.linspace(0, 5, 3 * size // 2, dtype=torch.float64).view(1, 1, 3, size // 2).repeat(1, 1, 1, 2)


def test_outputs_and_gradients_are_those_of_the_layers() -> None:
    from transformers.models.llama.modeling_llama import rotate_half

    for lie in (lambda x: x, lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)):
        x = lie(torch.randn(2, 4, 3, 10, dtype=torch.float64)).requires_grad_()
        cos, sin = angles(10).cos(), angles(10).sin()
        ours, expected = rotary(x, cos, sin), x * cos + rotate_half(x) * sin
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(torch.autograd.grad(ours.sin().sum(), x), torch.autograd.grad(expected.sin().sum(), x))


@pytest.mark.parametrize("kind", ["llama", "gemma2", "qwen3"])
def test_models_of_transformers_and_their_function_is_given_back(kind: str) -> None:
    module, _ = build(kind)
    found = find(module)
    assert [one.__name__ for one in found] == [f"transformers.models.{kind}.modeling_{kind}"]
    before, ids = found[0].apply_rotary_pos_emb, torch.arange(14).view(2, 7)
    with pytest.raises(KeyboardInterrupt), rotated(found):
        ours = module(ids).logits
        assert found[0].apply_rotary_pos_emb is not before
        raise KeyboardInterrupt
    assert found[0].apply_rotary_pos_emb is before
    torch.testing.assert_close(ours, module(ids).logits, rtol=1e-4, atol=1e-5)


def test_other_rotations_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    other = ModuleType("other")
    part = type("Part", (torch.nn.Module,), {"__module__": "other"})()
    monkeypatch.setitem(sys.modules, "other", other)
    assert find(part) == []
    for function in (lambda q, k, cos, sin: (q * cos, k * cos), lambda q, freqs: (q, freqs), lambda q, k, cos, sin: q):
        other.apply_rotary_pos_emb = function  # type: ignore[attr-defined]
        assert find(part) == []


def test_angles_that_learn_or_turn_a_part_of_the_features_are_left_to_the_model() -> None:
    torch.manual_seed(0)
    module, _ = build("llama")
    found = find(module)
    apply, q = found[0].apply_rotary_pos_emb, torch.randn(1, 2, 5, 8)
    angles = torch.randn(1, 5, 4).repeat(1, 1, 2).requires_grad_()
    with rotated(found):
        ours = torch.autograd.grad(found[0].apply_rotary_pos_emb(q, q, angles.cos(), angles.sin())[0].square().sin().sum(), angles)
    expected = torch.autograd.grad(apply(q, q, angles.cos(), angles.sin())[0].square().sin().sum(), angles)
    assert torch.equal(ours[0], expected[0]) and expected[0].any()


def test_partial_rotation() -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, max_position_embeddings=32
    )
    module, ids = GPTNeoXForCausalLM(config).eval(), torch.arange(14).view(2, 7)
    with rotated(find(module)):
        ours = module(ids).logits
    assert torch.equal(ours, module(ids).logits)
