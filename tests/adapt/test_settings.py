from __future__ import annotations

import pytest

from frostline.adapt.apply import _METHODS
from frostline.adapt.rebuild import _METHODS as REBUILT
from frostline.adapt.settings import STRUCTURAL, in_place, note, refuse_another
from frostline.errors import ModelError


def test_every_method_that_changes_the_network_can_be_built_again():
    assert set(STRUCTURAL) == set(REBUILT) <= set(_METHODS)


def test_another_adapter_is_refused(make_text_model):
    model = make_text_model()
    assert in_place(model) is None
    refuse_another(model, {"method": "ia3"})
    note(model, {"method": "ia3", "targets": ["a"], "seed": 1})
    refuse_another(model, {"method": "ia3", "targets": ["a"], "seed": 2})
    with pytest.raises(ModelError, match=r"got 'ia3' with targets \['b'\], but the model 'textnet' already holds 'ia3' with targets"):
        refuse_another(model, {"method": "ia3", "targets": ["b"]})


def test_a_base_in_few_bits_is_no_adapter(make_text_model):
    model = make_text_model()
    note(model, {"method": "head", "base": "int8", "quantized": []})
    assert in_place(model) is None
