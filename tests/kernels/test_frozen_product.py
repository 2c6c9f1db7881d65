"""When the forms of a frozen weight are made."""

from __future__ import annotations

import torch
from torch import Tensor

from frostline.kernels.frozen_product import FrozenProduct


class Counting(FrozenProduct):
    """Multiplies plainly, and remembers what it made forms of."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        self.made: list[tuple[int, ...]] = []

    def make(self, weight: Tensor) -> Tensor:
        assert weight.is_contiguous() and not weight.requires_grad
        self.made.append(tuple(weight.shape))
        return weight.clone()

    def multiply(self, rows: Tensor, form: Tensor, bias: Tensor | None) -> Tensor:
        return torch.nn.functional.linear(rows, form, bias)


def test_a_form_is_made_once_for_each_direction_when_it_is_needed() -> None:
    product = Counting(torch.randn(3, 5))
    assert product.outputs == 3 and product.made == []
    for _ in range(2):
        assert product.forward(torch.randn(4, 5), torch.zeros(3)).shape == (4, 3)
    assert product.made == [(3, 5)], "the transposed one is not made before a gradient asks"
    for _ in range(2):
        assert product.gradient(torch.randn(4, 3)).shape == (4, 5)
    assert product.made == [(3, 5), (5, 3)]


def test_a_weight_that_was_written_to_is_not_multiplied_as_it_was() -> None:
    weight = torch.nn.Parameter(torch.randn(3, 5), requires_grad=False)
    product, rows = Counting(weight), torch.randn(4, 5)
    before = product.forward(rows, None)
    with torch.no_grad():
        weight.mul_(2)
    torch.testing.assert_close(product.forward(rows, None), 2 * before)
    assert len(product.made) == 2


def test_forms_made_under_inference_mode_serve_training() -> None:
    product = Counting(torch.randn(3, 5))
    with torch.inference_mode():
        product.forward(torch.randn(4, 5), None)
    assert not product._form(transposed=False).is_inference()
