from __future__ import annotations

import pytest
import torch
from torch import nn

from frostline.adapt.ia3 import IA3
from frostline.adapt.lora_layers import LoRALinear
from frostline.adapt.wrapper import fold, is_transposed, learning_names, wrappers
from frostline.errors import ModelError


def test_further_adapters_are_no_wrappers_of_their_own():
    base = nn.Linear(4, 4)
    layer = LoRALinear(base, 2, 2.0)
    layer.add("b", LoRALinear(base, 2, 2.0))
    module = nn.Sequential(layer)
    assert [name for name, _ in wrappers(module)] == ["0"]
    assert learning_names(module) == {"0.lora_A", "0.lora_B"}
    assert sum(name.endswith("base.weight") for name in module.state_dict()) == 1


def test_gpt2s_linear_layer_is_known_without_transformers_being_imported():
    from transformers.pytorch_utils import Conv1D

    assert is_transposed(Conv1D(3, 2)) and not is_transposed(nn.Linear(2, 3))


def test_a_folded_weight_is_a_new_one_and_stays_frozen():
    base = nn.Linear(3, 2)
    base.requires_grad_(False)
    before = base.weight
    module = nn.Sequential(IA3(base, scales_input=False))
    module[0].ia3_l.data[:] = 2.0
    fold(module)
    assert module[0] is base and base.weight is not before and not base.weight.requires_grad
    torch.testing.assert_close(base.weight, 2 * before)


def test_refusals():
    with pytest.raises(ModelError, match="got a model without one, expected one to fold"):
        fold(nn.Sequential(nn.Linear(2, 2)))
    module = nn.Sequential(LoRALinear(nn.Linear(2, 2), 1, 1.0))
    with pytest.raises(ModelError, match="never trained"):
        fold(module)
    module[0].lora_B.data[0] = float("nan")
    with pytest.raises(ModelError, match=r"'0\.lora_B' holds NaN"):
        fold(module)
    assert isinstance(module[0], LoRALinear)
