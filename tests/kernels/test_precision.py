from __future__ import annotations

import torch

from frostline.kernels.precision import cast, no_autocast, wide


def test_operands_are_cast_as_autocast_casts_those_of_a_linear_layer() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x, w = torch.ones(2, 3, dtype=dtype), torch.ones(4, 3, dtype=dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected = torch.nn.functional.linear(x, w).dtype
            ours = [tensor.dtype for tensor in cast(x, w, None) if tensor is not None]
        assert ours == [expected, expected]
        assert cast(x)[0] is x


def test_a_cast_is_differentiated() -> None:
    x = torch.ones(3, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (y,) = cast(x)
    assert y is not None and y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32


def test_within_no_autocast_operands_keep_their_dtype() -> None:
    x = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with no_autocast(x):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16


def test_sums_are_wide() -> None:
    assert [wide(dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64)] == [torch.float32] * 3 + [torch.float64]
