from __future__ import annotations

import pytest

import frostline as fl
from frostline.adapt.rebuild import rebuild
from frostline.errors import ModelError
from tests.adapt import tiny

GOOD = {"method": "lora", "rank": 2, "alpha": 4.0, "dropout": 0.0, "targets": ["model.layers.0.mlp.up_proj"], "seed": 0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "os.system"}, "got 'os.system', expected one of lora"),
        ({"method": ["lora"]}, "expected one of lora"),
        ({}, "got None"),
        ({**GOOD, "active": "default"}, "adapt.active: got 'default', expected a list"),
        ({**GOOD, "active": ["x"]}, "got 'x', expected one of those that the model holds"),
        ({**GOOD, "adapters": {"a.b": {}}}, "got the name 'a.b'"),
        ({**GOOD, "adapters": {"a": {"rank": 10**9}}}, "got 1000000000, expected a whole number"),
        ({**GOOD, "ranks": []}, "adapt.ranks: got"),
        ({"method": "head", "base": "nf4"}, "got the layers None, expected a list of names"),
        ({"method": "head", "base": "fp4", "quantized": []}, "got 'fp4', expected one of full"),
        ({"method": "head", "base": "nf4", "quantized": ["model"]}, "'model' is 'LlamaModel', expected a linear layer"),
    ],
)
def test_settings_of_files_are_checked(settings, message):
    with pytest.raises(ModelError, match=message):
        rebuild(tiny.network("llama"), settings)


@pytest.mark.parametrize("method", ["lora", "vera", "ia3", "bitfit", "norms"])
def test_a_model_is_saved_and_loaded(method, texts, tmp_path):
    import torch

    from frostline.models.save import save_model

    options = {"targets": ["qkv", "projection"], "feedforward": ["projection"]} if method == "ia3" else {}
    model = tiny.stir(fl.adapt(fl.load("transformer", data=texts, width=32, depth=1), method, **options))
    rows = {"input_ids": torch.tensor([[2, 5, 6], [2, 4, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    save_model(model, tmp_path / "m", rows, rebuild=rebuild)
    with torch.no_grad():
        assert torch.equal(fl.load(tmp_path / "m").module(**rows), model.module.eval()(**rows))
